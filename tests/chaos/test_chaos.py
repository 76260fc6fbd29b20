"""Processes die at random while a batch runs, again and again: every file is that of an unharmed run, nothing twice."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from actors.model import Step
from bench.processes import Process, tree
from cluster.files import PARTIAL
from cluster.pins import describe
from jobs.assemble import assemble
from jobs.plan import plan_video
from tests.chaos.driver import CONFIG, PINS
from tests.conftest import SoakCount
from tests.jobs.command import Command, wait_until
from tests.jobs.inprocess import do_segments, task_of
from tests.media import Sound, write_clip
from tests.models import with_test_models

VIDEOS = 6
SEGMENTS = 8
#: What dies, in this proportion.
VICTIMS = ("pin", "lane", "controller", "driver", "pin", "lane")
#: Services of Ray Data that the first job of a cluster starts for all that come after it.
SERVICES = ("ray::ActorLocationTracker", "ray::_AutoscalingCoordinatorActor", "ray::_StatsActor")
#: Half of the drivers die this early: before they have joined, or while lanes start.
STARTING_SECONDS = 6.0

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(3600), pytest.mark.usefixtures("pins")]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of half a second for each segment; each frame has another number."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(VIDEOS):
        write_clip(
            folder / f"{i}.mp4", frames=6 * SEGMENTS, rate=12, width=64, height=48, sounds=(Sound(),), first=100 * i
        )
    return folder


@pytest.fixture(scope="module")
def unharmed(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process without Ray makes of them, its models in the lane."""
    output = tmp_path_factory.mktemp("unharmed")
    files = {}
    with with_test_models():
        for clip in sorted(clips.iterdir()):
            task = replace(task_of(clip, output, CONFIG), steps=(Step("trail"), Step("trail")))
            plan = plan_video(task)
            assert len(plan.segments) == SEGMENTS
            do_segments(task, plan, CONFIG)
            assemble(task, plan)
            files[clip.name] = task.output.read_bytes()
    return files


class Batch:
    """A batch whose driver is started again whenever it was killed, and all that its journals ever said."""

    def __init__(self, clips: Path, output: Path, environment: dict[str, str]) -> None:
        self.output = output
        self._arguments = (clips, output)
        self._environment = environment
        self._drivers: list[Command] = []
        self._journals: dict[Path, bytes] = {}
        self._gone: set[Path] = set()
        self.start()

    def start(self) -> None:
        """Starts the driver, the first or the next."""
        self.started = time.monotonic()
        self._drivers.append(
            Command(*self._arguments, environment=self._environment, program=("-m", "tests.chaos.driver"))
        )

    @property
    def driver(self) -> Command:
        """The one that runs now, or ran last."""
        return self._drivers[-1]

    @property
    def ended(self) -> bool:
        """Whether the driver has ended by itself."""
        return self.driver.process.poll() is not None

    def look(self) -> int:
        """Reads the journals, which must only grow until they are removed for good; segments ever recorded."""
        found = {}
        for path in self.output.glob(".troupe/*/run-*.jsonl"):
            try:
                found[path] = path.read_bytes()
            except FileNotFoundError:
                continue  # assembled and removed while we looked
        for path, content in found.items():
            assert path not in self._gone, f"{path}: was assembled, and is done again"
            assert content.startswith(self._journals.get(path, b"")), f"{path}: lost what it said"
            indices = _indices(content)
            assert len(indices) == len(set(indices)), f"{path}: a segment is recorded twice: {indices}"
        self._gone |= self._journals.keys() - found.keys()
        self._journals |= found
        return sum(len(_indices(content)) for content in self._journals.values())

    def at_work(self) -> set[tuple[str, int]]:
        """Segments that may be executed at this moment: in every video that was begun, the next and the one after.

        A video of which nothing is encoded yet is not seen.
        """
        self.look()
        begun = {path.parent.name: _indices(content) for path, content in self._journals.items()}
        for partial in self.output.glob(".troupe/*/.*.mp4.*"):
            begun.setdefault(partial.parent.name, [])
        following = {video: len(indices) for video, indices in begun.items()}
        return {
            (video, index) for video, first in following.items() for index in (first, first + 1) if index < SEGMENTS
        }

    def living(self) -> list[str]:
        """What still runs of any of its drivers."""
        found = [line for driver in self._drivers for line in driver.living()]
        return [line for line in found if not line.startswith(SERVICES)]


def _indices(journal: bytes) -> list[int]:
    """Segments that a journal says are done; a kill may have torn lines."""
    found = []
    for line in journal.splitlines(keepends=True):
        try:
            found.append(int(json.loads(line)["index"]))
        except ValueError:
            continue
    return found


def _processes(name: str) -> list[Process]:
    """Processes of this session's Ray whose names begin so."""
    return [process for process in tree(os.getpid()) if process.name.startswith(name)]


class Killer:
    """Kills at moments and among processes that its seed decides, as far as the course of the batch lets it."""

    def __init__(self, seed: int, total: int) -> None:
        self._dice = random.Random(seed)
        #: Who is still to die, the next one last.
        self._victims: list[str] = []
        while len(self._victims) < total:
            self._victims += self._dice.sample(VICTIMS, len(VICTIMS))
        self._victims = self._victims[:total][::-1]
        self.killed: list[str] = []

    @property
    def done(self) -> bool:
        """Whether all are dead."""
        return not self._victims

    def harm(self, batch: Batch) -> None:
        """Kills one after the other until all are dead or the batch has ended."""
        # At work when a pin died: three such deaths are reason to give a segment up, so each has one at most.
        suspects: set[tuple[str, int]] = set()
        while self._victims and self._wait(batch):
            at_work = batch.at_work()
            pin_may_die = at_work and not at_work & suspects
            able = [victim for victim in self._victims if victim != "pin" or pin_may_die]
            if not able or not self._kill(able[-1], batch):
                continue  # or it is dead already, and its replacement not there yet
            if able[-1] == "pin":
                suspects |= at_work
            # The last of its kind in the list is the next of it.
            del self._victims[len(self._victims) - 1 - self._victims[::-1].index(able[-1])]
            self.killed.append(f"{able[-1]} at {batch.look()} segments")

    def _kill(self, victim: str, batch: Batch) -> bool:
        if victim == "driver":
            batch.driver.kill()
            batch.start()
            return True
        name = {
            "pin": f"ray::ServeReplica:{self._dice.choice(PINS).name}",
            "lane": "ray::MapWorker",
            "controller": "ray::ServeController",
        }[victim]
        found = _processes(name)
        if found:
            os.kill(self._dice.choice(found).pid, signal.SIGKILL)
        return bool(found)

    def _wait(self, batch: Batch) -> bool:
        """Until the moment for the next has come; False when the batch ended before."""
        early = self._victims[-1] == "driver" and self._dice.random() < 0.5
        seconds, segments = self._dice.uniform(0, STARTING_SECONDS), batch.look() + self._dice.randint(1, 4)

        def come() -> bool:
            if batch.ended:
                return True
            return time.monotonic() - batch.started > seconds if early else batch.look() >= segments

        wait_until(come, f"the moment to kill a {self._victims[-1]} after {self.killed}")
        time.sleep(self._dice.uniform(0, 0.2))
        return not batch.ended


def test_batch_that_loses_processes_at_random_is_that_of_an_unharmed_run(
    clips: Path, unharmed: dict[str, bytes], joining: dict[str, str], soak_count: SoakCount, tmp_path: Path
) -> None:
    killer = Killer(seed=7, total=soak_count(6, 54))
    for number in count():
        if killer.done:
            break
        batch = Batch(clips, tmp_path / f"harmed-{number}", joining)
        killer.harm(batch)
        wait_until(lambda b=batch: b.look() >= 0 and b.ended, f"the batch to end after {killer.killed}")
        ended = batch.driver.finish()
        assert ended.code == 0, f"after {killer.killed}:\n{ended.output}\n{ended.errors}"
        harmed = {path.name: path.read_bytes() for path in batch.output.glob("*.mp4")}
        assert harmed.keys() == unharmed.keys()
        assert harmed == unharmed, f"other bytes after {killer.killed}"
        rows = [row for path in batch.output.glob(".troupe/ledger/*") for row in pq.read_table(path).to_pylist()]
        assert sorted(Path(row["output"]).name for row in rows) == sorted(unharmed), "a row a video, once"
        assert {row["status"] for row in rows} == {"done"}
        assert not list(batch.output.rglob(f"*{PARTIAL}")), "half a file was left"
        wait_until(lambda b=batch: not b.living(), f"processes of the job to end: {batch.living()}", 30)
        # Those of the cluster live on, one of each.
        for pin in PINS:
            wait_until(lambda p=pin: len(_processes(f"ray::ServeReplica:{p.name}")) == 1, f"one {pin.name}")
            describe(pin.name, (), 60)
