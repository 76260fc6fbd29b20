"""Estimates what the models take of a GPU and writes the table that is shipped for those that nobody measured.

    python -m bench.estimate            prints it
    python -m bench.estimate --write    writes cluster/profiles.json

Weights are random ones of the official sizes. The rule is in `actors/estimate.py`; it needs no GPU.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from actors.catalogue import CARDS, card
from actors.estimate import estimate
from bench.subjects import MATTE, UPSCALE
from cluster.config import frame_size
from cluster.profiles import Figure, Profile
from cluster.registry import official_registry

ROOT = Path(__file__).resolve().parents[1]
#: The reference machine's card. The driver tells 12288 MiB and keeps about 250 of them.
DEVICE, TOTAL_MIB = "NVIDIA GeForce RTX 3060", 12036
#: A process with torch, cuDNN and cuBLAS before its first tensor; reports for Ampere cards lie between 300 and 500.
CONTEXT_MIB = 450
NOTE = (
    "Estimated, not measured, by `python -m bench.estimate`: live tensors of one call plus the largest convolution's "
    "result, fp16, micro-batch 1; see actors/estimate.py. `troupe profile` measures."
)
NETWORKS: Mapping[str, Callable[[], nn.Module]] = {**UPSCALE, **MATTE}
FRAMES = {"upscale": ("480p", "720p", "1080p"), "matte": ("480p", "720p", "1080p", "1440p", "4k")}
TILES = {"upscale": (0, 512, 256), "matte": (0,)}


def write_weights(folder: Path, model: str) -> list[Path]:
    """Random checkpoints of the official sizes for a model, under their registered names."""
    network = NETWORKS[model]()
    paths = []
    for name in card(model).weights:
        path = folder / official_registry()[name].file
        torch.save({"params": network.state_dict()}, path)
        paths.append(path)
    return paths


def figures(model: str, frames: Sequence[str], tiles: Sequence[int]) -> list[Figure]:
    """Estimates of one model; one without a torch network (`selfie`) runs on the CPU and takes nothing of a card."""
    if model not in NETWORKS:
        width, height = frame_size(frames[0])
        return [
            Figure(
                model=model,
                dtype="fp16",
                width=width,
                height=height,
                micro_batch=1,
                tile=0,
                resident_mib=0,
                peak_mib=0,
            )
        ]
    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(Path(folder), model)
        return [
            estimate(card(model), weights, frame_size(frame), dtype="fp16", micro_batch=1, tile=tile)
            for frame in frames
            for tile in tiles
        ]


def profile() -> Profile:
    """Estimates of every model that runs in a pin."""
    empty = Profile(device=DEVICE, total_mib=TOTAL_MIB, context_mib=CONTEXT_MIB, estimated=True, note=NOTE)
    return empty.with_figures(
        figure
        for entry in CARDS.values()
        if entry.resident
        for figure in figures(entry.name, FRAMES[entry.family], TILES[entry.family])
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.estimate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write cluster/profiles.json")
    write = parser.parse_args().write
    text = as_text(profile())
    if write:
        (ROOT / "cluster" / "profiles.json").write_text(text, encoding="utf-8")
    else:
        print(text, end="")


def as_text(made: Profile) -> str:
    """JSON with a line a figure, so that changes can be read."""
    head = made.model_dump_json(exclude={"figures"}).removesuffix("}")
    lines = ",\n".join(figure.model_dump_json(exclude_none=True) for figure in made.figures)
    return f'{head},"figures":[\n{lines}\n]}}\n'


if __name__ == "__main__":
    main()
