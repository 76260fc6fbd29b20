"""How much of the object store batches fill on their way through two pins.

    python -m bench.store                            on a Ray of Troupe's, and on one of `ray start` with its settings
    python -m bench.store --on bare --batches 50     on one without them: Ray then frees about once a second

Batches go as fast as they can through the very chain that a lane drives, with models that copy them. The store is
asked every few milliseconds, as `ray memory --stats-only` asks it; what it spilled to disk was needed too, and is told.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np

from actors.frames import FrameBatch
from actors.model import Step
from bench.environment import as_users_have
from bench.fakes import FIRST, SECOND, faking
from bench.restage import say
from cluster.config import BatchSettings, Config, PinSettings, TroupeSettings
from cluster.session import FREE_OBJECTS, connect, use_token
from jobs.plan import Segment
from jobs.strikes import RunStrikes

_ROOT = Path(__file__).resolve().parents[1]
_MB = 10**6
#: Where batches go: a local Ray of Troupe, a cluster of `ray start` with its settings, one without.
PLACES = ("local", "started", "bare")
GOAL_MB = 400.0
_SAMPLE_SECONDS = 0.002
_START_SECONDS = 60
_END_SECONDS = 30
#: Width and height of a frame; the batch has as many as fit.
_SIZE = 640, 360
#: Fakes need no card, and have no measured share of one.
_PINS = (
    PinSettings(name="bench-first", models=(FIRST,), num_gpus=0),
    PinSettings(name="bench-second", models=(SECOND,), num_gpus=0),
)


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured in one place.

    Attributes:
        batches, batch_mb: how many went through, and how large they are.
        batches_per_s: how fast.
        peak_mb, peak_objects: most that the store held at a time.
        spilled_mb: what it wrote to disk.
        samples: how often it was asked.
    """

    place: str
    batches: int
    batch_mb: float
    batches_per_s: float
    peak_mb: float
    peak_objects: int
    spilled_mb: float
    samples: int


class StoreSampler:
    """Asks this node's object store again and again while it is entered. Needs a connected Ray."""

    def __init__(self) -> None:
        import ray

        here = ray.get_runtime_context().get_node_id()
        self._node = next(node for node in ray.nodes() if node["NodeID"] == here)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.peak_bytes = self.peak_objects = self.spilled_bytes = self.samples = 0

    def __enter__(self) -> StoreSampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        from ray._private.internal_api import node_stats  # what `ray memory --stats-only` reads

        while not self._stop.wait(_SAMPLE_SECONDS):
            stats = node_stats(self._node["NodeManagerAddress"], self._node["NodeManagerPort"], False).store_stats
            # Beyond its size the store puts objects into files.
            used = int(stats.object_store_bytes_used) + int(stats.object_store_bytes_fallback)
            self.peak_bytes = max(self.peak_bytes, used)
            self.peak_objects = max(self.peak_objects, int(stats.num_local_objects))
            self.spilled_bytes = int(stats.spilled_bytes_total)
            self.samples += 1


def measure(place: str, batches: int, mb: float) -> Row:
    """Sends batches through two pins of the Ray at RAY_ADDRESS, or of one that is started for it."""
    with connect(num_cpus=2), faking():
        from actors.pin import build
        from cluster.pins import describe, ensure_pins

        ensure_pins(_PINS, build)
        for pin, model in zip(_PINS, (FIRST, SECOND), strict=True):
            describe(pin.name, [asdict(Step(model))], 60)
        pixels = 3 * _SIZE[0] * _SIZE[1]
        frames = max(1, round(mb * _MB / pixels))
        _through(2, frames)
        with StoreSampler() as store:
            begun = time.perf_counter()
            _through(batches, frames)
            seconds = time.perf_counter() - begun
        return Row(
            place,
            batches,
            frames * pixels / _MB,
            batches / seconds,
            store.peak_bytes / _MB,
            store.peak_objects,
            store.spilled_bytes / _MB,
            store.samples,
        )


def _through(batches: int, frames: int) -> None:
    """So many batches through the chain, as a lane with the default window drives it."""
    from jobs.chain import Chain, Piece

    config = Config(pins=_PINS, troupe=TroupeSettings(batch=BatchSettings()))
    chain = Chain((Step(FIRST), Step(SECOND)), config, _refuse, cast(RunStrikes, _Blameless()))
    segment = Segment(0, 0, batches * frames)
    rgb = np.random.default_rng(1).integers(0, 256, (frames, _SIZE[1], _SIZE[0], 3), np.uint8)

    def pieces() -> Iterator[Piece]:
        for index in range(batches):
            first = index * frames
            batch = FrameBatch(rgb.copy(), np.arange(first, first + frames), np.zeros(frames, np.bool_))
            yield Piece(segment, batch, first, index == batches - 1, 0.0)

    done = sum(1 for _ in chain.stream(pieces(), [{}, {}]))
    assert done == batches


class _Blameless:
    """In place of a run's strikes, which are kept beside its segments: nothing dies here."""

    def key(self, segment: Segment) -> str:
        return str(segment.index)

    def suspect(self, _: str) -> bool:
        return False


def _refuse(reason: str) -> None:
    raise RuntimeError(f"a call was lost: {reason}")


@contextmanager
def started_ray(settings: dict[str, str]) -> Iterator[str]:
    """A cluster of one node by `ray start`, on ports and in a folder of its own; yields its address.

    Args:
        settings: of its environment.
    """
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, tempfile.TemporaryFile("w+") as output:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0"]
        command += ["--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"]
        ray = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**as_users_have(), **settings},
            start_new_session=True,
        )
        try:
            yield _address(ray, Path(folder))
        finally:
            # Forwarded to all processes of this cluster; `ray stop` would end those of others too.
            ray.terminate()
            try:
                ray.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                ray.kill()
                ray.wait()


def _address(ray: subprocess.Popen[Any], folder: Path) -> str:
    written = folder / "ray_current_cluster"
    deadline = time.monotonic() + _START_SECONDS
    while not written.is_file() or not (address := written.read_text().strip()):
        if ray.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("`ray start` did not start")
        time.sleep(0.1)
    return address


def measure_apart(place: str, batches: int, mb: float) -> Row:
    """The same in a process of its own, on the Ray of that place."""
    if place == "local":
        return _child({}, place, batches, mb)
    settings = {f"RAY_{name}": str(value) for name, value in FREE_OBJECTS.items()} if place == "started" else {}
    with started_ray(settings) as address:
        return _child({"RAY_ADDRESS": address}, place, batches, mb)


def _child(environment: dict[str, str], place: str, batches: int, mb: float) -> Row:
    command = [sys.executable, "-m", "bench.store", "--here", place, "--batches", str(batches), "--mb", str(mb)]
    environment = {**as_users_have(), "PYTHONPATH": str(_ROOT), **environment}
    use_token(environment)
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=_ROOT, check=True, env=environment)
    return Row(**json.loads(ran.stdout.splitlines()[-1]))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with a message on nonsense."""
    parser = argparse.ArgumentParser(prog="python -m bench.store", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--on", nargs="+", choices=PLACES, default=("local", "started"), help="local and started")
    parser.add_argument("--batches", type=int, default=200, help="how many (200)")
    parser.add_argument("--mb", type=float, default=10, help="size of a batch (10)")
    parser.add_argument("--json", action="store_true", help="JSON instead of the table")
    parser.add_argument("--here", choices=PLACES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.batches < 1 or args.mb <= 0:
        parser.error("--batches and --mb must be positive")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Measures in every place, each in a process of its own, and prints the rows."""
    args = arguments(argv)
    if args.here:
        print(json.dumps(asdict(measure(args.here, args.batches, args.mb))))
        return
    rows = []
    for place in args.on:
        say(f"{place}: {args.batches} batches")
        rows.append(asdict(measure_apart(place, args.batches, args.mb)) | {"goal_mb": GOAL_MB})
    if args.json:
        print(json.dumps({"cores": len(os.sched_getaffinity(0)), "rows": rows}, indent=2))
        return
    for row in rows:
        print(
            f"{row['place']:<8} {row['batches']} batches of {row['batch_mb']:.1f} MB, "
            f"{row['batches_per_s']:.1f} a second: peak {row['peak_mb']:.0f} MB (goal {GOAL_MB:.0f}), "
            f"{row['peak_objects']} objects, {row['spilled_mb']:.0f} MB spilled"
        )


if __name__ == "__main__":
    main()
