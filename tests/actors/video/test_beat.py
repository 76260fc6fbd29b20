"""Long work says that it goes on about every second, and an exception raised then stops it and leaves nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.video import beat
from actors.video.join import join
from actors.video.limits import Limits
from actors.video.process import Child
from actors.video.scan import scan
from actors.video.sound import extract_sound
from actors.video.verify import verify
from cluster.files import sha256_of
from tests.actors.video.test_child import is_running
from tests.media import Sound, write_clip
from tests.segments import write_segments

LIMITS = Limits(stall_seconds=120)


class StoppedError(Exception):
    """What a caller raises to stop the work."""


class Counter:
    """Counts beats, and raises at the one asked for."""

    def __init__(self, last: int = 0) -> None:
        self.count, self._last = 0, last

    def __call__(self) -> None:
        self.count += 1
        if self.count == self._last:
            raise StoppedError


@pytest.fixture
def unpaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every beat is passed on."""
    monkeypatch.setattr(beat, "BEAT_SECONDS", 0.0)


def test_quick_loops_beat_no_more_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    counter = Counter()
    turn = beat.paced(counter)
    for _ in range(1000):
        turn()
        now[0] += 0.01
    assert counter.count == 20
    assert beat.paced(beat.nothing) is beat.nothing


class Silent(Child):
    """One that does nothing once it has been asked."""

    pids: list[int] = []  # noqa: RUF012

    def send(self, message: Any) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        self.pids.append(self.pid)
        super().send(message)


def scanned(clip: Path, work: Path, listen: Callable[[], None]) -> object:
    return scan(clip, LIMITS, workdir=work, beat=listen)


def heard(clip: Path, work: Path, listen: Callable[[], None]) -> object:
    return extract_sound(clip, work / "sound.mp4", LIMITS, beat=listen)


@pytest.mark.parametrize("work_on", [scanned, heard])
def test_a_silent_child_is_stopped_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work_on: Callable[..., object]
) -> None:
    clip = write_clip(tmp_path / "a.ts", frames=10, sounds=(Sound(),)).path
    work = tmp_path / "work"
    work.mkdir()
    for module in ("scan", "sound"):
        monkeypatch.setattr(f"actors.video.{module}.Child", Silent)
    counter, begun = Counter(last=4), time.monotonic()
    with pytest.raises(StoppedError):
        work_on(clip, work, counter)
    assert counter.count == 4  # under 120 seconds of silence
    assert time.monotonic() - begun < 30  # 2 on an idle machine
    assert not is_running(Silent.pids[-1])
    assert list(work.iterdir()) == []


@pytest.mark.usefixtures("unpaced")
@pytest.mark.parametrize("work_on", [scanned, heard])
def test_work_in_a_child_is_stopped_by_a_beat(tmp_path: Path, work_on: Callable[..., object]) -> None:
    clip = write_clip(tmp_path / "a.ts", frames=10, sounds=(Sound(),)).path
    work = tmp_path / "work"
    work.mkdir()
    whole = Counter()
    assert work_on(clip, work, whole) is not None
    assert whole.count >= 1
    for left in work.iterdir():
        left.unlink()
    with pytest.raises(StoppedError):
        work_on(clip, work, Counter(last=1))
    assert list(work.iterdir()) == []


@pytest.mark.usefixtures("unpaced")
def test_joining_and_verifying_can_be_stopped_anywhere(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mkv", frames=20, width=160, height=96, sounds=(Sound(), Sound("libopus"))).path
    sound = extract_sound(source, tmp_path / "sound.mp4", LIMITS)
    assert sound is not None
    pts, base = np.arange(20), Fraction(1, 25)
    segments = write_segments(tmp_path, [12, 8], pts, base)
    final = tmp_path / "final.mp4"
    before = sorted(path.name for path in tmp_path.iterdir())

    def joined(listen: Callable[[], None]) -> object:
        return join(segments, final, pts=pts, time_base=base, last_duration=1, sound=sound, beat=listen)

    def verified(listen: Callable[[], None]) -> object:
        return verify(final, pts=pts, time_base=base, last_duration=1, sounds=sound.tracks, beat=listen)

    whole = Counter()
    joined(whole)
    assert whole.count > 2 * 20  # each packet of the pictures twice, those of the sound, the hash
    digest = sha256_of(final)
    final.unlink()
    for last in (1, 15, 20, 30, 60, whole.count):
        with pytest.raises(StoppedError):
            joined(Counter(last))
        assert sorted(path.name for path in tmp_path.iterdir()) == before
    joined(Counter())
    assert sha256_of(final) == digest
    whole = Counter()
    verified(whole)
    assert whole.count > 20 + 8
    for last in (1, 5, 15, whole.count):
        with pytest.raises(StoppedError):
            verified(Counter(last))


def test_hashing_can_be_stopped(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(5 * 2**20 + 1))
    counter = Counter()
    assert sha256_of(path, counter) == sha256_of(path)
    assert counter.count == 7
    with pytest.raises(StoppedError):
        sha256_of(path, Counter(3))
