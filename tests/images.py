"""Still images made by hand, for tests: kinds that no encoder here writes, and hostile ones."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int, height: int, bits: int, colour: int, rows: Sequence[bytes], *extra: bytes, after: bytes = b""
) -> bytes:
    """A PNG of unfiltered rows; `extra` chunks stand before the picture, those of `after` behind it."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    picture = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"".join((SIGNATURE, head, *extra, picture, after, chunk(b"IEND", b"")))


def bomb(side: int) -> bytes:
    """A PNG of side x side black RGB pixels: 30000 are 2.7 GB in 2.6 MB. `side` is a multiple of 100."""
    count = (1 + 3 * side) * side
    packer = zlib.compressobj(9, wbits=-15)
    part = packer.compress(bytes(count // 100)) + packer.flush(zlib.Z_FULL_FLUSH)  # can be repeated
    packed = b"\x78\xda" + 100 * part + b"\x03\0" + struct.pack(">HH", count % 65521, 1)  # Adler-32 of zeros
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return SIGNATURE + head + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def exif(orientation: int, order: str = "<") -> bytes:
    """A TIFF structure of one tag before the orientation and that."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entries = struct.pack(f"{order}HHIHH", 0x0100, 3, 1, 7, 0) + struct.pack(
        f"{order}HHIHH", 0x0112, 3, 1, orientation, 0
    )
    return mark + struct.pack(f"{order}IH", 8, 2) + entries + bytes(4)


def encoded(picture: NDArray[np.uint8], suffix: str, *options: int) -> bytes:
    """By OpenCV, of RGB or RGBA."""
    swap = cv2.COLOR_RGBA2BGRA if picture.shape[2] == 4 else cv2.COLOR_RGB2BGR
    return bytes(cv2.imencode(suffix, cv2.cvtColor(picture, swap), options)[1].tobytes())


def with_exif(data: bytes, tiff: bytes) -> bytes:
    """The same JPEG, PNG or WebP with an EXIF part."""
    if data.startswith(b"\xff\xd8"):
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff + data[2:]
    if data.startswith(SIGNATURE):
        return data[:-12] + chunk(b"eXIf", tiff) + data[-12:]
    body = data[12:]
    (bits,) = struct.unpack_from("<I", body, 9)  # lossless
    size = (bits & 0x3FFF).to_bytes(3, "little") + (bits >> 14 & 0x3FFF).to_bytes(3, "little")
    alpha = 0x10 if bits >> 28 & 1 else 0
    return riff((b"VP8X", bytes([0x08 | alpha, 0, 0, 0]) + size), (None, body), (b"EXIF", tiff))


def riff(*parts: tuple[bytes | None, bytes]) -> bytes:
    """A WebP of chunks; those without a name are whole already."""
    body = b"WEBP"
    for name, content in parts:
        body += content if name is None else name + struct.pack("<I", len(content)) + content + bytes(len(content) & 1)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def animated_webp(picture: NDArray[np.uint8], frames: int = 2) -> bytes:
    height, width = picture.shape[:2]
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    frame = bytes(6) + size + (100).to_bytes(3, "little") + b"\0" + encoded(picture, ".webp")[12:]
    return riff(
        (b"VP8X", bytes([0x02, 0, 0, 0]) + size), (b"ANIM", bytes(6)), *[(b"ANMF", frame) for _ in range(frames)]
    )


def cmyk_jpeg(planes: Sequence[NDArray[np.uint8]]) -> bytes:
    """A baseline JPEG of four components, one scan each, out of four grey ones of one size."""
    greys = [bytes(cv2.imencode(".jpg", plane)[1].tobytes()) for plane in planes]
    height, width = planes[0].shape
    out = b"\xff\xd8" + b"\xff\xee" + struct.pack(">H", 14) + b"Adobe" + bytes([0, 100, 0, 0, 0, 0, 0])
    first, at = greys[0], 2
    while first[at + 1] != 0xDA:
        length = struct.unpack_from(">H", first, at + 2)[0]
        if first[at + 1] in (0xDB, 0xC4):
            out += first[at : at + 2 + length]
        at += 2 + length
    parts = b"".join(bytes([i + 1, 0x11, 0]) for i in range(4))
    out += b"\xff\xc0" + struct.pack(">HBHHB", 20, 8, height, width, 4) + parts
    for i, grey in enumerate(greys):
        scan = grey[grey.index(b"\xff\xda") + 10 : -2]
        out += b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, i + 1, 0, 0, 63, 0) + scan
    return out + b"\xff\xd9"


def jpeg_of_size(data: bytes, width: int, height: int) -> bytes:
    """The same JPEG with another size in its frame header."""
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]
