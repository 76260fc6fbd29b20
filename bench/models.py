"""Networks with random weights in a weights store of their own, so that a job runs on them like on any others.

Speed does not depend on what the weights are, but encoders' does depend on the pictures: last layers are scaled so that
upscaled frames look like frames and mattes have both clear and opaque parts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from actors.catalogue import card
from actors.frames import Carry, FrameBatch
from actors.model import Dtype, Model, Setup, Step
from actors.networks.rvm import MattingNetwork
from actors.networks.srvgg import SRVGGNetCompact
from bench.clip import drawn
from bench.networks import fill
from bench.subjects import UPSCALE
from cluster.weights import WeightsStore, default_store

MATTE = "rvm-mobilenetv3"
#: Every case ends at this short side.
TARGET = "720p"


@dataclass(frozen=True, slots=True)
class Case:
    """A pair of networks at a size of clip.

    Attributes:
        name: for the table.
        upscale: catalogue name of the upscaler.
        size: width and height of the clip.
        max_input: short side that enters the upscaler, None for the clip's.
        long_side: what the matting network looks at.
        tiny: an upscaler of the compact family with hardly any features stands in for the real one.
    """

    name: str
    upscale: str
    size: tuple[int, int]
    max_input: int | None = None
    long_side: int = 768
    tiny: bool = False

    @property
    def label(self) -> str:
        """For the table: what ran."""
        net = f"compact x4 of 4 features (as {self.upscale})" if self.tiny else self.upscale
        reduced = f" at short side {self.max_input}" if self.max_input else ""
        return f"{net}{reduced} + {MATTE} at {self.long_side}, from {self.size[0]}x{self.size[1]}"


#: Networks of at most 50 ms a frame on one core each, as a GPU has the real ones.
LIGHT = Case("light", "realesr-general-x4v3", (640, 480), max_input=180, long_side=96, tiny=True)
#: In order of work; the first that takes a second a frame here is measured.
HEAVY = (
    Case("heavy", "realesr-animevideov3", (320, 240)),
    Case("heavy", "realesr-animevideov3", (640, 480)),
    Case("heavy", "realesrgan-x4plus-anime-6b", (640, 480)),
    Case("heavy", "realesrgan-x4plus", (640, 480)),
)
HEAVY_SECONDS = 1.0


def linked_weights(folder: Path, upscale: str, size: tuple[int, int]) -> WeightsStore:
    """A store in `folder` with the user's checkpoints of an upscaler and `MATTE`, and random ones in place of those
    that are missing: a network takes as long with them."""
    mine = default_store(os.environ)
    names = [name for model in (upscale, MATTE) for name in card(model).weights]
    folder.mkdir()
    for name in set(names) - set(mine.missing(names)):
        found = mine.find(name).path.resolve()
        (folder / found.name).symlink_to(found)
    return write_weights(folder, Case("real", upscale, size), next(drawn(size)))


def origin(store: WeightsStore, model: str) -> str:
    """What a model of such a store computes with, in words."""
    linked = all(store.find(name).path.is_symlink() for name in card(model).weights)
    return "weights of the store" if linked else "random weights"


def write_weights(folder: Path, case: Case, picture: np.ndarray[Any, np.dtype[np.uint8]]) -> WeightsStore:
    """Writes those of the case's checkpoints that are not there, under their registered names, as unofficial files.

    Args:
        picture: [H,W,3], what the last layers are scaled by.
    """
    store = WeightsStore(folder)
    folder.mkdir(parents=True, exist_ok=True)
    x = torch.from_numpy(np.ascontiguousarray(picture[::4, ::4])).permute(2, 0, 1)[None].float() / 255
    torch.manual_seed(1)
    upscaler = SRVGGNetCompact(4, 1, 4) if case.tiny else UPSCALE[case.upscale]()
    matting = MattingNetwork("mobilenetv3")
    with torch.inference_mode(False), torch.no_grad():
        fill(upscaler)
        _calm_upscaler(upscaler.eval(), x)
        fill(matting)
        _calm_matting(matting.eval(), x)
    for name, network in ((case.upscale, upscaler), (MATTE, matting)):
        for weight in card(name).weights:
            path = folder / store.registry[weight].file
            if not path.exists():  # running pins know the matting network of the case before
                torch.save({"params": network.state_dict()}, path)
    return store


def _calm_upscaler(network: nn.Module, x: torch.Tensor) -> None:
    """Real-ESRGAN's compact networks add to the enlarged frame, the large ones make it."""
    last = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
    assert last.bias is not None
    last.bias.zero_()
    if isinstance(network, SRVGGNetCompact):
        last.weight.mul_(0.02)
        return
    y = network(x)
    last.weight.mul_(0.15 / float(y.std()))
    last.bias.copy_(0.5 - 0.15 * y.mean((0, 2, 3)) / y.std())


def _calm_matting(network: MattingNetwork, x: torch.Tensor) -> None:
    """Alpha spreads over 0..1 around the middle, the foreground is nearly the frame."""
    project, refine = network.project_mat.conv, network.refiner
    assert project.bias is not None
    project.weight[:3].mul_(0.02)
    project.bias.zero_()
    for parameter in refine.parameters():
        if parameter.shape[-2:] == (3, 3):
            parameter.fill_(1 / 9)
    slopes = [module for module in refine.modules() if isinstance(module, nn.Conv2d)][-1]
    slopes.weight.mul_(0.02)
    alpha = _decoded_alpha(network, x)
    project.weight[3].div_(alpha.std())
    project.bias[3] = 0.5 - alpha.mean() / alpha.std()


def _decoded_alpha(network: MattingNetwork, x: torch.Tensor) -> torch.Tensor:
    """Alpha before it is clamped, at the size that the network looks at."""
    found: list[torch.Tensor] = []
    hook = network.project_mat.register_forward_hook(lambda _module, _inputs, output: found.append(output[:, 3]))
    network(x)
    hook.remove()
    return found[0]


class Bare:
    """The networks of a chain in this process: loaded by their cards, called one after the other.

    Args:
        threads: torch's threads, for the whole process.
    """

    def __init__(self, steps: Sequence[Step], store: WeightsStore, device: str, threads: int) -> None:
        if device == "cpu":
            torch.set_num_threads(threads)
        dtype: Dtype = "fp16" if device == "cuda" else "fp32"
        self.steps = tuple(steps)
        self.models: list[Model] = []
        for step in steps:
            entry = card(step.model)
            weights = tuple(store.find(name).path for name in entry.weights)
            setup = Setup(weights, device=device, dtype=dtype, micro_batch=4 if device == "cuda" else 1)
            self.models.append(entry.load(setup))

    def step(self, index: int, batch: FrameBatch, carry: Carry) -> tuple[FrameBatch, Carry]:
        """One model on one batch."""
        return self.models[index](batch, carry, self.steps[index].params)

    def seconds(self, batches: Sequence[FrameBatch]) -> Mapping[str, float]:
        """Seconds by model for all batches through the chain."""
        spent = {step.model: 0.0 for step in self.steps}
        carries: list[Carry] = [{} for _ in self.steps]
        for batch in batches:
            for index, step in enumerate(self.steps):
                begun = time.perf_counter()
                batch, carries[index] = self.step(index, batch, carries[index])
                spent[step.model] += time.perf_counter() - begun
        return spent
