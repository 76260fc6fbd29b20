"""Signs of life to whoever waits for long work, by which it can also be stopped."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Called about once a second or more often by long work. What it raises stops that work, which cleans up and passes
#: the exception on.
Beat = Callable[[], None]

#: Longest wait between two beats, where the work can be interrupted at all.
BEAT_SECONDS = 0.5


def nothing() -> None:
    """For callers that neither listen nor stop."""


def paced(beat: Beat) -> Beat:
    """The same for loops that turn quickly: calls `beat` when `BEAT_SECONDS` have passed since it last did."""
    due = 0.0

    def turn() -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            beat()
            due = time.monotonic() + BEAT_SECONDS

    return nothing if beat is nothing else turn
