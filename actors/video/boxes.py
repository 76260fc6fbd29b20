"""What an mp4's boxes say of the video's length (ISO 14496-12).

The demuxer does not pass it on: it derives a frame's duration from the distance of decode times, which with B-frames
and a variable rate is another frame's. Players follow the edit list, so that is what is read here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

_PARENTS = (b"trak", b"mdia", b"edts")


def video_end(path: Path) -> Fraction:
    """Seconds at which the first video track's last frame ends.

    Args:
        path: an mp4 that this project wrote.

    Raises:
        ValueError: the file has no video track with an edit list.
    """
    moov = _moov(path)
    timescale = 0
    for kind, body in _boxes(moov):
        if kind == b"mvhd":
            timescale = struct.unpack_from(">I", body, 20 if body[0] else 12)[0]
        elif kind == b"trak":
            inner = dict(_leaves(body))
            if inner.get(b"hdlr", b"")[8:12] == b"vide" and b"elst" in inner and timescale:
                return Fraction(sum(_edits(inner[b"elst"])), timescale)
    raise ValueError(f"{path.name} has no video track with an edit list")


def _moov(path: Path) -> bytes:
    with path.open("rb") as file:
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            read = 8
            if size == 1:
                size, read = struct.unpack(">Q", file.read(8))[0], 16
            if kind == b"moov":
                return file.read(size - read)
            if size < read:
                break
            file.seek(size - read, 1)
    raise ValueError(f"{path.name} has no moov box")


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if size < 8:
            raise ValueError("a box of no size")
        yield kind, data[at + 8 : at + size]
        at += size


def _leaves(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    for kind, body in _boxes(data):
        if kind in _PARENTS:
            yield from _leaves(body)
        else:
            yield kind, body


def _edits(elst: bytes) -> Iterator[int]:
    """Durations of the edits, the empty one that stands for a late start included."""
    entry = ">QqI" if elst[0] else ">IiI"
    (count,) = struct.unpack_from(">I", elst, 4)
    for i in range(count):
        yield struct.unpack_from(entry, elst, 8 + i * struct.calcsize(entry))[0]
