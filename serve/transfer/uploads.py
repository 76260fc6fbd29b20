"""Bodies of requests to files, as they arrive: bounded in number, size, time and memory.

Inside this process an upload holds at most one piece as the ASGI server gives it (64 KiB from uvicorn), what the
parser made of it, and a spool's `BUFFER_BYTES` twice (one filling, one being written): under 3 MiB each, whatever
the size of the body and the speed of the disk. That is a bound on the whole only where the server in front has
backpressure, as uvicorn has; Ray Serve's proxy and its replicas read a body ahead without one.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from starlette.requests import Request

from serve.edge.admission import Places
from serve.edge.auth import UploadQuota
from serve.edge.negotiation import media_type
from serve.edge.problems import Problem
from serve.transfer.multipart import Data, End, MultipartBody, MultipartError, Part
from serve.transfer.pace import Pace, Patience, TooSlowError
from serve.transfer.spool import Spool, Spooled

_OVERHEAD = 1 << 18  # of a multipart body beside its files: boundaries, headers, fields
_BUSY_SECONDS = 5.0
_NO_FILES = ("application/json", "application/x-www-form-urlencoded")


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What one upload may be, and how many at once.

    Attributes:
        max_bytes: size of one file.
        at_once: uploads being received; more are refused.
        unannounced_bytes: body without Content-Length.
        files: files in one multipart body.
        fields: fields in one multipart body.
        field_bytes: all fields of one body together.
        free_bytes: what stays free on the disk.
        patience: how slow a client may be.
    """

    max_bytes: int = 2 << 30
    at_once: int = 4
    unannounced_bytes: int = 64 << 20
    files: int = 1
    fields: int = 32
    field_bytes: int = 1 << 16
    free_bytes: int = 1 << 30
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """A file that arrived whole.

    Attributes:
        path: a name that the server chose.
        bytes: its size.
        sha256: hex digest of its content.
        field: name of the form's field, empty for a raw body.
        name: what the client calls it, for display only.
    """

    path: Path
    bytes: int
    sha256: str
    field: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Upload:
    """What one request brought: files in their order, and the form's other fields."""

    files: tuple[UploadedFile, ...]
    fields: dict[str, str]


class Uploads:
    """Receives bodies, from one event loop.

    Args:
        limits: see there.
        write: how files are written; for tests of slow disks.
        shared: see `Places`.
    """

    def __init__(
        self, limits: UploadLimits, write: Callable[[int, memoryview], int] = os.write, *, shared: bool = False
    ) -> None:
        self.limits, self._write = limits, write
        self._places = Places(
            limits.at_once, "too_many_uploads", "uploads are being received", shared=shared, seconds=_BUSY_SECONDS
        )

    async def receive(
        self, request: Request, folder: Path, quota: UploadQuota | None = None, owner: str = ""
    ) -> Upload:
        """The body of `request`, multipart/form-data or a file as it is, as files in `folder`.

        After any failure, also a cancelled request, no file of it is left.

        Args:
            folder: exists, and has no file whose name begins with `input-`.
            quota: where the bytes count.
            owner: who sends it.

        Raises:
            Problem: 400 not multipart as it should be, 408 too slow, 411 no length, 413 too large, 415 not a file,
                422 an empty file, 429 too many at once or over quota, 507 no room.
            TooLargeError: a file is over the limit (413 as a problem).
            SpoolError: the disk would not take it (507 as a problem).
            ClientDisconnect: the client went away.
        """
        kind = media_type(request)
        if kind in _NO_FILES:
            raise Problem(415, "not_a_file", f"{kind} is no file: send multipart/form-data, or the file as the body")
        announced = self._announced(request)
        if quota is not None:
            quota.check(announced or 0)
        if (announced or 0) + self.limits.free_bytes > shutil.disk_usage(folder).free:
            raise Problem(507, "disk_full", "there is no room for this file just now")
        with self._places.taken(owner):
            pieces = self._pieces(request, announced, quota)
            if kind != "multipart/form-data":
                return await self._raw(pieces, folder)
            return await self._multipart(pieces, request.headers["content-type"], folder)

    def _announced(self, request: Request) -> int | None:
        """Content-Length, refused before a byte of the body is taken where it says too much."""
        text = request.headers.get("content-length")
        if text is None:
            return None
        if not (text.isascii() and text.isdigit()):
            raise Problem(400, "bad_request", "Content-Length is not a number")
        if len(text) > 18 or int(text) > self.limits.max_bytes + _OVERHEAD:
            raise self._too_large()
        return int(text)

    def _too_large(self) -> Problem:
        return Problem(413, "too_large", f"the body is over the limit of {self.limits.max_bytes:,} bytes")

    def check_place(self, request: Request, owner: str) -> None:
        """Refuses a body of files before anything is done for it while so many are received that it would be refused.

        Raises:
            Problem: 429.
        """
        if media_type(request) not in _NO_FILES:
            self._places.check(owner)

    async def _pieces(self, request: Request, announced: int | None, quota: UploadQuota | None) -> AsyncIterator[bytes]:
        pace, stream, came = Pace(self.limits.patience), request.stream(), 0
        while True:
            try:
                piece = await pace.wait(anext(stream, b""), len)
            except TooSlowError as error:
                raise Problem(408, "too_slow", f"the client {error}", headers={"Connection": "close"}) from error
            if not piece:
                return
            came += len(piece)
            if announced is None and came > self.limits.unannounced_bytes:
                raise Problem(
                    411, "length_required", f"over {self.limits.unannounced_bytes:,} bytes Content-Length is required"
                )
            if came > self.limits.max_bytes + _OVERHEAD:
                raise self._too_large()
            if quota is not None:
                quota.take(len(piece))
            yield piece

    async def _raw(self, pieces: AsyncIterator[bytes], folder: Path) -> Upload:
        async with Spool(folder / "input-0", self.limits.max_bytes, self._write) as spool:
            async for piece in pieces:
                await spool.write(piece)
            return Upload((_uploaded(await _finished(spool), None),), {})

    async def _multipart(self, pieces: AsyncIterator[bytes], content_type: str, folder: Path) -> Upload:
        form = _Form(self.limits, folder, self._write)
        try:
            body = MultipartBody(content_type)
            async for piece in pieces:
                for event in body.feed(piece):
                    await form.take(event)
            body.finish()
        except MultipartError as error:
            await form.discard()
            raise Problem(400, "multipart", f"the multipart body {error}") from error
        except BaseException:
            await form.discard()
            raise
        if not form.files:
            raise Problem(422, "no_file", "the form has no file in it")
        return Upload(tuple(form.files), {name: value.decode() for name, value in form.fields.items()})


class _Form:
    """A multipart form on its way: fields in memory, files on the disk."""

    def __init__(self, limits: UploadLimits, folder: Path, write: Callable[[int, memoryview], int]) -> None:
        self._limits, self._folder, self._write = limits, folder, write
        self._part = Part("", None)
        self._open = AsyncExitStack()
        self._spool: Spool | None = None
        self._field_bytes = 0
        self.files: list[UploadedFile] = []
        self.fields: dict[str, bytes] = {}

    async def take(self, event: Part | Data | End) -> None:
        if isinstance(event, Part):
            await self._begin(event)
        elif isinstance(event, End):
            await self._end()
        elif self._spool is not None:
            await self._spool.write(event)
        else:
            self._field_bytes += len(event)
            if self._field_bytes > self._limits.field_bytes:
                raise MultipartError(f"has more than {self._limits.field_bytes:,} bytes of fields")
            self.fields[self._part.field] += event

    async def _begin(self, part: Part) -> None:
        self._part = part
        if part.field in self.fields or any(part.field == file.field for file in self.files):
            raise MultipartError("has two parts of one name")
        if part.name is None:
            if len(self.fields) >= self._limits.fields:
                raise MultipartError(f"has more than {self._limits.fields} fields")
            self.fields[part.field] = b""
            return
        if len(self.files) >= self._limits.files:
            raise MultipartError(f"has more than {self._limits.files} files")
        target = self._folder / f"input-{len(self.files)}"
        self._spool = await self._open.enter_async_context(Spool(target, self._limits.max_bytes, self._write))

    async def _end(self) -> None:
        if self._spool is None:
            try:
                self.fields[self._part.field].decode()
            except UnicodeDecodeError as error:
                raise MultipartError("has a field that is not UTF-8") from error
            return
        stored = await _finished(self._spool)
        self.files.append(_uploaded(stored, self._part))
        self._spool = None
        await self._open.aclose()

    async def discard(self) -> None:
        """Nothing of it stays."""
        await self._open.aclose()
        paths = [file.path for file in self.files]
        await asyncio.shield(asyncio.to_thread(_unlink, paths))


async def _finished(spool: Spool) -> Spooled:
    if not spool.bytes:
        raise Problem(422, "empty_file", "the file is empty")
    return await spool.finish()


def _uploaded(stored: Spooled, part: Part | None) -> UploadedFile:
    field_name, name = (part.field, part.name or "") if part else ("", "")
    return UploadedFile(stored.path, stored.bytes, stored.sha256, field_name, name)


def _unlink(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
