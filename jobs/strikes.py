"""Strikes: which segments pins died of, written down beside the segments; after three a segment is quarantined.

A strike is charged to the one segment whose call a pin was executing when it died (`cluster.window`). It is on the disk
before the next try, so a driver that is killed and started again does not begin to count anew.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from cluster.errors import JobError
from jobs.ledger import Strike, WorkFolder
from jobs.plan import Run, Segment
from jobs.progress import Count
from jobs.task import VideoTask

STRIKES = 3


class QuarantinedError(JobError):
    """A segment had its last strike: it is not tried again unless somebody asks for it (`troupe retry`)."""


class RunStrikes:
    """The strikes of a run's segments, as its lane counts them.

    Args:
        task: the video.
        run: the run.
        work: the video's folder.
        on_count: told of segments that are quarantined.
    """

    def __init__(self, task: VideoTask, run: Run, work: WorkFolder, on_count: Callable[[Count, int], None]) -> None:
        self._task, self._run, self._work = task, run, work
        self._on_count = on_count
        self._segments = {self.key(segment): segment for segment in run.segments}
        self._counts: dict[int, int] = {}
        for strike in work.strikes(run):
            self._counts[strike.segment] = self._counts.get(strike.segment, 0) + 1

    def key(self, segment: Segment) -> str:
        """What calls for this segment name as their work."""
        return f"{self._task.fingerprint}/{segment.index}"

    def is_quarantined(self, segment: Segment) -> bool:
        """Whether it is not to be tried."""
        return self._counts.get(segment.index, 0) >= STRIKES

    def suspect(self, key: str) -> bool:
        """Whether this segment goes alone."""
        return self._counts.get(self._segments[key].index, 0) > 0

    def charge(self, key: str, reason: str) -> None:
        """Counts a strike.

        Raises:
            QuarantinedError: it was the last.
        """
        segment = self._segments[key]
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._work.strike(self._run, Strike(segment.index, segment.first, segment.last, reason, now))
        self._counts[segment.index] = self._counts.get(segment.index, 0) + 1
        if self.is_quarantined(segment):
            self._on_count("segments_quarantined", 1)
            raise self.quarantined(segment)

    def quarantined(self, segment: Segment) -> QuarantinedError:
        """The error that says so."""
        last = [strike.reason for strike in self._work.strikes(self._run) if strike.segment == segment.index][-1]
        return QuarantinedError(
            self._task.source.name,
            f"quarantined after {STRIKES} strikes: {last}",
            place=segment.place,
            remedy=f"`troupe retry {self._task.root.parent}` tries it again",
        )
