"""A lane that waits: it takes no new frames while the governor holds, says so, and goes on by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cluster.governor import Governor

#: Files are not deleted faster than a person reads.
_POLL_SECONDS = 2.0


class Hold:
    """Where a lane's decoder asks before every batch.

    What is in the lane already goes on through its pins and is encoded: a window of batches, far less than the limit
    leaves room for.

    Args:
        governor: says whether to wait.
        on_pause: told why, at every look; None once it goes on.
        poll_seconds: how often it looks; every two seconds when not said.
    """

    def __init__(
        self, governor: Governor, on_pause: Callable[[str | None], None], poll_seconds: float | None = None
    ) -> None:
        self._governor = governor
        self._on_pause = on_pause
        self._poll_seconds = _POLL_SECONDS if poll_seconds is None else poll_seconds
        self._ended = threading.Event()

    def wait(self) -> None:
        """Returns when work may go on, or `end` was called."""
        paused = False
        while not self._ended.is_set() and (reason := self._governor.check()) is not None:
            self._on_pause(reason)
            paused = True
            self._ended.wait(self._poll_seconds)
        if paused and not self._ended.is_set():
            self._on_pause(None)

    def end(self) -> None:
        """Lets a thread that waits, or would, go on: its lane has failed or ends."""
        self._ended.set()
