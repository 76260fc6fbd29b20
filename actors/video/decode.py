"""Frames of a scanned input as RGB, in order, checked against the scan's times."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from actors.video.limits import Limits
from actors.video.scan import Scan


class Decoder:
    """Decodes ranges of one scanned input in a child process.

    A range that continues the one before costs no seek, and the child decodes a few frames ahead. Use it
    as a context manager or `close` it: the child is then gone within a bounded time.

    Raises:
        MediaError: (all methods) the file does not yield exactly the scan's times, or the decoder died or stalled.
    """

    def __init__(self, scan: Scan, limits: Limits, *, slots: int = 6) -> None: ...

    def frames(self, first: int, last: int) -> Iterator[NDArray[np.uint8]]:
        """Frames first <= i < last of the scan, uint8 [H,W,3] each, the caller's to keep."""
        raise NotImplementedError

    def read_into(self, out: NDArray[np.uint8], first: int, last: int) -> None:
        """The same, written into `out`, uint8 [last-first,H,W,3]."""
        raise NotImplementedError

    def close(self) -> None:
        """End the child process."""

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
