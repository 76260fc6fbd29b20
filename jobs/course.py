"""A job's course: what its board adds up to, at what pace, and how long it will take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cluster.metrics import JobReading

# The display is up before Ray is imported, which the board needs.
if TYPE_CHECKING:
    from jobs.progress import VideoProgress

#: What a video's stage begins with while its lanes wait.
PAUSED = "paused: "

_LEAST_SECONDS = 0.5


class Pace:
    """Frames a second since the first ones came: neither start-up nor what an earlier run did counts."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None

    def rate(self, done: int) -> float:
        """The pace, with so many frames done by now; 0 before there is one."""
        now = time.monotonic()
        if self._start is None or done < self._start[1]:
            self._start = (now, done) if done else None
            return 0.0
        return (done - self._start[1]) / max(now - self._start[0], _LEAST_SECONDS)


def frames_of(board: Mapping[str, VideoProgress]) -> tuple[int, int]:
    """Frames done and frames planned, of all videos."""
    return sum(min(s.done, s.frames) for s in board.values()), sum(s.frames for s in board.values())


def eta(board: Mapping[str, VideoProgress], videos: int, rate: float) -> float | None:
    """Seconds left, videos that are not planned yet taken as average ones; None before the first frame."""
    planned = [state for state in board.values() if state.frames]
    if not planned or rate <= 0:
        return None
    done, total = frames_of(board)
    return round((total / len(planned) * videos - done) / rate, 1)


def paused_videos(board: Mapping[str, VideoProgress]) -> dict[str, str]:
    """Why lanes wait, by video."""
    return {key: s.stage.removeprefix(PAUSED) for key, s in board.items() if s.stage.startswith(PAUSED)}


def reading(
    board: Mapping[str, VideoProgress], videos: int, pace: Pace, disk_free: int | None, stages: Mapping[str, int]
) -> JobReading:
    """What the job's metrics are told.

    Args:
        board: the videos.
        videos: how many there are; those not on the board yet are waiting.
        pace: the job's, kept from reading to reading.
        disk_free: bytes on the results' disk.
        stages: how many videos were in each stage at the reading before; a stage that nobody is in any more is 0.
    """
    sums: Counter[str] = Counter()
    for state in board.values():
        sums.update(state.counts)
    done, _ = frames_of(board)
    rate = pace.rate(done)
    now = Counter(state.stage.partition(":")[0] for state in board.values())
    now["waiting"] += videos - len(board)
    return JobReading(
        frames=sums["frames"],
        segments={state: sums[f"segments_{state}"] for state in ("done", "failed", "quarantined")},
        videos={**dict.fromkeys(stages, 0), **now},
        paused=len(paused_videos(board)),
        fps=rate,
        eta_s=eta(board, videos, rate),
        disk_free=disk_free,
    )
