"""Ctrl-C where a KeyboardInterrupt gets lost.

Compiled modules swallow it, while they are imported and when they call back into Python, and go on half set up: the
job then runs to its end, or hangs (seen in imports and in Ray's start). So it is not raised there.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from cluster.processes import end_descendants

EXIT_INTERRUPTED = 130


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Lets Ctrl-C end the process without a word: for the time before anything was started."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def ending_everything(farewell: Callable[[], None]) -> Iterator[None]:
    """Makes Ctrl-C inside the block end this process and all that it started, at once. For the main thread.

    No `finally` runs then, here or there: only for work that a SIGKILL does not harm either.

    Args:
        farewell: what is said before.
    """

    def end(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - what `signal` passes
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            farewell()
        finally:
            end_descendants()
            os._exit(EXIT_INTERRUPTED)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
