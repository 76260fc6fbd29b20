"""A task's result to a file: resumed where it broke, checked against the task's SHA-256, renamed when it is whole."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import aiohttp

from cluster.errors import TroupeError, UsageError
from cluster.files import PARTIAL, publish, sha256_of
from serve.client.asking import SILENCE_SECONDS, AgainError, Asker
from serve.client.refusals import ServiceError
from serve.schemas import ResultView

_CHUNK = 1 << 18
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=15.0, sock_read=SILENCE_SECONDS)


async def fetched(
    asker: Asker,
    task_id: str,
    result: ResultView,
    target: Path,
    overwrite: bool,
    moved: Callable[[int, int], None],
) -> Path:
    """See `serve.client.Client.download`."""
    _refuse_existing(target, overwrite)
    part = target.with_name(f".troupe-{task_id}{PARTIAL}")
    try:
        with _held(part) as file:
            await asker.persist(lambda: _attempt(asker, task_id, result, file, moved))
            os.fsync(file.fileno())
            found = await asyncio.to_thread(sha256_of, part)
            if found != result.sha256:
                part.unlink()
                raise ServiceError(
                    target,
                    f"what came (sha256 {found}) is not what task {task_id} made (sha256 {result.sha256}); it was "
                    "removed",
                    remedy="download it again; if it happens again, something between here and the server changes it",
                    code="wrong_hash",
                )
            _refuse_existing(target, overwrite)
            publish(part, target)
    except OSError as error:
        reason = f"cannot be written: {error.strerror or error}"
        raise TroupeError(target, reason, remedy="make room, or choose another folder") from error
    return target


def _refuse_existing(target: Path, overwrite: bool) -> None:
    if os.path.lexists(target) and not overwrite:
        raise UsageError(target, "is there already", remedy="replace it with --force, or choose another folder")
    if not target.absolute().parent.is_dir():
        raise UsageError(target.parent, "is not a folder", remedy="make it first")


@contextmanager
def _held(part: Path) -> Iterator[BinaryIO]:
    """The partial file, open at its end, for this process alone."""
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(file.fileno()), part.stat())
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:  # somebody has it, or has just given it its final name
            raise UsageError(part, "is being downloaded by another process", remedy="let that one end")
        yield file


async def _attempt(
    asker: Asker, task_id: str, result: ResultView, file: BinaryIO, moved: Callable[[int, int], None]
) -> None:
    """One request for what is missing; returns when nothing is."""
    have = os.fstat(file.fileno()).st_size
    moved(have, result.bytes)
    if have == result.bytes:
        return
    if have > result.bytes:
        file.truncate(0)
        have = 0
    headers = {"Range": f"bytes={have}-", "If-Range": f'"{result.sha256}"'} if have else {}
    path, began = f"v1/tasks/{task_id}/result", have
    try:
        with asker.talking():
            async with asker.request("GET", path, headers=headers, timeout=_TIMEOUT) as response:
                goes_on = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
                if response.status in (200, 206, 416) and not (response.status == 206 and goes_on):
                    file.truncate(0)
                    have = began = 0
                if response.status == 416 or (response.status == 206 and not goes_on):
                    raise AgainError("sends another part than was asked for")
                if response.status not in (200, 206):
                    await asker.read(response, f"task {task_id}")
                    raise AgainError("sends no file")
                async for piece in response.content.iter_chunked(_CHUNK):
                    have += file.write(piece)
                    moved(have, result.bytes)
                    if have > result.bytes:
                        break
    except AgainError as error:
        raise AgainError(error.reason, pause=error.pause, refusal=error.refusal, moved=have > began) from error
    finally:
        file.flush()
    if have < result.bytes:
        raise AgainError("broke the connection off", moved=have > began)
