"""Bytes written to files below a folder, counted as the files are closed (Linux inotify).

Counters of processes are no use here: caches decide what `write_bytes` says, pipes are in `wchar`, and both are lost
with a process that ends. A file counts with its size each time that a writer closes it; an append-only file with what
it grew; an mp4 whose index was moved to its front twice, because its media was moved behind it. (A name written twice
in the same instant counts once; no job does that.)
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _OVERFLOW = 0x8, 0x40, 0x80, 0x4000
_HEAD = struct.Struct("iIII")
_BUFFER = 1 << 18
#: Files that are only ever appended to.
_APPENDED = (".jsonl",)


class Written:
    """The count.

    Attributes:
        bytes: so far.
        files: closings counted so far.
        lost: files that were gone before they could be measured.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.files = 0
        self.lost: list[str] = []
        self._appended: dict[Path, int] = {}

    def count(self, path: Path) -> bool:
        """Adds a file that was closed; False where there is none of that name."""
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                rewritten = _media_after_index(file) if path.suffix in (".mp4", ".part") else 0
        except FileNotFoundError:
            return False
        before = self._appended.get(path, 0)
        if path.suffix in _APPENDED:
            self._appended[path] = size
        self.bytes += size - before + rewritten
        self.files += 1
        return True


@contextmanager
def counting(folders: list[Path]) -> Iterator[Written]:
    """Counts what is written in these folders (not below them) until the block ends. They must exist."""
    libc = ctypes.CDLL(None, use_errno=True)
    inotify = libc.inotify_init1(os.O_CLOEXEC)
    if inotify < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    end, stop = os.pipe()
    try:
        watched: dict[int, Path] = {}
        for folder in folders:
            watch = libc.inotify_add_watch(inotify, os.fsencode(folder), _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO)
            if watch < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch", str(folder))
            watched[watch] = folder
        written = Written()
        thread = threading.Thread(target=_follow, args=(inotify, end, watched, written), daemon=True)
        thread.start()
        try:
            yield written
        finally:
            os.close(stop)
            thread.join()
    finally:
        os.close(inotify)
        os.close(end)


def folder_bytes(folder: Path) -> int:
    """Sizes of all files below a folder together."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _follow(inotify: int, end: int, watched: dict[int, Path], written: Written) -> None:
    #: Closed under a name that was gone when we looked: it was renamed, and the next events say to what.
    missing: set[Path] = set()
    renamed: dict[int, Path] = {}
    while True:
        ready = select.select([inotify, end], [], [])[0]
        if inotify not in ready:
            break
        for watch, mask, cookie, name in _events(os.read(inotify, _BUFFER)):
            if mask & _OVERFLOW:
                written.lost.append("events (the queue ran over)")
                continue
            path = watched[watch] / name
            if mask & _CLOSE_WRITE and not written.count(path):
                missing.add(path)
            elif mask & _MOVED_FROM:
                renamed[cookie] = path
            elif mask & _MOVED_TO:
                before = renamed.pop(cookie, None)
                if before in missing and written.count(path):
                    missing.discard(before)
    written.lost += sorted(path.name for path in missing)


def _events(data: bytes) -> Iterator[tuple[int, int, int, str]]:
    at = 0
    while at < len(data):
        watch, mask, cookie, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        yield watch, mask, cookie, os.fsdecode(data[at : at + length].rstrip(b"\0"))
        at += length


def _media_after_index(file: BinaryIO) -> int:
    """Bytes of the media box when it lies behind the index: it was written once before, further in front."""
    seen_index = False
    while len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        header = 8
        if size == 1:
            size, header = struct.unpack(">Q", file.read(8))[0], 16
        if kind == b"moov":
            seen_index = True
        if kind == b"mdat":
            return int(size) if seen_index else 0
        if size < header or not kind.isalnum():
            return 0
        file.seek(size - header, os.SEEK_CUR)
    return 0
