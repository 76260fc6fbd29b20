"""Bytes from the network into one file, written by a thread of its own; memory stays the same however slow the disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from cluster.errors import TroupeError
from cluster.files import partial_path, publish

T = TypeVar("T")

BUFFER_BYTES = 1 << 20
"""What a spool gathers before it is written."""

_SYNC_BYTES = 32 << 20  # so that the page cache never holds more of a file than this, and the disk's pace is felt
_DISK_SECONDS = 120.0  # for one block or one sync: a disk under 0.3 MB/s is broken
_DISCARD_SECONDS = 5.0


class SpoolError(TroupeError):
    """The disk would not take the bytes: it is full, hangs, or refuses."""


class TooLargeError(TroupeError):
    """More bytes came than are allowed."""


@dataclass(frozen=True, slots=True)
class Spooled:
    """A file that arrived whole: where it is, its bytes, and their SHA-256 in hex."""

    path: Path
    bytes: int
    sha256: str


class Spool:
    """A file that is filled from the network: it appears under its name when `finish` returns, or not at all.

    `write` returns when less than `BUFFER_BYTES` wait in memory, so a caller that takes the next piece from its peer
    afterwards holds at most that and one piece, and its peer feels the disk. Used as `async with`; leaving it without
    `finish` removes what was written. The descriptor belongs to one thread: it is never closed under a write that a
    cancelled caller left behind.

    Args:
        target: a name that the server chose; the folder exists.
        max_bytes: size past which `TooLargeError` is raised.
        write: how the thread writes; for tests of slow and broken disks.
    """

    def __init__(self, target: Path, max_bytes: int, write: Callable[[int, memoryview], int] = os.write) -> None:
        self._target, self._max_bytes, self._write = target, max_bytes, write
        self._partial = partial_path(target)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._buffer = bytearray()
        self._hash = hashlib.sha256()
        self._file = -1
        self._synced = 0
        self._finished = self._published = False
        self.bytes = 0

    async def __aenter__(self) -> Self:
        try:
            await self._in_thread(self._open)
        except BaseException:
            await self._abandon()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._finished:
            self._thread.shutdown(wait=False)
        else:
            await self._abandon()

    async def _abandon(self) -> None:
        """Removes the file: whether or not anybody waits for it, after what the thread is at now."""
        done = self._thread.submit(self._discard)
        self._thread.shutdown(wait=False)
        with suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_SECONDS):
                await asyncio.shield(asyncio.wrap_future(done))

    async def write(self, piece: bytes | memoryview) -> None:
        """Take a piece.

        Raises:
            TooLargeError: with it the file is over its limit.
            SpoolError: the disk would not take it.
        """
        self.bytes += len(piece)
        if self.bytes > self._max_bytes:
            raise TooLargeError(self._target.name, f"is over the size limit of {self._max_bytes:,} bytes")
        rest = memoryview(piece)
        while len(rest):
            taken = rest[: BUFFER_BYTES - len(self._buffer)]
            self._buffer += taken
            rest = rest[len(taken) :]
            if len(self._buffer) >= BUFFER_BYTES:
                await self._flush()

    async def finish(self) -> Spooled:
        """Everything on the disk, synced, under its name.

        Raises:
            SpoolError: the disk would not take it.
        """
        await self._flush()
        await self._in_thread(self._publish)
        self._finished = True
        return Spooled(self._target, self.bytes, self._hash.hexdigest())

    async def _flush(self) -> None:
        block, self._buffer = self._buffer, bytearray()
        await self._in_thread(self._write_block, block)

    async def _in_thread(self, job: Callable[..., T], *arguments: object) -> T:
        future = asyncio.wrap_future(self._thread.submit(job, *arguments))
        try:
            async with asyncio.timeout(_DISK_SECONDS):  # `wait_for` of Python 3.11 can lose a cancellation
                return await asyncio.shield(future)
        except TimeoutError as error:
            raise SpoolError(self._target.name, f"the disk did not take it within {_DISK_SECONDS:g} s") from error
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise SpoolError(self._target.name, f"cannot be stored: {reason}") from error

    # --- in the thread

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(self._partial, flags, 0o600)

    def _write_block(self, block: bytearray) -> None:
        self._hash.update(block)
        rest = memoryview(block)
        while len(rest):
            written = self._write(self._file, rest)
            rest = rest[written:]
            self._synced += written
        if self._synced >= _SYNC_BYTES:
            os.fdatasync(self._file)
            self._synced = 0

    def _publish(self) -> None:
        os.close(self._file)
        self._file = -1
        publish(self._partial, self._target)
        self._published = True

    def _discard(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._partial.unlink(missing_ok=True)
        if self._published:  # after the caller had gone
            self._target.unlink(missing_ok=True)
