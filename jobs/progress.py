"""Progress: lanes tell one zero-CPU actor, the driver asks it; its loss fails nothing."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.exceptions import GetTimeoutError, RayError

log = logging.getLogger(__name__)

_ASK_SECONDS = 2.0
_TELL_SECONDS = 0.5

#: What lanes count beside the frames of a video's progress: those encoded in this job, and what became of segments.
Count = Literal["frames", "segments_done", "segments_failed", "segments_quarantined"]


@dataclass(slots=True)
class VideoProgress:
    """One video's state: frames planned (0 before), frames done in this run, what it is doing, notes, counts."""

    frames: int = 0
    done: int = 0
    stage: str = "waiting"
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


class Board:
    """The actor's body: a dictionary of videos."""

    def __init__(self) -> None:
        self._videos: dict[str, VideoProgress] = {}

    def put(
        self,
        video: str,
        *,
        planned: tuple[int, int] | None = None,
        done: int = 0,
        stage: str = "",
        note: str = "",
        counts: Mapping[Count, int] | None = None,
    ) -> None:
        """Adds to a video: `done` and `counts` count up, `stage` replaces, `note` is appended once; `planned`, its
        frames and how many of them are done, replaces both: a video whose lane was lost is planned again."""
        state = self._videos.setdefault(video, VideoProgress())
        if planned is not None:
            state.frames, state.done = planned
        state.done += done
        state.stage = stage or state.stage
        if note and note not in state.notes:
            state.notes.append(note)
        for name, by in (counts or {}).items():
            state.counts[name] = state.counts.get(name, 0) + by

    def snapshot(self) -> dict[str, VideoProgress]:
        """All videos."""
        return self._videos


class Reporter:
    """A lane's and the driver's end of the board; every failure to reach it is ignored after one warning."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._lost = False

    @classmethod
    def start(cls) -> Reporter:
        """A reporter with a new board in the connected Ray."""
        return cls(ray.remote(num_cpus=0, max_restarts=0)(Board).remote())

    def put(self, video: str, **change: Any) -> None:
        """Sends a change without waiting for it."""
        with self._forgiving():
            self._board.put.remote(video, **change)

    def snapshot(self) -> dict[str, VideoProgress]:
        """The board, or nothing when it is lost or slow."""
        found: dict[str, VideoProgress] = {}
        with self._forgiving():
            found |= ray.get(self._board.snapshot.remote(), timeout=_ASK_SECONDS)
        return found

    @contextlib.contextmanager
    def frames_of(self, video: str) -> Iterator[Callable[[int], None]]:
        """What counts a video's frames, told a few times a second however small the batches are.

        Ray keeps a record of every call, in the caller's memory and its own: a long video would make both grow.
        """
        count, told = 0, 0.0  # the first ones at once

        def send() -> None:
            nonlocal count, told
            if count:
                self.put(video, done=count, counts={"frames": count})
            count, told = 0, time.monotonic()

        def add(frames: int) -> None:
            nonlocal count
            count += frames
            if time.monotonic() - told >= _TELL_SECONDS:
                send()

        try:
            yield add
        finally:
            send()

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except GetTimeoutError:
            return  # a busy machine; the next question may be answered
        except RayError as error:
            if not self._lost:
                log.warning("progress is no longer shown (%s); the job goes on", type(error).__name__)
            self._lost = True
