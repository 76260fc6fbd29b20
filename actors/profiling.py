"""What a model takes and how quick it is, measured in a process of its own, whose peak is nobody else's.

python -m actors.profiling '{"model": …}'     one JSON line on standard output (`Order` says what goes in)
"""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.catalogue import card
from actors.cpu import CPU_ENVIRONMENT
from actors.frames import FrameBatch
from actors.model import Card, Dtype, Setup
from cluster.cards import local_cards
from cluster.errors import ClusterError
from cluster.profiles import Figure

_MIB = 2**20
_ROOT = Path(__file__).resolve().parents[1]
#: Calls in the clock at most; the median of more says nothing new.
_MOST_CALLS = 50


@dataclass(frozen=True, slots=True)
class Order:
    """One measurement.

    Attributes:
        model: catalogue name.
        weights: its checkpoints.
        device: `cpu` or `cuda`.
        dtype, micro_batch, tile: as in `Setup`.
        width, height: of the frames.
        seconds: how long calls are timed; at least one call is.
    """

    model: str
    weights: tuple[str, ...]
    device: str
    dtype: Dtype
    micro_batch: int
    tile: int
    width: int
    height: int
    seconds: float = 3.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out: the figure, and what the process took of the card beside torch's own memory (None on a CPU)."""

    figure: Figure
    context_mib: int | None


def measure(order: Order, timeout_s: float) -> Measured:
    """Runs one measurement in a child process.

    Raises:
        ClusterError: it ran out of memory, took too long, or died; the text says which.
    """
    where = f"{order.model} at {order.width}x{order.height}, micro-batch {order.micro_batch}, tile {order.tile}"
    environment = {**os.environ, **(CPU_ENVIRONMENT if order.device == "cpu" else {})}
    command = [sys.executable, "-m", "actors.profiling", json.dumps(asdict(order))]
    try:
        done = subprocess.run(
            command, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(
            where, f"did not end within {timeout_s:.0f} s", remedy="measure a smaller --frame"
        ) from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        short = "out of memory" in done.stderr.lower()
        reason = "does not fit on this card" if short else f"failed: {lines[-1][:300]}"
        raise ClusterError(where, reason, remedy="give a smaller --frame, --micro-batch 1 or a --tile" if short else "")
    answer = json.loads(done.stdout.splitlines()[-1])
    return Measured(Figure.model_validate(answer["figure"]), answer["context_mib"])


def clip(size: tuple[int, int], frames: int) -> FrameBatch:
    """A batch of one shot: noise, which no network finds easier than pictures."""
    width, height = size
    rgb = np.random.default_rng(1).integers(0, 256, (frames, height, width, 3), np.uint8)
    return FrameBatch(rgb, np.arange(frames), np.zeros(frames, np.bool_))


def job_params(entry: Card, size: tuple[int, int]) -> dict[str, Any]:
    """Parameters as a job gives them: upscalers make twice the size, the others have defaults."""
    return {"size": [2 * size[0], 2 * size[1]]} if entry.family == "upscale" else {}


def measure_here(order: Order) -> Measured:
    """The measurement itself; leaves a CUDA context behind, so it is for a process that ends."""
    import torch

    cuda = order.device == "cuda"
    before = local_cards(os.environ) if cuda else ()
    if not cuda:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    entry = card(order.model)
    setup = Setup(
        tuple(map(Path, order.weights)), order.device, order.dtype, order.micro_batch if cuda else 1, order.tile
    )
    size = order.width, order.height
    batch, params = clip(size, order.micro_batch), job_params(entry, size)
    if cuda:
        torch.zeros(1, device="cuda")
    floor = 0 if cuda else _resident_bytes()
    begun = time.perf_counter()
    model = entry.load(setup)
    if cuda:
        torch.cuda.synchronize()
    load_s = time.perf_counter() - begun
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    resident = torch.cuda.memory_allocated() if cuda else _resident_bytes() - floor

    def call() -> float:
        start = time.perf_counter()
        model(batch, {}, params)  # the result is on the CPU when it returns: the device has finished
        return time.perf_counter() - start

    samples = _timed(call, order.seconds)
    # Reserved, not allocated: the allocator's gaps are taken from the card like the rest.
    peak = torch.cuda.max_memory_reserved() if cuda else max(_peak_bytes() - floor, resident)
    context = None
    if cuda and before:
        free, total = torch.cuda.mem_get_info()
        context = max(0, (total - free - torch.cuda.memory_reserved()) // _MIB - before[0].used_mib)
    figure = Figure(
        model=order.model,
        dtype=order.dtype,
        width=order.width,
        height=order.height,
        micro_batch=order.micro_batch,
        tile=order.tile,
        load_s=round(load_s, 2),
        resident_mib=round(resident / _MIB, 1),
        peak_mib=round(peak / _MIB, 1),
        ms=round(1000 * samples / order.micro_batch, 2),
    )
    return Measured(figure, context)


def _timed(call: Any, seconds: float) -> float:
    """Median of calls after one that warms up, which alone counts when it took longer than all may."""
    first: float = call()
    if first > seconds:
        return first
    samples: list[float] = []
    deadline = time.perf_counter() + seconds
    while not samples or (time.perf_counter() < deadline and len(samples) < _MOST_CALLS):
        samples.append(call())
    return float(np.median(samples))


def _resident_bytes() -> int:
    """This process's memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _peak_bytes() -> int:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def orders(
    settings: Mapping[str, Any], weights: Sequence[Path], sizes: Sequence[tuple[int, int]], micro_batches: Sequence[int]
) -> list[Order]:
    """One order for each size and micro-batch; `settings` are the rest of an `Order`."""
    paths = tuple(map(str, weights))
    return [
        Order(weights=paths, width=width, height=height, micro_batch=micro, **settings)
        for width, height in sizes
        for micro in micro_batches
    ]


def _main() -> None:
    found = json.loads(sys.argv[1])
    measured = measure_here(Order(**{**found, "weights": tuple(found["weights"])}))
    print(json.dumps({"figure": measured.figure.model_dump(), "context_mib": measured.context_mib}))


if __name__ == "__main__":
    _main()
