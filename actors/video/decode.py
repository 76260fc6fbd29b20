"""Frames of a scanned input as RGB, in order, checked against the scan's times."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from actors.video import shared
from actors.video.limits import Limits
from actors.video.process import Child
from actors.video.scan import Scan
from actors.video.wire import Message
from cluster.errors import MediaError

_RING_BYTES = 128 * 2**20  # large frames get fewer slots than asked for, but never under
_FEWEST_SLOTS = 4


class Decoder:
    """Decodes ranges of one scanned input in a child process.

    A range that continues the one before costs no seek, and the child decodes a few frames ahead. Use it as a context
    manager or `close` it: the child is then gone within a bounded time.

    Args:
        scan: what the file has to yield.
        limits: `stall_seconds` bounds every wait, `decode_threads` the codec's threads.
        slots: frames of shared memory between the two processes; fewer where they would be over 128 MiB.

    Raises:
        MediaError: (all methods) the file does not yield exactly the scan's times, or the decoder died or stalled.
    """

    def __init__(self, scan: Scan, limits: Limits, *, slots: int = 12) -> None:
        self._scan = scan
        info = scan.info
        self._shape = (info.height, info.width, 3)
        frame_bytes = info.height * info.width * 3
        slots = max(_FEWEST_SLOTS, min(slots, _RING_BYTES // frame_bytes))
        size = slots * frame_bytes
        ring = shared.create("frames")
        try:
            self._pictures = np.frombuffer(shared.sized(ring, size), np.uint8).reshape(slots, *self._shape)
            self._child = Child(scan.path.name, limits, memory=ring)
        finally:
            os.close(ring)
        # Slots go back to the child half a ring at a time: one by one, the two processes would wake each other for
        # every frame.
        self._emptied: list[int] = []
        self._return_at = slots // 2
        self._run = 0
        self._next = -1  # index of the frame that the child sends next, -1 before the first
        self._child.send(
            {
                "op": "decode",
                "path": str(scan.source),
                "limits": limits.to_json(),
                "info": info.to_json(),
                "damaged": scan.damaged > 0,
                "slots": slots,
            }
        )

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid

    def frames(self, first: int, last: int) -> Iterator[NDArray[np.uint8]]:
        """Frames first <= i < last of the scan, uint8 [H,W,3] each, the caller's to keep."""
        for index in range(first, last):
            picture = np.empty(self._shape, np.uint8)
            self._take(index, picture)
            yield picture

    def read_into(self, out: NDArray[np.uint8], first: int, last: int) -> None:
        """The same, written into `out`, uint8 [last-first,H,W,3]."""
        if out.shape != (last - first, *self._shape):
            raise ValueError(f"out is {out.shape}, not {(last - first, *self._shape)}")
        for index in range(first, last):
            self._take(index, out[index - first])

    def close(self) -> None:
        """End the child process. May be called again."""
        self._child.close()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, index: int, out: NDArray[np.uint8]) -> None:
        if not 0 <= index < len(self._scan):
            raise IndexError(f"frame {index} of {len(self._scan)}")
        if index != self._next:
            self._run += 1
            self._next = index
            self._child.send({"op": "play", "run": self._run, "index": index, "pts": int(self._scan.pts[index])})
        message = self._receive()
        if message["op"] == "end":
            raise self._differs(f"it ended before frame {index}")
        pts = int(self._scan.pts[index])
        if message["index"] != index or (not self._scan.info.index_times and message["pts"] != pts):
            raise self._differs(f"frame {index} came at {message['pts']}, not at {pts}")
        out[...] = self._pictures[message["slot"]]
        self._empty(message["slot"])
        self._next = index + 1

    def _receive(self) -> Message:
        """The next message of this run; frames of an abandoned one go back to the child unseen."""
        while True:
            message, _ = self._child.receive()
            if message["op"] == "skipping":
                continue
            if message["run"] == self._run:
                return message
            if message["op"] == "frame":
                self._empty(message["slot"])

    def _empty(self, slot: int) -> None:
        self._emptied.append(slot)
        if len(self._emptied) >= self._return_at:
            self._child.send({"op": "free", "slots": self._emptied})
            self._emptied = []

    def _differs(self, how: str) -> MediaError:
        self.close()
        return MediaError(
            self._scan.path.name,
            f"does not yield the same frames again: {how}",
            remedy="it may have been changed while it was worked on: start again",
        )
