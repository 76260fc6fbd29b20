"""The job as users run it, timed from outside: its own ingest, pins, lanes and assembly; the display only listens.

A Ray in a process of its own stays while several jobs join it, so that their pins stay warm:

    python -m bench.job        prints the address of a new local Ray and keeps it until standard input ends
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from actors.video.encode import EncoderSettings
from bench.environment import as_users_have
from bench.processes import cpu_by_name
from bench.written import counting
from cluster.config import Config
from cluster.session import connect, use_token
from cluster.weights import WeightsStore
from jobs.backgrounds import DEFAULT_ROOT, Library, open_once
from jobs.display import Display
from jobs.inputs import Input
from jobs.ledger import output_lock
from jobs.limits import limits_of
from jobs.restage.ingest import Ingest
from jobs.restage.settings import RestageSettings
from jobs.task import VideoTask

if TYPE_CHECKING:
    from jobs.batch import Outcome
    from jobs.progress import Reporter

_ROOT = Path(__file__).resolve().parents[1]
_ADDRESS = "address "
_END_SECONDS = 30
#: In the order that a video goes through them.
_STAGES = ("planning", "waiting", "running", "assembling", "done")
#: How often the board is asked: often enough for runs of seconds, and a hundred times in longer ones, whose networks
#: must have the cores to themselves.
_POLL_SECONDS = (0.1, 1.0)
#: Going through all processes takes a tenth of a core when done as often.
_CPU_SECONDS = 2.0


@dataclass(slots=True)
class Timeline:
    """When what happened in one job on one video; seconds on the clock of `time.perf_counter`.

    Attributes:
        begun, ended: of the whole, from the first look at the input to the ledger row.
        stages: when the video was first seen in each stage of `_STAGES`.
        frames: how many were done at a time, whenever that changed.
        seconds: work by stage as the ledger has it; `wait` is the encoder's wait for the chain.
        cpu: CPU seconds by process while the lane ran.
        written: bytes written to files in the output folders.
    """

    begun: float = 0.0
    ended: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    frames: list[tuple[float, int]] = field(default_factory=list)
    seconds: Mapping[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    written: int = 0

    @property
    def count(self) -> int:
        """Frames of the video."""
        return self.frames[-1][1] if self.frames else 0

    @property
    def planning(self) -> float:
        """The decode that the plan rests on."""
        return self._since("waiting") - self._since("planning")

    @property
    def lane(self) -> float:
        """From the lane's start to its last segment."""
        return self._since("assembling") - self._since("running")

    @property
    def assembly(self) -> float:
        """Join, sound, verification; not the start of the process that does them."""
        return self.seconds["join"] + self.seconds["verify"]

    @property
    def work(self) -> float:
        """Everything but start-up."""
        return self.planning + self.lane + self.assembly

    @property
    def startup(self) -> float:
        """Connecting, starting or finding pins, starting Ray Data, the lane and the process that assembles."""
        return self.whole - self.work

    @property
    def whole(self) -> float:
        """Everything."""
        return self.ended - self.begun

    @property
    def steady_fps(self) -> float:
        """Frames a second from the first batch that was encoded to the end of the lane, its encoder flushed."""
        first, done = self.frames[0]
        return (self.count - done) / (self._since("assembling") - first)

    def _since(self, stage: str) -> float:
        """When a stage, or one after it, was first seen: short ones come and go between two looks."""
        return min(self.stages[later] for later in _STAGES[_STAGES.index(stage) :] if later in self.stages)


class Probe(Display):
    """A display that shows nothing and notes the times."""

    def __init__(self, ray_pid: int) -> None:
        super().__init__("lines")
        self.timeline = Timeline()
        self.notes: list[str] = []
        self.outcomes: list[Outcome] = []
        self._ray_pid = ray_pid
        self._before: dict[tuple[int, int], tuple[str, float]] = {}
        self._last: dict[tuple[int, int], tuple[str, float]] = {}
        self._looked = 0.0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def failed(self, name: str, error: str) -> None:
        self.notes.append(f"{name}: {error}")

    def ended(self, outcome: Outcome) -> None:
        self.timeline.ended = time.perf_counter()
        self.outcomes.append(outcome)

    @contextmanager
    def following(self, reporter: Reporter, tasks: Sequence[VideoTask]) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self._follow, args=(reporter, tasks[0].fingerprint, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._see(reporter, tasks[0].fingerprint)
            for key, (name, cpu) in self._last.items():
                spent = cpu - self._before.get(key, (name, 0.0))[1]
                self.timeline.cpu[name] = self.timeline.cpu.get(name, 0.0) + spent

    def _follow(self, reporter: Reporter, key: str, stop: threading.Event) -> None:
        least, most = _POLL_SECONDS
        begun = time.perf_counter()
        while not stop.wait(min(most, max(least, (time.perf_counter() - begun) / 100))):
            self._see(reporter, key)

    def _see(self, reporter: Reporter, key: str) -> None:
        state = reporter.snapshot().get(key)
        if state is None:
            return
        now, timeline = time.perf_counter(), self.timeline
        new = state.stage not in timeline.stages
        timeline.stages.setdefault(state.stage, now)
        if state.done and (not timeline.frames or timeline.frames[-1][1] != state.done):
            timeline.frames.append((now, state.done))
        if new and state.stage == "running":
            self._before = self._cpu()
        lately = now - self._looked < _CPU_SECONDS
        if self._before and (new or (state.stage == "running" and not lately)) and state.stage != "done":
            # A process counts up to when it was last seen: some end with the lane.
            self._last |= self._cpu()
            self._looked = now

    def _cpu(self) -> dict[tuple[int, int], tuple[str, float]]:
        return cpu_by_name(self._ray_pid) | cpu_by_name(os.getpid())


@contextmanager
def staying_ray(weights: Path) -> Iterator[int]:
    """A local Ray that jobs of this process join; yields the process that holds it.

    Args:
        weights: the weights store that pins deployed by those jobs use.
    """
    environment = {**as_users_have(), "PYTHONPATH": str(_ROOT), "TROUPE_WEIGHTS": str(weights)}
    host = subprocess.Popen(
        [sys.executable, "-m", "bench.job"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        env=environment,
        start_new_session=True,
    )
    before = {name: os.environ.get(name) for name in ("RAY_ADDRESS", "TROUPE_WEIGHTS")}
    assert host.stdin is not None and host.stdout is not None
    try:
        address = next((line for line in host.stdout if line.startswith(_ADDRESS)), "")
        if not address:
            raise RuntimeError("Ray did not start")
        os.environ |= {"RAY_ADDRESS": address.removeprefix(_ADDRESS).strip(), "TROUPE_WEIGHTS": str(weights)}
        use_token(os.environ)
        yield host.pid
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        host.stdin.close()
        try:
            host.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            host.kill()
            host.wait()


@dataclass(frozen=True, slots=True)
class Job:
    """One restaging, ready to be run any number of times.

    Attributes:
        clip: the input.
        folder: where outputs of all runs go, one folder each.
        settings: what the user would choose on the command line.
        config: pins, lanes, encoder.
        weights: the weights store.
    """

    clip: Path
    folder: Path
    settings: RestageSettings
    config: Config
    weights: Path

    def task(self, name: str) -> VideoTask:
        """The task of a run; equal tasks of different runs differ in their output folder alone."""
        output, encode = self.folder / name, self.config.troupe.encode
        ingest = Ingest(
            settings=self.settings,
            config=self.config,
            root=output / ".troupe",
            store=WeightsStore(self.weights),
            library=Library(DEFAULT_ROOT, partial(open_once, limits=limits_of(self.config))),
            encoder=EncoderSettings("x264", self.settings.crf, self.settings.x264, encode.threads, encode.gop_seconds),
        )
        item = Input(self.clip, output / "result.mp4")
        return ingest.task(item, ingest.look(item))

    def run(self, name: str, ray_pid: int, probe: Probe | None = None) -> tuple[Timeline, Path]:
        """Runs it on the Ray that RAY_ADDRESS names; returns what it took, and the result.

        Args:
            name: of this run.
            ray_pid: the process of that Ray.
            probe: what looks on, if it does more than note the times.

        Raises:
            RuntimeError: the video failed; the text says why.
        """
        from jobs.perform import perform  # imports Ray, which reads the token's settings once, when it is imported

        probe = probe or Probe(ray_pid)
        timeline = probe.timeline
        timeline.begun = time.perf_counter()
        task = self.task(name)
        folders = [task.output.parent, task.root, task.root / "ledger", task.folder]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        with output_lock(task.root), counting(folders) as written:
            perform([task], self.config, probe, allow_skew=False)
        (outcome,) = probe.outcomes
        if outcome.status != "done":
            raise RuntimeError(outcome.error)
        if written.lost:
            raise RuntimeError(f"not all files could be measured: {', '.join(written.lost)}")
        timeline.written = written.bytes
        timeline.seconds = json.loads(outcome.row["seconds"])
        return timeline, task.output


def main() -> None:
    """Holds a Ray until standard input ends."""
    import ray

    with connect():
        print(f"{_ADDRESS}{ray.get_runtime_context().gcs_address}", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
