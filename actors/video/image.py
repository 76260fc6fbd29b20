"""Still images: decoding those of users, whose size is read from the header first, and encoding results."""

from __future__ import annotations

import functools
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from actors.video.image_header import KINDS, check_bytes, grey_bits, grey_key, orientation, read_header, remedy
from actors.video.limits import Limits
from cluster.errors import MediaError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})

#: Largest side that a file of each kind can have (WebP: RFC 9649, 2.5; JPEG: libjpeg's JPEG_MAX_DIMENSION).
_MOST_SIDE = {"png": 2**31 - 1, "jpeg": 65500, "webp": 16383}

# For upscaled photographs, beside the default: 1.3 times as quick and a quarter smaller.
_PNG = [
    cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE,
    cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FAST_FILTERS,
]  # fmt: skip
_WEBP_LOSSLESS = 101  # any quality over 100, for OpenCV

Picture = NDArray[np.uint8]


def read_image(path: Path, limits: Limits) -> Picture:
    """An image file as RGB, uint8 [H,W,3], upright by its EXIF tag; transparent parts show the colours they have.

    Raises:
        MediaError: too large, or not an image.
    """
    check_bytes(path.stat().st_size, path.name, limits)
    data = path.read_bytes()
    header = read_header(data, path.name)
    if header.width * header.height > limits.max_pixels:
        raise MediaError(
            path.name,
            f"the image is {header.width}x{header.height}",
            remedy=f"at most {limits.max_pixels} pixels are read",
        )
    return decode_image(data, path.name)[0]


def decode_image(data: bytes, name: str) -> tuple[Picture, Picture | None]:
    """RGB, uint8 [H,W,3], and alpha, uint8 [H,W], or None where the file has none; both upright by the EXIF tag.

    16 bits are rounded to 8; grey and palettes become RGB, transparent colours of them alpha. Colour profiles are not
    looked at. Of an animation this is the first picture.

    Raises:
        MediaError: broken, or other than its header says. The caller has checked the size.
    """
    header = read_header(data, name)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise MediaError(name, f"the image cannot be decoded ({error.err})", remedy=remedy(KINDS)) from error
    if image is None:
        raise MediaError(name, "the image cannot be decoded: it is damaged or cut off", remedy="save it anew")
    if image.shape[:2] != (header.height, header.width):
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise MediaError(
            name, f"the image is {size}, not {header.width}x{header.height} as its header says", remedy="save it anew"
        )
    key = grey_key(data) if header.kind == "png" and image.ndim == 2 else None
    # The key is in the file's bits; fewer than 8 were stretched to 8.
    key = key if key is None or grey_bits(data) >= 8 else key * 255 // ((1 << grey_bits(data)) - 1)
    alpha = None if key is None else np.where(image == key, np.uint8(0), np.uint8(255))
    if image.dtype == np.uint16:
        image = cv2.convertScaleAbs(image, alpha=255 / 65535)
    if image.ndim == 2:
        rgb = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    elif image.shape[2] == 4:
        rgb, alpha = cv2.cvtColor(image, cv2.COLOR_BGRA2RGB), np.ascontiguousarray(image[..., 3])
    else:
        rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    turn = functools.partial(_upright, orientation=orientation(data, header.kind))
    return turn(rgb), None if alpha is None else turn(alpha)


def _upright(picture: Picture, orientation: int) -> Picture:
    """Undo what an EXIF orientation of 1 to 8 says of how the picture lies."""
    if orientation >= 5:
        picture = picture.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        picture = picture[::-1]
    if orientation in (2, 3, 6, 7):
        picture = picture[:, ::-1]
    return np.ascontiguousarray(picture)


def encode_still(rgb: Picture, alpha: Picture | None, kind: str, quality: int = 90) -> bytes:
    """An image file; equal arguments give equal bytes.

    Args:
        rgb: uint8 [H,W,3].
        alpha: uint8 [H,W], or None for an opaque picture.
        kind: `png`, `jpeg` or `webp`.
        quality: 1 to 100; a WebP of 100 is lossless, as a PNG always is.

    Raises:
        ValueError: alpha with JPEG, another kind or quality, shapes that do not fit.
        MediaError: larger than a file of that kind can be.
    """
    if kind not in _MOST_SIDE:
        raise ValueError(f"{kind!r} is none of {', '.join(_MOST_SIDE)}")
    if not 1 <= quality <= 100:
        raise ValueError(f"a quality of {quality} is not in 1 to 100")
    if rgb.ndim != 3 or rgb.shape[2] != 3 or (alpha is not None and alpha.shape != rgb.shape[:2]):
        raise ValueError(f"rgb is {rgb.shape}, alpha {None if alpha is None else alpha.shape}")
    if alpha is not None and kind == "jpeg":
        raise ValueError("JPEG has no alpha")
    height, width = rgb.shape[:2]
    if max(height, width) > _MOST_SIDE[kind]:
        raise MediaError(
            "result",
            f"is {width}x{height}, and a {kind} file can have {_MOST_SIDE[kind]} pixels a side at most",
            remedy="ask for png",
        )
    image = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR if alpha is None else cv2.COLOR_RGB2BGRA)
    if alpha is not None:
        image[..., 3] = alpha
    options = {
        "png": _PNG,
        "jpeg": [cv2.IMWRITE_JPEG_QUALITY, quality],
        "webp": [cv2.IMWRITE_WEBP_QUALITY, quality if quality < 100 else _WEBP_LOSSLESS],
    }
    done, data = cv2.imencode(f".{kind}", image, options[kind])
    if not done:
        raise MediaError("result", f"{width}x{height} could not be encoded as {kind}", remedy="ask for another kind")
    return data.tobytes()


def warm_up() -> None:
    """What the first image would otherwise wait for; one thread, as the files are small and many."""
    cv2.setNumThreads(1)
    decode_image(encode_still(np.zeros((16, 16, 3), np.uint8), None, "png"), "")
