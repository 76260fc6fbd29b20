"""One file over HTTP: resumed, bounded, checked against its size and SHA-256, renamed when it is whole."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from cluster.errors import WeightsError
from cluster.files import publish, sha256_of

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are on the disk and the bytes expected (None while unknown)."""

_CHUNK = 1 << 18
_UNKNOWN_SIZE_LIMIT = 1 << 30  # a file of unstated size may not fill the disk; the largest one has about 885 MB
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a download tries.

    Attributes:
        connect_seconds: longest wait for a connection.
        silence_seconds: longest wait for the next bytes.
        attempts: attempts in a row that bring no new byte before an address is given up.
        pause_seconds: pause before the second attempt; doubles with each further one.
    """

    connect_seconds: float = 20.0
    silence_seconds: float = 30.0
    attempts: int = 4
    pause_seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to download: a name for messages, addresses in order of preference, and size and hashes as far as known."""

    name: str
    urls: Sequence[str]
    size: int | None
    sha256: str | None
    md5: str | None = None


class _RefusedError(Exception):
    """This address will not give the file, now or later."""


class _AgainError(Exception):
    """This attempt did not bring the whole file, another one may."""


def download(
    wanted: Wanted, target: Path, *, progress: Progress | None = None, patience: Patience | None = None
) -> None:
    """Downloads to `target`, going on from `<target>.part` where an earlier attempt left one.

    `target` appears by a rename, and only once size and hash are right, as far as they are known. Several processes may
    call this for the same target: one downloads, the others wait for it and return when its file is the wanted one.
    Without a SHA-256 nothing tells that, nor whether an earlier part belongs to the same file: all is downloaded again.

    Proxies are taken from the environment (`https_proxy`, `no_proxy`), as users behind one expect. Blocks; not for a
    thread that runs an event loop.

    Raises:
        WeightsError: no address gave the whole file (the part stays, for the next call to go on from), or what came
            is not the wanted file (the part is removed), or there is no room or no permission for it.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.with_name(f".{target.name}.lock")):
            if wanted.sha256 is None:
                part.unlink(missing_ok=True)
            elif target.exists() and sha256_of(target) == wanted.sha256:
                return
            _check_room(wanted, part)
            asyncio.run(_from_any(wanted, part, progress or _ignore, patience or Patience()))
            _check(wanted, part)
            publish(part, target)
    except OSError as error:
        raise WeightsError(
            wanted.name,
            f"cannot write {target}: {error.strerror or error}",
            remedy="choose another folder with --store or TROUPE_WEIGHTS",
        ) from error


def _ignore(_done: int, _total: int | None) -> None:
    return


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds an exclusive lock, which the system drops when the process dies.

    The lock has a file of its own, which stays: a lock on the part would follow it through the rename.
    """
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_room(wanted: Wanted, part: Path) -> None:
    if wanted.size is None:
        return
    missing = wanted.size - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(part.parent).free
    if missing > free:
        raise WeightsError(
            wanted.name,
            f"needs {missing:,} bytes more in {part.parent}, which has {free:,}",
            remedy="make room, or choose another folder with --store or TROUPE_WEIGHTS",
        )


async def _from_any(wanted: Wanted, part: Path, progress: Progress, patience: Patience) -> None:
    """Fills `part` from the first address that gives the whole file."""
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=patience.connect_seconds, sock_read=patience.silence_seconds
    )
    reasons = []
    async with aiohttp.ClientSession(trust_env=True, timeout=timeout, auto_decompress=False) as session:
        for url in wanted.urls:
            try:
                await _from_one(session, url, wanted, part, progress, patience)
            except _RefusedError as error:
                reasons.append(f"{url}: {error}")
            else:
                return
    raise WeightsError(
        wanted.name,
        f"download failed ({'; '.join(reasons)})",
        remedy="run the same command again, it goes on where it stopped; or set --mirror; or download the file "
        f"elsewhere and run `troupe weights import FILE --name {wanted.name}`",
    )


async def _from_one(
    session: aiohttp.ClientSession, url: str, wanted: Wanted, part: Path, progress: Progress, patience: Patience
) -> None:
    """Asks one address again and again, each time for what is still missing, until the file is whole.

    Only an attempt that got further than every one before it counts as progress, so that an address which breaks off
    at the same place each time is given up too.
    """
    furthest, idle = _size(part), 0
    while True:
        try:
            await _attempt(session, url, wanted, part, progress)
            return
        except (_AgainError, aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
        except (aiohttp.ClientError, ValueError) as error:  # a bad address, too many redirects, not HTTP
            raise _RefusedError(str(error) or type(error).__name__) from error
        idle = 0 if _size(part) > furthest else idle + 1
        furthest = max(furthest, _size(part))
        if idle >= patience.attempts:
            raise _RefusedError(reason)
        await asyncio.sleep(patience.pause_seconds * 2 ** max(idle - 1, 0))


async def _attempt(session: aiohttp.ClientSession, url: str, wanted: Wanted, part: Path, progress: Progress) -> None:
    """One request for what `part` lacks; returns when it lacks nothing."""
    have = _size(part)
    if wanted.size is not None and have >= wanted.size:
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    async with session.get(url, headers=headers) as response:
        content_range = response.headers.get("Content-Range", "")
        if response.status == 416:
            if content_range == f"bytes */{have}":  # the part is the whole file, whose size was not known
                return
            part.unlink(missing_ok=True)
            raise _AgainError("the partial file did not fit and was dropped")
        if response.status in _RETRIED:
            raise _AgainError(f"HTTP {response.status} {response.reason}")
        if response.status not in (200, 206):
            raise _RefusedError(f"HTTP {response.status} {response.reason}")
        if wanted.sha256 is None and response.content_type == "text/html":
            raise _RefusedError("sends a web page, not a file")
        start = have if response.status == 206 else 0  # a server without ranges sends everything: begin again
        if response.status == 206 and not content_range.startswith(f"bytes {have}-"):
            raise _RefusedError(f"asked for bytes {have}-, got {content_range!r}")
        total = None if response.content_length is None else start + response.content_length
        if None not in (total, wanted.size) and total != wanted.size:
            raise _RefusedError(f"has {total:,} bytes where {wanted.size:,} are registered, so it is another file")
        await _append(response, part, start, wanted.size or total, progress)


async def _append(
    response: aiohttp.ClientResponse, part: Path, start: int, total: int | None, progress: Progress
) -> None:
    """Writes the body to `part` from byte `start` on, synced whatever happens."""
    limit = total or _UNKNOWN_SIZE_LIMIT
    done = start
    with part.open("ab" if start else "wb") as file:
        progress(done, total)
        try:
            async for chunk in response.content.iter_chunked(_CHUNK):
                done += file.write(chunk)
                progress(done, total)
                if done > limit:
                    break
        finally:
            file.flush()
            os.fsync(file.fileno())
    if done > limit:
        part.unlink()
        raise _RefusedError(f"sends more than {limit:,} bytes, so it is another file")
    if total is not None and done < total:
        raise _AgainError(f"the connection closed at byte {done:,} of {total:,}")


def _check(wanted: Wanted, part: Path) -> None:
    size = part.stat().st_size
    if wanted.sha256 is not None:
        kind, expected, digest = "sha256", wanted.sha256, sha256_of(part)
    elif wanted.md5 is not None:
        with part.open("rb") as file:
            kind, expected, digest = "md5", wanted.md5, hashlib.file_digest(file, "md5").hexdigest()
    else:
        return  # its size was checked with each answer
    if digest == expected:
        return
    part.unlink()
    raise WeightsError(
        wanted.name,
        f"what was downloaded ({size:,} bytes, {kind} {digest}) is not the registered file ({kind} {expected}); "
        "it was removed",
        remedy="run the same command again, or try another --mirror",
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
