"""The plan of a video: shots, runs and segments, from the one decode whose times are the truth."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actors.catalogue import card
from actors.video.beat import Beat, nothing
from actors.video.cuts import detect_cuts
from actors.video.scan import Scan, scan
from cluster.errors import MediaError
from cluster.files import written_whole
from jobs.task import VideoTask

#: Shots are joined into runs of at least this many segments: each run ends with its pipeline drained, which costs about
#: a second. A video without cuts is one run when a stateful model works on it.
_RUN_SEGMENTS = 4


@dataclass(frozen=True, slots=True)
class Segment:
    """Frames first <= i < last of the plan: the unit of retry and resume.

    Attributes:
        index: number in the video.
        warmup: frames before `first` that only bring the models' state up; their results are dropped.
    """

    index: int
    first: int
    last: int
    warmup: int = 0

    @property
    def place(self) -> str:
        """For errors: `segment 7 (frames 1680-1919)`."""
        return f"segment {self.index} (frames {self.first}-{self.last - 1})"


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive segments that one lane takes in order: the unit of scheduling."""

    index: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What will be done to a video.

    Attributes:
        scan: the decode it rests on.
        cuts: int64, frames that begin a shot (0 is not listed).
        runs: all of them, in order.
        approximate: segments start inside shots with warm-up frames instead of the exact state.
    """

    scan: Scan
    cuts: NDArray[np.int64]
    runs: tuple[Run, ...]
    approximate: bool

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All segments in order."""
        return tuple(segment for run in self.runs for segment in run.segments)


def plan_video(task: VideoTask, beat: Beat = nothing) -> Plan:
    """Plans a task's video, or reads the plan that an earlier run stored in its work folder.

    Args:
        task: the video.
        beat: called about once a second while it is decoded; may raise.

    Raises:
        MediaError: the input is refused, or a companion (a mask video) does not have the same times.
    """
    stored = task.folder / "scan.npz"
    found = stored_scan(stored, task.source)
    if found is None:
        task.folder.mkdir(parents=True, exist_ok=True)
        found = scan(task.source, task.limits, allow_damaged=task.allow_damaged, workdir=task.folder, beat=beat)
        for plane in task.companions:
            _check_companion(task, plane, found, beat)
        store_scan(stored, found)
    stateful = any(card(step.model).stateful for step in task.steps)
    return make_plan(found, task.segment_seconds, stateful=stateful, warmup=task.warmup_frames)


def companion_scan(task: VideoTask, plane: str, beat: Beat = nothing) -> Scan:
    """The scan of a companion video, made once and stored beside the plan."""
    path, _ = task.companions[plane]
    stored = task.folder / f"scan-{plane}.npz"
    found = stored_scan(stored, path)
    if found is None:
        found = scan(path, task.limits, allow_damaged=task.allow_damaged, workdir=task.folder, beat=beat)
        store_scan(stored, found)
    return found


def stored_scan(stored: Path, path: Path) -> Scan | None:
    """The scan of a content that was stored before, for the file that holds it now; None when it must be made."""
    if not stored.is_file():
        return None
    found = Scan.from_bytes(stored.read_bytes(), path, stored.parent)
    return found if found.source.is_file() else None


def store_scan(stored: Path, found: Scan) -> None:
    """Keeps a scan for later runs."""
    with written_whole(stored) as partial:
        partial.write_bytes(found.to_bytes())


def make_plan(found: Scan, segment_seconds: float, *, stateful: bool, warmup: int = 0) -> Plan:
    """Cuts a scanned video into runs and segments.

    Without a stateful model a run may begin anywhere; with one it begins at a cut, unless `warmup` frames are to
    bring its state up, which is approximate.
    """
    cuts = detect_cuts(found.diff, found.corr)
    n = len(found)
    starts = _seconds(found)
    if stateful and not warmup:
        bounds = _join([0, *cuts.tolist(), n], starts, _RUN_SEGMENTS * segment_seconds)
    else:
        bounds = _split(0, n, starts, _RUN_SEGMENTS * segment_seconds if not warmup else segment_seconds)
    runs: list[Run] = []
    index = 0
    at_cut = {0, *cuts.tolist()}
    for first, last in pairwise(bounds):
        segments = []
        for a, b in pairwise(_split(first, last, starts, segment_seconds)):
            warm = min(warmup, a - _shot_start(cuts, a)) if stateful and a not in at_cut and a == first else 0
            segments.append(Segment(index, a, b, warm))
            index += 1
        runs.append(Run(len(runs), tuple(segments)))
    approximate = any(segment.warmup for run in runs for segment in run.segments)
    return Plan(found, cuts, tuple(runs), approximate)


def _check_companion(task: VideoTask, plane: str, found: Scan, beat: Beat) -> None:
    other = companion_scan(task, plane, beat)
    here = [int(p) * found.info.time_base for p in found.pts]
    there = [int(p) * other.info.time_base for p in other.pts]
    if here != there:
        raise MediaError(
            other.path.name,
            f"has other times than {task.source.name} ({len(there)} frames against {len(here)})",
            remedy=f"make a {plane} with exactly the video's frames and times, or choose another --matte",
        )


def _seconds(found: Scan) -> NDArray[np.float64]:
    """Start of each frame and end of the last, in seconds since the first; float64 [n+1]."""
    ticks = np.append(found.pts, found.pts[-1] + found.last_duration) - found.pts[0]
    return np.asarray(ticks * float(found.info.time_base), dtype=np.float64)


def _join(bounds: list[int], starts: NDArray[np.float64], least: float) -> list[int]:
    """Drops bounds until every part is at least `least` seconds long (the whole, if it is shorter)."""
    kept = [bounds[0]]
    for bound in bounds[1:-1]:
        if starts[bound] - starts[kept[-1]] >= least and starts[bounds[-1]] - starts[bound] >= least:
            kept.append(bound)
    return [*kept, bounds[-1]]


def _split(first: int, last: int, starts: NDArray[np.float64], most: float) -> list[int]:
    """Bounds of parts of equal duration, each at most `most` seconds long but for the frame at its end."""
    seconds = starts[last] - starts[first]
    # A hair of tolerance: rounded timestamps must not turn 8.0 s into two segments.
    parts = max(1, int(np.ceil(seconds / most - 0.01)))
    # By time, not by count: a variable rate may put most frames into a few seconds. Half a tick of any time base early,
    # so that rounding does not push a frame that starts at the bound across it.
    at = starts[first] + seconds * np.arange(1, parts) / parts - 5e-6
    inner = first + np.searchsorted(starts[first:last], at)
    return [first, *sorted({int(i) for i in inner if first < i < last}), last]


def _shot_start(cuts: NDArray[np.int64], frame: int) -> int:
    earlier = cuts[cuts <= frame]
    return int(earlier[-1]) if len(earlier) else 0
