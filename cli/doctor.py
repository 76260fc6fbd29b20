"""`troupe doctor`: looks at everything that a job needs, says what is wrong and what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import av
import typer
from av.filter import Filter
from rich.console import Console
from rich.text import Text

from actors.catalogue import weights_of_models
from actors.video.encode import probe_nvenc
from cli.manners import print_json
from cluster.config import load_config
from cluster.errors import Exit, TroupeError
from cluster.health import (
    Check,
    check_disk,
    check_gpu,
    check_memory,
    check_open_files,
    check_packages,
    check_ray,
    check_sensors,
    check_shared_memory,
    failed,
    memory_bytes,
)
from cluster.nvml import Card, visible_card
from cluster.weights import State, WeightsStore, cache_folder, default_store

_PACKAGES = (
    "ray",
    "torch",
    "av",
    "decord",
    "opencv-python-headless",
    "onnxruntime",
    "onnx",
    "safetensors",
    "pyarrow",
    "pydantic",
)
_ENCODERS = ("libx264", "aac")
_DECODERS = ("h264", "hevc", "vp9", "libdav1d", "mpeg4", "prores", "aac", "mp3", "opus")
_FILTERS = ("buffer", "buffersink", "format", "scale", "overlay", "bwdif")

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where results will be written: its disk is looked at.")
    ] = Path("output"),
    config: Annotated[Path | None, typer.Option("--config", help="By default ray-config.yaml here.")] = None,
    ray: Annotated[bool, typer.Option("--ray/--no-ray", help="Start a local Ray, or join RAY_ADDRESS.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Check Ray, GPU, codecs, NVENC, weights, disk, shared memory and object freeing; exit code 1 if a check fails."""
    checks = []
    console = Console()
    for check in _checks(output, config, ray):
        checks.append(check)
        if not as_json:
            _print(console, check)
    worst = Exit.SOME_FAILED if any(check.status == "fail" for check in checks) else Exit.DONE
    if as_json:
        print_json({"ok": worst is Exit.DONE, "checks": [asdict(check) for check in checks]})
    raise typer.Exit(worst)


def _checks(output: Path, config: Path | None, ray: bool) -> Iterator[Check]:
    """The quick ones first; each is printed as it is done."""
    memory = memory_bytes()
    yield check_packages(_PACKAGES)
    yield check_config(config)
    yield check_codecs()
    yield check_nvenc()
    yield check_weights(default_store(os.environ))
    yield check_disk("output disk", output)
    yield check_disk("cache disk", cache_folder(os.environ), warn_below=10**9)
    yield check_memory(memory)
    yield check_shared_memory(memory)
    yield check_open_files()
    yield check_gpu(os.environ.get("CUDA_VISIBLE_DEVICES"))
    yield check_sensors(Card(visible_card(os.environ)))
    if ray:
        yield from check_ray()


def check_config(path: Path | None) -> Check:
    """Whether the configuration can be read and makes sense."""
    try:
        found = load_config(path)
    except TroupeError as error:
        return failed("configuration", error)
    return Check("configuration", "ok", str(found.path or "built in (no ray-config.yaml here)"))


def check_codecs() -> Check:
    """Whether PyAV's FFmpeg has the codecs and filters that jobs use."""
    absent = [
        *(f"encoder {name}" for name in _ENCODERS if not _has_codec(name, "w")),
        *(f"decoder {name}" for name in _DECODERS if not _has_codec(name, "r")),
        *(f"filter {name}" for name in _FILTERS if not _has_filter(name)),
    ]
    ffmpeg = f"PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}"
    if absent:
        return Check(
            "codecs", "fail", f"{ffmpeg} lacks {', '.join(absent)}", "pip install --force-reinstall 'av>=18,<19'"
        )
    return Check("codecs", "ok", f"{ffmpeg}: x264, aac, overlay, scale, bwdif")


def check_nvenc() -> Check:
    """Whether a frame encodes with NVENC on this machine."""
    reason = probe_nvenc()
    return Check("NVENC", "ok", "encodes" if reason is None else f"not here, x264 encodes ({reason})")


def check_weights(store: WeightsStore) -> Check:
    """Which checkpoints of the models are in the store; none of them is needed for the preset `draft`."""
    statuses = [store.status(name) for name in weights_of_models()]
    names = {state: [status.entry.name for status in statuses if status.state is state] for state in State}
    detail = "; ".join(f"{state}: {', '.join(names[state])}" for state in State if names[state])
    if names[State.DAMAGED]:
        return Check(
            "weights",
            "fail",
            f"in {store.folder}: {detail}",
            f"troupe weights fetch --force {' '.join(names[State.DAMAGED])}",
        )
    if len(names[State.MISSING]) == len(statuses):
        return Check(
            "weights", "warn", f"none in {store.folder}; only the preset draft works", "troupe weights fetch --all"
        )
    return Check("weights", "ok", f"in {store.folder}: {detail}")


def _has_codec(name: str, mode: Literal["r", "w"]) -> bool:
    try:
        av.codec.Codec(name, mode)
    except ValueError:
        return False
    return True


def _has_filter(name: str) -> bool:
    try:
        Filter(name)
    except ValueError:
        return False
    return True


def _print(console: Console, check: Check) -> None:
    line = Text.assemble((f"{check.status:<5}", _COLOURS[check.status]), f"{check.name}: {check.detail}")
    console.print(line, soft_wrap=True)
    if check.remedy:
        console.print(Text(f"     → {check.remedy}"), soft_wrap=True)
