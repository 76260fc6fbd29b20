"""What a still image's header says of it, read without decoding anything, in bounded time.

The files come from strangers: headers that libraries could read in another way than this module are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from actors.video.limits import Limits
from cluster.errors import MediaError

#: Kinds that backgrounds may have.
KINDS = ("png", "jpeg", "webp", "bmp")

#: An image file may be no larger than this.
MAX_BYTES = 256 * 2**20

_NAMES = {"png": "PNG", "jpeg": "JPEG", "webp": "WebP", "bmp": "BMP"}

#: Chunks or segments that are looked at before a header is called broken: some hundreds are usual at most.
_MOST_PARTS = 10_000

_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112  # the tag's number (Exif 2.32, 4.6.4)


@dataclass(frozen=True, slots=True)
class Header:
    """An image file by its header.

    Attributes:
        kind: `png`, `jpeg`, `webp` or `bmp`.
        width, height: size as stored, before it is turned upright.
        animated: it holds further pictures (APNG, animated WebP).
        cmyk: a JPEG of four components: printing inks, whose colours depend on the printer.
    """

    kind: str
    width: int
    height: int
    animated: bool = False
    cmyk: bool = False


def check_bytes(size: int, name: str, limits: Limits) -> None:
    """Refuse an image file by its size in bytes, which needs no header."""
    most = min(limits.max_bytes, MAX_BYTES)
    if size > most:
        raise MediaError(name, f"the image file has {size} bytes", remedy=f"at most {most} are read")


def remedy(kinds: tuple[str, ...]) -> str:
    """What to do about a file that is of no such kind or broken."""
    *names, last = [_NAMES[kind] for kind in kinds]
    return f"use a {', '.join(names)} or {last} file"


def read_header(data: bytes, name: str, kinds: tuple[str, ...] = KINDS) -> Header:
    """The header of an image of one of `kinds`, by content.

    Raises:
        MediaError: another kind of file, or a broken header.
    """
    kind = kind_of(data)
    if kind not in kinds:
        what = f"is a {_NAMES[kind]} image" if kind else "is not an image of a known kind"
        raise MediaError(name, what, remedy=remedy(kinds))
    try:
        header = _READERS[kind](data)
    except (struct.error, ValueError, IndexError) as error:
        raise MediaError(name, "the image's header is broken", remedy=remedy(kinds)) from error
    if header.width < 1 or header.height < 1:
        raise MediaError(name, f"the image is {header.width}x{header.height}", remedy=remedy(kinds))
    return header


def orientation(data: bytes, kind: str) -> int:
    """The EXIF orientation, 1 to 8 (Exif 2.32, 4.6.4); 1, which is upright, where the file does not say."""
    try:
        found = _tag(_exif(data, kind))
    except (struct.error, ValueError, IndexError):
        return 1  # what stands in the rest of the file does not matter here
    return found if 1 <= found <= 8 else 1


def grey_key(data: bytes) -> int | None:
    """The grey value that is transparent in a PNG without alpha, in the file's own bits; None where there is none."""
    depth, colour = data[24], data[25]
    if colour != 0:
        return None
    for kind, body in _png_chunks(data):
        if kind == b"tRNS":
            return int(struct.unpack_from(">H", body)[0]) & ((1 << depth) - 1)
        if kind == b"IDAT":
            break
    return None


def grey_bits(data: bytes) -> int:
    """Bits of a PNG's sample."""
    return data[24]


def kind_of(data: bytes) -> str:
    """What a file's first bytes (12 are enough) say that it is; empty for none of `KINDS`."""
    if data.startswith(_PNG):
        return "png"
    if data.startswith(b"\xff\xd8"):
        return "jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return "bmp" if data.startswith(b"BM") else ""


def _png(data: bytes) -> Header:
    """IHDR comes first; acTL, if at all, before the picture (PNG 3, 5.6 and 11.3.6)."""
    if data[8:16] != b"\0\0\0\x0dIHDR":
        raise ValueError("its first chunk is not IHDR")
    width, height = struct.unpack_from(">II", data, 16)
    animated = False
    for kind, body in _png_chunks(data):
        if kind == b"acTL":
            animated = struct.unpack_from(">I", body)[0] > 1
        if kind == b"IDAT":
            return Header("png", width, height, animated)
    raise ValueError("no picture")


def _jpeg(data: bytes) -> Header:
    """From the start-of-frame marker (ITU-T T.81, B.2.2)."""
    for marker, at in _jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, components = struct.unpack_from(">HHB", data, at + 3)
            return Header("jpeg", width, height, cmyk=components == 4)
    raise ValueError("no frame")


def _webp(data: bytes) -> Header:
    """From the first chunk: extended, lossless or lossy (RFC 9649, 2.5 to 2.7)."""
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        if len(data) < 30:
            raise ValueError("cut off")
        return Header("webp", width, height, animated=bool(data[20] & 0x02))
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return Header("webp", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header("webp", width & 0x3FFF, height & 0x3FFF)
    raise ValueError("no image chunk")


def _bmp(data: bytes) -> Header:
    width, height = struct.unpack_from("<ii", data, 18)
    return Header("bmp", width, abs(height))  # negative when stored from the top


_READERS = {"png": _png, "jpeg": _jpeg, "webp": _webp, "bmp": _bmp}


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Type and content of each chunk."""
    whole, at = memoryview(data), len(_PNG)
    for _ in range(_MOST_PARTS):
        if at + 12 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, whole[at + 8 : at + 8 + length]
        at += 12 + length
    raise ValueError("too many chunks")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and place of the length of each segment before the picture's data."""
    at = 2
    for _ in range(_MOST_PARTS):
        if data[at] != 0xFF:
            raise ValueError("no marker where one must be")
        marker, length = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        # Those without a length mean nothing here, and decoders do not skip what would be read as theirs.
        if marker < 0xC0 or 0xD0 <= marker <= 0xDA or length < 2:
            raise ValueError("a marker where none can be")
        yield marker, at + 2
        at += 2 + length
    raise ValueError("too many segments")


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    whole, at = memoryview(data), 12
    for _ in range(_MOST_PARTS):
        if at + 8 > len(data):
            return
        kind, length = struct.unpack_from("<4sI", data, at)
        yield kind, whole[at + 8 : at + 8 + length]
        at += 8 + length + (length & 1)


def _exif(data: bytes, kind: str) -> bytes:
    """The TIFF structure that holds the tags; empty where there is none."""
    if kind == "jpeg":
        for marker, at in _jpeg_segments(data):
            (length,) = struct.unpack_from(">H", data, at)
            if marker == 0xE1 and data[at + 2 : at + 8] == b"Exif\0\0":
                return data[at + 8 : at + length]
    chunks = {"png": _png_chunks, "webp": _riff_chunks}.get(kind)
    for name, body in chunks(data) if chunks else ():
        if name in (b"eXIf", b"EXIF"):
            # Some writers of WebP put JPEG's prefix before it.
            return bytes(body).removeprefix(b"Exif\0\0")
    return b""


def _tag(tiff: bytes) -> int:
    """The orientation in the first directory (TIFF 6.0, section 2)."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    (at,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
        if tag == _ORIENTATION and kind == 3:
            return int(struct.unpack_from(f"{order}H", tiff, entry + 8)[0])
    return 1
