"""Still images: every kind becomes RGB and alpha, upright; headers are believed only where decoders agree; results
are files that say the same."""

from __future__ import annotations

import struct
import time

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from actors.video.image import decode_image, encode_still
from actors.video.image_header import read_header
from cluster.errors import MediaError
from tests.images import (
    SIGNATURE,
    animated_webp,
    chunk,
    cmyk_jpeg,
    encoded,
    exif,
    jpeg_of_size,
    png,
    riff,
    with_exif,
)

SIDE = 16
Picture = NDArray[np.uint8]


def rows(*samples: object) -> list[bytes]:
    return [b"".join(bytes([s]) if isinstance(s, int) else bytes(s) for s in samples)] * SIDE  # type: ignore[call-overload]


def be(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


STEPS = range(SIDE)
PALETTE = chunk(b"PLTE", bytes([250, 10, 20, 30, 240, 50, 60, 70, 230]))

#: A PNG of each kind with the RGB of its pixels 1 and 3, and the alpha there.
PNGS: dict[str, tuple[bytes, list[tuple[int, int, int]], list[int] | None]] = {
    "grey 1 bit": (png(SIDE, SIDE, 1, 0, rows(b"\x35\x55")), [(0, 0, 0), (255, 255, 255)], None),
    "grey 2 bits": (png(SIDE, SIDE, 2, 0, rows(b"\x1b" * 4)), [(85,) * 3, (255,) * 3], None),
    "grey 4 bits": (png(SIDE, SIDE, 4, 0, rows(b"\x01\x23" * 4)), [(17,) * 3, (51,) * 3], None),
    "grey": (png(SIDE, SIDE, 8, 0, rows(*STEPS)), [(1,) * 3, (3,) * 3], None),
    "grey 16 bits": (png(SIDE, SIDE, 16, 0, rows(*(be(i * 257 + 200) for i in STEPS))), [(2,) * 3, (4,) * 3], None),
    "grey, alpha": (png(SIDE, SIDE, 8, 4, rows(*((i, 255 - i) for i in STEPS))), [(1,) * 3, (3,) * 3], [254, 252]),
    "grey, alpha 16 bits": (
        png(SIDE, SIDE, 16, 4, rows(*(be(i * 257, 65535 - i * 257) for i in STEPS))),
        [(1,) * 3, (3,) * 3],
        [254, 252],
    ),
    "grey, a transparent value": (
        png(SIDE, SIDE, 8, 0, rows(*STEPS), chunk(b"tRNS", be(3))),
        [(1,) * 3, (3,) * 3],
        [255, 0],
    ),
    "grey 2 bits, a transparent value": (
        png(SIDE, SIDE, 2, 0, rows(b"\x1b" * 4), chunk(b"tRNS", be(1))),
        [(85,) * 3, (255,) * 3],
        [0, 255],
    ),
    "grey 16 bits, a transparent value": (
        png(SIDE, SIDE, 16, 0, rows(*(be(i * 257) for i in STEPS)), chunk(b"tRNS", be(3 * 257))),
        [(1,) * 3, (3,) * 3],
        [255, 0],
    ),
    "palette": (png(SIDE, SIDE, 8, 3, rows(*(i % 3 for i in STEPS)), PALETTE), [(30, 240, 50), (250, 10, 20)], None),
    "palette 2 bits": (png(SIDE, SIDE, 2, 3, rows(b"\x18" * 4), PALETTE), [(30, 240, 50), (250, 10, 20)], None),
    "palette, alpha": (
        png(SIDE, SIDE, 8, 3, rows(*(i % 3 for i in STEPS)), PALETTE, chunk(b"tRNS", bytes([9, 128]))),
        [(30, 240, 50), (250, 10, 20)],
        [128, 9],
    ),
    "RGB 16 bits": (
        png(SIDE, SIDE, 16, 2, rows(*(be(i * 257 + 127, 300, 65535) for i in STEPS))),
        [(1, 1, 255), (3, 1, 255)],
        None,
    ),
    "RGB, a transparent colour": (
        png(SIDE, SIDE, 8, 2, rows(*((i, 7, 9) for i in STEPS)), chunk(b"tRNS", be(3, 7, 9))),
        [(1, 7, 9), (3, 7, 9)],
        [255, 0],
    ),
    "RGBA": (png(SIDE, SIDE, 8, 6, rows(*((i, 7, 9, 2 * i) for i in STEPS))), [(1, 7, 9), (3, 7, 9)], [2, 6]),
    "RGBA 16 bits": (
        png(SIDE, SIDE, 16, 6, rows(*(be(i * 257, 300, 65535, 514 * i) for i in STEPS))),
        [(1, 1, 255), (3, 1, 255)],
        [2, 6],
    ),
}


@pytest.mark.parametrize("kind", PNGS)
def test_every_kind_of_png_becomes_rgb_and_alpha(kind: str) -> None:
    data, colours, opacities = PNGS[kind]
    rgb, alpha = decode_image(data, "a.png")
    assert rgb.dtype == np.uint8 and rgb.shape == (SIDE, SIDE, 3)
    assert [tuple(rgb[5, x]) for x in (1, 3)] == colours
    assert (None if alpha is None else [int(alpha[5, x]) for x in (1, 3)]) == opacities


def corners(height: int = 32, width: int = 64, *, alpha: bool = False) -> Picture:
    """Four colours, one a quarter; the alpha is another in each."""
    picture = np.zeros((height, width, 4), np.uint8)
    picture[: height // 2, : width // 2] = 200, 0, 0, 255
    picture[: height // 2, width // 2 :] = 0, 200, 0, 190
    picture[height // 2 :, : width // 2] = 0, 0, 200, 120
    picture[height // 2 :, width // 2 :] = 200, 200, 200, 60
    return picture if alpha else np.ascontiguousarray(picture[..., :3])


#: What a viewer does to show a picture of each orientation, in OpenCV's own words.
TURNS = {
    1: lambda p: p,
    2: lambda p: cv2.flip(p, 1),
    3: lambda p: cv2.rotate(p, cv2.ROTATE_180),
    4: lambda p: cv2.flip(p, 0),
    5: lambda p: cv2.transpose(p),
    6: lambda p: cv2.rotate(p, cv2.ROTATE_90_CLOCKWISE),
    7: lambda p: cv2.rotate(cv2.transpose(p), cv2.ROTATE_180),
    8: lambda p: cv2.rotate(p, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", TURNS)
def test_pictures_are_turned_upright_with_their_alpha(orientation: int, order: str) -> None:
    picture = corners(alpha=True)
    want = TURNS[orientation](picture)
    for suffix, options in ((".png", ()), (".webp", (cv2.IMWRITE_WEBP_QUALITY, 101)), (".jpg", ())):
        source = picture if suffix != ".jpg" else corners()
        data = with_exif(encoded(source, suffix, *options), exif(orientation, order))
        rgb, alpha = decode_image(data, "a" + suffix)
        assert rgb.shape == want[..., :3].shape
        off = float(np.abs(rgb.astype(int) - want[..., :3]).mean())
        assert off < 4 if suffix == ".jpg" else off == 0
        assert alpha is None if suffix == ".jpg" else np.array_equal(alpha, want[..., 3])
        # OpenCV itself turns a picture without alpha, in one way or another: the same way.
        assert np.array_equal(rgb, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB))


@pytest.mark.parametrize("tiff", [b"", b"II*\0", exif(6)[:20], exif(99), exif(0), b"II*\0\xff\xff\xff\xff" + bytes(30)])
def test_a_broken_exif_part_leaves_the_picture_as_it_lies(tiff: bytes) -> None:
    rgb, _ = decode_image(with_exif(encoded(corners(), ".png"), tiff), "a.png")
    assert np.array_equal(rgb, corners())


def test_headers_tell_animations_and_inks() -> None:
    picture = corners()
    assert read_header(animated_webp(picture), "a").animated
    assert not read_header(with_exif(encoded(picture, ".webp"), exif(6)), "a").animated
    still = encoded(picture, ".png")
    for frames in (1, 2):
        control = chunk(b"acTL", struct.pack(">II", frames, 0))
        assert read_header(still[:33] + control + still[33:], "a").animated == (frames > 1)
    inks = cmyk_jpeg([np.full((32, 64), value, np.uint8) for value in (10, 90, 170, 250)])
    header = read_header(inks, "a")
    assert (header.kind, header.width, header.height, header.cmyk) == ("jpeg", 64, 32, True)
    assert decode_image(inks, "a")[0].shape == (32, 64, 3)  # a background may be one
    assert not read_header(encoded(picture, ".jpg"), "a").cmyk


def test_headers_that_decoders_could_read_otherwise_are_refused() -> None:
    jpeg, frame = encoded(corners(), ".jpg"), b"\xff\xc0" + struct.pack(">HBHHB", 8, 8, 16, 16, 0)
    hidden = len(frame)
    for data in (
        jpeg[:2] + b"\xff\x01" + jpeg[2:],  # a marker without a length, which would be given the next one's
        jpeg[:2] + b"\xff\xd0" + struct.pack(">H", 2 + hidden) + frame + jpeg[2:],
        jpeg[:2] + b"\xff\xd8" + jpeg[2:],
        jpeg[:2] + b"\xff\xe0\0\1" + jpeg[2:],
        SIGNATURE + chunk(b"tEXt", bytes(13)) + encoded(corners(), ".png")[8:],  # not IHDR
        encoded(corners(), ".png")[:33],
        riff((b"ALPH", bytes(20))),
        b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0",
    ):
        with pytest.raises(MediaError, match="header is broken; use a PNG, JPEG, WebP or BMP file"):
            read_header(data, "a")
    filled = jpeg[:2] + b"\xff" * 5 + jpeg[2:]  # fill bytes are allowed
    assert read_header(filled, "a").width == 64
    assert decode_image(filled, "a")[0].shape == (32, 64, 3)


def test_headers_without_end_are_refused_in_no_time() -> None:
    begun = time.process_time()
    for data in (
        b"\xff\xd8" + b"\xff\xe0\0\x02" * 2_000_000,
        SIGNATURE + chunk(b"IHDR", bytes(13)) + bytes(20_000_000),
    ):
        with pytest.raises(MediaError, match="broken"):
            read_header(data, "a")
    assert time.process_time() - begun < 1


@pytest.mark.parametrize(("width", "height"), [(400, 24), (40, 240), (16, 16), (4096, 4096)])
def test_a_jpeg_whose_header_lies_gives_the_size_it_says_or_an_error(width: int, height: int) -> None:
    data = jpeg_of_size(encoded(corners(), ".jpg"), width, height)
    try:
        rgb, _ = decode_image(data, "a")
    except MediaError as error:
        assert "cannot be decoded" in error.reason
    else:
        assert rgb.shape == (height, width, 3)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.98])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_picture_that_is_cut_off_is_refused(suffix: str, part: float) -> None:
    data = encoded(cv2.resize(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8), (640, 480)), suffix)
    with pytest.raises(MediaError, match="a: the image cannot be decoded"):
        decode_image(data[: int(part * len(data))], "a")


@pytest.mark.parametrize("with_alpha", [False, True])
@pytest.mark.parametrize(("kind", "quality"), [("png", 90), ("jpeg", 95), ("webp", 95), ("webp", 100)])
def test_results_are_files_that_say_the_same(kind: str, quality: int, with_alpha: bool) -> None:
    picture = cv2.resize(corners(alpha=True), (160, 96), interpolation=cv2.INTER_CUBIC)
    rgb, alpha = np.ascontiguousarray(picture[..., :3]), np.ascontiguousarray(picture[..., 3]) if with_alpha else None
    if kind == "jpeg" and with_alpha:
        with pytest.raises(ValueError, match="JPEG has no alpha"):
            encode_still(rgb, alpha, kind, quality)
        return
    data = encode_still(rgb, alpha, kind, quality)
    assert data == encode_still(rgb, alpha, kind, quality)
    assert read_header(data, "a").kind == kind
    found, opacity = decode_image(data, "a")
    exact = kind == "png" or quality == 100
    assert np.abs(found.astype(int) - rgb).mean() <= (0 if exact else 4)
    assert opacity is None if alpha is None else np.array_equal(opacity, alpha)


def test_results_that_cannot_be_are_named() -> None:
    rgb = np.zeros((16, 16384, 3), np.uint8)
    with pytest.raises(MediaError, match=r"result: is 16384x16.*16383 pixels a side.*ask for png"):
        encode_still(rgb, None, "webp")
    for arguments in ((rgb, None, "gif"), (rgb, None, "png", 0), (rgb, rgb, "png"), (rgb[0], None, "png")):
        with pytest.raises(ValueError):
            encode_still(*arguments)  # type: ignore[arg-type]
