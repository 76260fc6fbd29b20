"""Still images of users: their size is read from the header, before anything is decoded."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from actors.video.limits import Limits
from cluster.errors import MediaError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})

#: An image file may be no larger than this.
MAX_BYTES = 256 * 2**20

_REMEDY = "use a PNG, JPEG, WebP or BMP file"


def read_image(path: Path, limits: Limits) -> NDArray[np.uint8]:
    """An image file as RGB, uint8 [H,W,3], upright by its EXIF tag; transparent parts show the colours they have.

    Raises:
        MediaError: too large, or not an image.
    """
    size = path.stat().st_size
    if size > min(limits.max_bytes, MAX_BYTES):
        raise MediaError(path.name, f"the image file has {size} bytes", remedy=f"at most {MAX_BYTES} are read")
    data = path.read_bytes()
    width, height = image_size(data, path.name)
    if width * height > limits.max_pixels:
        raise MediaError(
            path.name, f"the image is {width}x{height}", remedy=f"at most {limits.max_pixels} pixels are read"
        )
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise MediaError(path.name, f"the image cannot be decoded ({error})", remedy=_REMEDY) from error
    if image is None:
        raise MediaError(path.name, "the image cannot be decoded", remedy=_REMEDY)
    return np.asarray(image, np.uint8)


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height by the header of a PNG, JPEG, WebP or BMP file; `MediaError` for anything else."""
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack_from(">II", data, 16)
        elif data.startswith(b"\xff\xd8"):
            width, height = _jpeg_size(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            width, height = _webp_size(data)
        elif data.startswith(b"BM"):
            width, height = struct.unpack_from("<ii", data, 18)
            height = abs(height)  # negative when stored from the top
        else:
            raise MediaError(name, "is not an image of a known kind", remedy=_REMEDY)
    except (struct.error, ValueError) as error:
        raise MediaError(name, "the image's header is broken", remedy=_REMEDY) from error
    if width < 1 or height < 1:
        raise MediaError(name, f"the image is {width}x{height}", remedy=_REMEDY)
    return width, height


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """From the start-of-frame marker (ITU-T T.81, B.2.2)."""
    at = 2
    while True:
        marker, length = struct.unpack_from(">HH", data, at)
        if marker >> 8 != 0xFF:
            raise ValueError("no marker where one must be")
        if 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        at += 2 + length


def _webp_size(data: bytes) -> tuple[int, int]:
    """From the first chunk: extended, lossless or lossy (RFC 9649, 2.5 to 2.7)."""
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("no image chunk")
