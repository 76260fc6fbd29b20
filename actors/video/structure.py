"""Whether a file is whole, by its container's own sizes, without parsing media.

A cut-off Matroska file decodes without any error, and header durations are inexact in valid files; but mp4 boxes, EBML
elements and RIFF chunks say how many bytes they have, so a file that ends inside one is cut off for certain.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_MP4_FIRST = (b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"pnot", b"styp", b"sidx")
_MP4_NEEDED = (b"moov", b"mdat", b"moof")
_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"
_MOST_BOXES = 1_000_000


@dataclass(frozen=True, slots=True)
class Structure:
    """What the outermost layer says.

    Attributes:
        container: `mp4`, `Matroska`, `AVI`, or empty when it is none of these.
        missing: what is cut off, in words; empty when nothing is.
        complete: True when the sizes prove that nothing is cut off; False when they cannot say.
    """

    container: str = ""
    missing: str = ""
    complete: bool = False


def inspect_structure(path: Path) -> Structure:
    """Walk the top level of `path`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[4:8] in _MP4_FIRST:
            return _mp4(file, size)
        if head[:4] == _EBML:
            return _matroska(file, size)
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            return _avi(file, size)
    return Structure()


def _mp4(file: BinaryIO, size: int) -> Structure:
    at, seen = 0, set()
    for _ in range(_MOST_BOXES):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            break
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        elif length == 0:  # to the end of the file
            length = size - at
        if length < 8:
            break
        seen.add(kind)
        if at + length > size and kind in _MP4_NEEDED:
            return Structure("mp4", _cut(size, at + length, " inside its index (moov)" if kind == b"moov" else ""))
        at += length
    if b"moov" not in seen:
        return Structure("mp4", "is cut off: its index (moov) is missing")
    return Structure("mp4", complete=True)


def _matroska(file: BinaryIO, size: int) -> Structure:
    file.seek(4)
    header = _vint(file)
    if header is None:
        return Structure("Matroska")
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        missing = "is cut off after its header" if file.tell() >= size else ""
        return Structure("Matroska", missing)
    length = _vint(file)
    if length is None:  # a live recording: the size was never filled in
        return Structure("Matroska")
    end = file.tell() + length
    return Structure("Matroska", _cut(size, end)) if end > size else Structure("Matroska", complete=True)


def _vint(file: BinaryIO) -> int | None:
    """An EBML size; None for the reserved value "unknown"."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    width = 9 - first[0].bit_length()
    raw = bytes([first[0] & (0xFF >> width)]) + file.read(width - 1)
    value = int.from_bytes(raw, "big")
    return None if value == (1 << 7 * width) - 1 else value


def _avi(file: BinaryIO, size: int) -> Structure:
    at = 0
    while at + 12 <= size:  # files over 1 GiB have several RIFF chunks
        file.seek(at)
        head = file.read(12)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):
            return Structure("AVI")
        if at + 8 + length > size:
            return Structure("AVI", _cut(size, at + 8 + length))
        at += 8 + length + length % 2
    return Structure("AVI", complete=True)


def _cut(size: int, needed: int, where: str = "") -> str:
    return f"is cut off{where}: {size} of {needed} bytes are there"
