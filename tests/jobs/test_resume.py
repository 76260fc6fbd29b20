"""Killed at any moment and started again: nothing that was finished is redone, and the file is the same to the byte."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from cluster.config import load_config
from cluster.session import Session
from tests.conftest import SoakCount
from tests.jobs.command import Command, wait_until, write_config
from tests.jobs.inprocess import restage
from tests.jobs.performing import jobs_on
from tests.media import Sound, write_clip

SEGMENTS = 12
RATE = 16

pytestmark = pytest.mark.ray


#: Slow on purpose: a kill has to find segments at work.
CHOSEN = {"preset": "draft", "matte": "none", "target": "2", "x264": "slower"}


def arguments(folder: Path, output: Path) -> tuple[object, ...]:
    choices = [word for name, value in CHOSEN.items() for word in (f"--{name}", value)]
    return folder / "clip.mp4", *choices, "--config", folder / "config.yaml", "-o", output


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A folder with a clip and a configuration, and what one process without Ray makes of it, undisturbed."""
    folder = tmp_path_factory.mktemp("resume")
    clip = write_clip(
        folder / "clip.mp4", frames=SEGMENTS * RATE // 2, rate=RATE, width=256, height=192, sounds=(Sound(),)
    )
    path = write_config(folder / "config.yaml", batch={"segment_seconds": 0.5, "lanes": 2}, encode={"threads": 1})
    task, _ = restage(clip.path, folder / "unkilled", load_config(path), **CHOSEN)
    return folder, task.output.read_bytes()


def journal(output: Path) -> dict[int, str]:
    """Hashes of the segments that are recorded as finished, by index."""
    lines = [line for file in output.glob(".troupe/*/run-*.jsonl") for line in file.read_text().splitlines(True)]
    entries = [json.loads(line) for line in lines if line.endswith("\n")]
    return {entry["index"]: entry["sha256"] for entry in entries}


def inodes(output: Path, indices: set[int]) -> dict[int, int]:
    """Inodes of those segment files that are there: a segment that is redone gets another one."""
    found = {}
    for path in output.glob(".troupe/*/[0-9]*.mp4"):
        if int(path.stem) in indices:
            try:
                found[int(path.stem)] = path.stat().st_ino
            except FileNotFoundError:
                continue  # assembled and removed while we looked
    return found


@contextmanager
def inodes_seen(output: Path, indices: set[int]) -> Iterator[set[tuple[int, int]]]:
    """All inodes that the files of these segments have while the block runs."""
    seen: set[tuple[int, int]] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.05):  # leaves the cores to the run
            seen.update(inodes(output, indices).items())

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            yield seen
        finally:
            stop.set()
        looking.result()


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_rerun_after_kill_redoes_no_segment_and_produces_identical_file(
    unkilled: tuple[Path, bytes], soak_count: SoakCount, local_ray: Session, joining: dict[str, str]
) -> None:
    folder, expected = unkilled
    count = soak_count(3, 20)
    dice = random.Random(5)
    # From planning (-1) over every number of finished segments to assembly, evenly, and a moment later.
    for trial in range(count):
        moment = -1 + int((trial + dice.random()) / count * (SEGMENTS + 2))
        delay = dice.random() * 0.4
        output = folder / f"killed-{trial}"
        # On a Ray of its own, which dies with it, and on a cluster, whose lanes may live on for a moment.
        killed = Command(*arguments(folder, output), environment=joining if trial % 3 else {})
        wait_until(
            lambda o=output, m=moment: len(journal(o)) >= m if m >= 0 else any(o.glob(".troupe/*/")),
            f"{moment} segments",
        )
        time.sleep(delay)
        killed.kill()
        kept = journal(output)
        before = inodes(output, set(kept))
        with jobs_on(local_ray), inodes_seen(output, set(kept)) as seen:
            again = CliRunner().invoke(app, ["restage", *map(str, arguments(folder, output)), "--lanes", "1"])
        assert again.exit_code == 0, again.output
        assert seen <= set(before.items()), f"killed after {moment} segments: finished ones were done again"
        assert (output / "clip.mp4").read_bytes() == expected, f"killed after {moment} segments and {delay:.2f} s"
        # Ray's own two agents notice late that their parent was killed.
        wait_until(lambda k=killed: all("Agent" in line for line in k.living()), "the killed job's processes to end")
