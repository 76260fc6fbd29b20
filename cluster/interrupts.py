"""Ctrl-C while libraries are imported.

Compiled modules that are being imported swallow a KeyboardInterrupt and go on half set up: the job then runs to its
end, or hangs. So it is not raised there.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Lets Ctrl-C end the process without a word: for the time before anything was started."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def held_back() -> Iterator[None]:
    """Raises KeyboardInterrupt for a Ctrl-C inside the block at its end. For the main thread."""
    pressed = []

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - what `signal` passes
        pressed.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
