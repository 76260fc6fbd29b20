"""How far a running task is: told by its lane's thread, read by the loop that tells the store."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.course import Pace
from serve.edge.problems import with_fields, without_paths

#: Longest list of notes that a task carries, and longest note.
_NOTES, _NOTE = 20, 300


class TaskProgress:
    """The stages of a task, one of which is at work.

    Args:
        stages: all of them, in order.
        folder: of the task, which no text names to whoever looks.
    """

    def __init__(self, stages: Sequence[str], folder: Path) -> None:
        self._folder = str(folder)
        self._lock = threading.Lock()
        self._parts = dict.fromkeys(stages, 0.0)
        self._stage = ""
        self._done = self._total = 0
        self._paused = ""
        self._pace = Pace()
        self._notes: dict[str, None] = {}

    def begin(self, stage: str) -> None:
        """This stage is at work now, those before it are through."""
        with self._lock:
            for name in self._parts:
                if name == stage:
                    break
                self._parts[name] = 1.0
            self._stage = stage

    def part(self, fraction: float) -> None:
        """How much of the stage at work is through, 0 to 1."""
        with self._lock:
            self._parts[self._stage] = round(min(1.0, max(0.0, fraction)), 4)

    def planned(self, total: int, done: int) -> None:
        """The video has so many frames, of which an earlier attempt did some."""
        with self._lock:
            self._total, self._done = total, done

    def frames(self, more: int) -> None:
        """So many more are encoded."""
        with self._lock:
            self._done += more
            if self._total:
                self._parts[self._stage] = round(min(1.0, self._done / self._total), 4)

    def paused(self, why: str | None) -> None:
        """Why no new frames are taken; None when it goes on."""
        with self._lock:
            self._paused = self._shown(why or "")

    def note(self, text: str) -> None:
        """Something that whoever looks should know; each text once."""
        with self._lock:
            if len(self._notes) < _NOTES:
                self._notes[self._shown(text)[:_NOTE]] = None

    def _shown(self, text: str) -> str:
        return with_fields(without_paths(text.replace(self._folder, "the server's disk")))

    def document(self) -> dict[str, Any]:
        """What `GET /v1/tasks/{id}` shows under `progress`."""
        with self._lock:
            done = min(self._done, self._total)
            rate = self._pace.rate(done)
            return {
                "stage": self._stage,
                "frames": done,
                "total": self._total,
                "fps": round(rate, 2),
                "eta_s": round((self._total - done) / rate, 1) if rate > 0 else None,
                "stages": dict(self._parts),
                "paused": self._paused,
                "notes": list(self._notes),
            }
