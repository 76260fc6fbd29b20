"""A lane waits for room on the disk, says so, and goes on; nothing that ends a lane waits for it."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import governor
from cluster.callboard import Callboard
from cluster.config import Config, GovernorSettings, TroupeSettings
from cluster.governor import disk_governor
from cluster.interrupts import EXIT_INTERRUPTED
from jobs import hold as holding
from jobs.course import Pace, frames_of, reading
from jobs.display import Display
from jobs.hold import Hold
from jobs.lane import run_segments
from jobs.perform import _held
from jobs.plan import plan_video
from jobs.progress import Board, Count
from tests.jobs.command import Command, write_config
from tests.jobs.inprocess import config_of, task_of
from tests.media import write_clip

SETTINGS = GovernorSettings(min_free_gib=5, free_by_gib=1)


def low_for(monkeypatch: pytest.MonkeyPatch, *free: float) -> None:
    """Lets the disk have so many GiB free, look by look; the last for good."""
    readings = iter(free)
    last = free[-1]
    monkeypatch.setattr(governor, "free_gib", lambda _: next(readings, last))
    monkeypatch.setattr(holding, "_POLL_SECONDS", 0)


def limited(**batch: int) -> Config:
    """A configuration whose lanes wait for room."""
    config = config_of(**batch)
    return config.model_copy(update={"troupe": TroupeSettings(batch=config.troupe.batch, governor=SETTINGS)})


def test_waits_while_the_limit_holds_and_tells_every_look() -> None:
    free = iter([3.14, 4.0, 6.0])
    told: list[str | None] = []
    Hold(disk_governor(SETTINGS, Path("/out"), lambda: next(free)), told.append, 0).wait()
    assert told == ["3.1 GiB free on /out, under 5", "4.0 GiB free on /out, under 5", None]


def test_says_nothing_where_there_is_room() -> None:
    told: list[str | None] = []
    Hold(disk_governor(SETTINGS, Path("/out"), lambda: 9.0), told.append).wait()
    assert told == []


def test_lane_that_ends_does_not_wait_for_room() -> None:
    waits = threading.Event()
    # It would look again in an hour.
    hold = Hold(disk_governor(SETTINGS, Path("/out"), lambda: 0.0), lambda _: waits.set(), 3600)
    thread = threading.Thread(target=hold.wait)
    thread.start()
    assert waits.wait(30)
    hold.end()
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "a.mp4", frames=24, rate=12, width=64, height=48).path


def test_lane_waits_for_room_and_then_does_every_frame(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    low_for(monkeypatch, 9, 2, 2, 9)
    config = limited(batch_frames=4)
    task = task_of(clip, tmp_path / "out", config)
    plan = plan_video(task)
    frames: list[int] = []
    pauses: list[str | None] = []
    counts: list[tuple[Count, int]] = []
    for run in plan.runs:
        run_segments(
            task,
            plan,
            run,
            config,
            on_frames=frames.append,
            on_note=lambda _: None,
            on_count=lambda count, by: counts.append((count, by)),
            on_pause=pauses.append,
        )
    assert sum(frames) == len(plan.scan)
    assert pauses == [f"2.0 GiB free on {tmp_path / 'out'}, under 5"] * 2 + [None]
    assert counts == [("segments_done", 1)] * 2


def test_lane_that_fails_ends_though_its_decoder_waits_for_room(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    low_for(monkeypatch, 9, 9, 0)
    monkeypatch.setattr(holding, "_POLL_SECONDS", 3600)
    config = limited(batch_frames=4)
    task = task_of(clip, tmp_path / "out", config)
    plan = plan_video(task)
    waits = threading.Event()

    def fail(_: int) -> None:
        assert waits.wait(60)
        raise ValueError("the encoder's disk is gone")

    with pytest.raises(ValueError, match="disk is gone"):
        run_segments(
            task, plan, plan.runs[0], config, on_frames=fail, on_note=lambda _: None, on_pause=lambda _: waits.set()
        )
    assert "decode" not in {thread.name for thread in threading.enumerate()}


def events(text: str) -> Iterator[str]:
    for line in text.splitlines():
        event = json.loads(line)
        if event["event"] == "note":
            yield event["text"]


def test_pauses_of_lanes_and_pins_are_told_when_they_begin_and_end(capsys: pytest.CaptureFixture[str]) -> None:
    board, display = Board(), Display("json")
    pins: dict[str, str] = {}
    display.paused_pins = lambda: pins
    for stage, hot in (
        ("running", ""),
        ("paused: 3.1 GiB free on /out, under 5", ""),
        ("paused: 3.0 GiB free on /out, under 5", "GPU 0 at 84 °C, over 83"),
        ("running", "GPU 0 at 80 °C, goes on at 78"),
        ("running", ""),
    ):
        board.put("x", planned=(10, 0), stage=stage)
        pins = {"upscale": hot} if hot else {}
        display._tell_pauses(board.snapshot(), {"x": "dance.mp4"})
    assert list(events(capsys.readouterr().out)) == [
        "dance.mp4: paused: 3.1 GiB free on /out, under 5",
        "pin upscale: paused: GPU 0 at 84 °C, over 83",
        "dance.mp4: goes on",
        "pin upscale: goes on",
    ]


def test_pins_of_the_job_that_hold_their_batch_calls_are_told() -> None:
    class Board(Callboard):
        def __init__(self) -> None: ...

        def states(self) -> dict[str, dict[str, str]]:  # type: ignore[override]
            hot = {"a": "GPU 0 at 84 °C, over 83", "b": "", "c": "GPU 1 at 90 °C, over 83"}
            return {name: {"pin": name, "held": held} for name, held in hot.items()}

    assert _held(Board(), {"a", "b"}) == {"a": "GPU 0 at 84 °C, over 83"}


def test_reading_of_a_job_sums_up_its_board() -> None:
    board, pace, stages = Board(), Pace(), dict[str, int]()
    board.put("a", planned=(100, 0), done=40, stage="running", counts={"frames": 40, "segments_done": 2})
    board.put("b", planned=(50, 40), done=10, stage="done", counts={"frames": 10, "segments_done": 1})
    board.put("c", planned=(50, 0), stage="paused: 3.1 GiB free on /out, under 5")
    now = reading(board.snapshot(), 5, pace, 7, stages)
    assert (now.frames, now.paused, now.disk_free) == (50, 1, 7)
    assert now.segments == {"done": 3, "failed": 0, "quarantined": 0}
    assert now.videos == {"running": 1, "done": 1, "paused": 1, "waiting": 2}
    # A video whose lane was lost is planned again.
    board.put("c", planned=(50, 8), stage="running")
    assert frames_of(board.snapshot()) == (98, 200)
    assert reading(board.snapshot(), 5, pace, 7, now.videos).videos["paused"] == 0


def test_job_that_waits_for_room_says_so_and_ends_at_once_on_ctrl_c(
    clip: Path, tmp_path: Path, joining: dict[str, str]
) -> None:
    config = write_config(tmp_path / "ray-config.yaml", governor={"min_free_gib": 1e9})
    options = ("--config", config, "--preset", "draft", "--matte", "none", "--target", "1", "--lanes", "1", "--json")
    command = Command(clip, "-o", tmp_path / "out", *options, environment=joining)
    assert command.process.stdout is not None
    told = iter(command.process.stdout.readline, "")
    paused = next(json.loads(line) for line in told if "paused: " in line)
    assert re.fullmatch(r"a\.mp4: paused: [\d.]+ GiB free on .*, under 1e\+09", paused["text"])
    begun = time.monotonic()
    command.process.send_signal(signal.SIGINT)
    assert command.finish().code == EXIT_INTERRUPTED
    assert time.monotonic() - begun < 20
    assert not list((tmp_path / "out").glob("*.mp4"))
