"""Backgrounds: covering any shape without distortion, sampled by time, bounded in memory."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from av import VideoFrame
from numpy.typing import NDArray

from actors.video.background import Looped, Still, crop_to_cover, open_background, parse_colour
from actors.video.decode import Decoder
from actors.video.image import read_image
from actors.video.image_header import read_header
from actors.video.limits import Limits
from actors.video.scan import scan
from actors.video.yuv import YuvConverter, plane
from cluster.errors import MediaError, UsageError
from tests.media import Sound, number, write_clip

LIMITS = Limits()


def rgb_of(frame: VideoFrame) -> NDArray[np.uint8]:
    array = frame.to_ndarray(format="rgb24")
    assert array.dtype == np.uint8
    return np.asarray(array, np.uint8)


@pytest.mark.parametrize("target", [(1280, 720), (720, 1280), (640, 640), (320, 240)])
@pytest.mark.parametrize("source", [(1280, 720), (720, 1280), (853, 481), (640, 480)])
def test_a_picture_covers_any_shape_centred_and_round_things_stay_round(
    source: tuple[int, int], target: tuple[int, int]
) -> None:
    picture = np.zeros((source[1], source[0], 3), np.uint8)
    cv2.circle(picture, (source[0] // 2, source[1] // 2), 100, (255, 255, 255), -1, cv2.LINE_AA)
    picture[:2] = picture[-2:] = picture[:, :2] = picture[:, -2:] = 255  # a frame: nothing inside may be empty
    luma = plane(Still(picture, *target).at(0), 0)
    assert luma.shape == (target[1], target[0])
    moments = cv2.moments((luma[8:-8, 8:-8] > 126).astype(np.uint8), binaryImage=True)
    scale = max(target[0] / source[0], target[1] / source[1])
    assert (moments["m10"] / moments["m00"] + 8, moments["m01"] / moments["m00"] + 8) == pytest.approx(
        (target[0] / 2, target[1] / 2), abs=1.5 * max(scale, 1)
    )
    assert moments["mu20"] / moments["mu02"] == pytest.approx(1, abs=0.02)
    assert moments["m00"] == pytest.approx(np.pi * (100 * scale) ** 2, rel=0.02)


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (1080, 1920), (16, 2000)])
def test_the_covering_part_lies_inside_the_picture_and_has_the_shape(width: int, height: int) -> None:
    part = crop_to_cover(np.zeros((481, 853, 3), np.uint8), width, height)
    assert 0 < part.shape[0] <= 481 and 0 < part.shape[1] <= 853
    assert part.shape[0] == 481 or part.shape[1] == 853
    assert abs(part.shape[1] - part.shape[0] * width / height) <= max(1, width / height)


@pytest.mark.parametrize(
    ("spec", "want"),
    [("#20405f", (32, 64, 95)), ("#FFffFF", (255, 255, 255)), ("Black", (0, 0, 0)), ("#123", None), ("beach", None)],
)
def test_colours_are_hex_or_names(spec: str, want: tuple[int, int, int] | None) -> None:
    assert parse_colour(spec) == want


def test_a_colour_is_one_frame_for_all_times(tmp_path: Path) -> None:
    with open_background("#20405f", 64, 48, LIMITS, workdir=tmp_path) as background:
        assert background.at(0) is background.at(1e6)
        want = YuvConverter(64, 48).convert(np.full((48, 64, 3), (32, 64, 95), np.uint8))
        assert all(np.array_equal(plane(background.at(0), i), plane(want, i)) for i in range(3))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
def test_an_image_is_read_and_its_size_known_before(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"back{suffix}"
    cv2.imwrite(str(path), np.full((48, 66, 3), (95, 64, 32), np.uint8))  # BGR
    header = read_header(path.read_bytes(), path.name)
    assert (header.width, header.height) == (66, 48)
    with open_background(path, 64, 48, LIMITS, workdir=tmp_path) as background:
        assert np.abs(rgb_of(background.at(0)).astype(int) - (32, 64, 95)).max() <= 6


def test_a_lossless_webp_s_size_is_known_before(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    cv2.imwrite(str(path), np.zeros((48, 66, 3), np.uint8), [cv2.IMWRITE_WEBP_QUALITY, 101])
    header = read_header(path.read_bytes(), path.name)
    assert (header.width, header.height) == (66, 48)


def test_images_that_are_none_or_too_large_are_refused_before_decoding(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    cv2.imwrite(str(bomb), np.zeros((8, 8, 3), np.uint8))
    data = bytearray(bomb.read_bytes())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    bomb.write_bytes(data)
    with pytest.raises(MediaError, match=r"bomb\.png.*60000x60000"):
        read_image(bomb, LIMITS)
    for name, content in (
        ("empty.png", b""),
        ("text.jpg", b"hello"),
        ("cut.png", bytes(data[:20])),
        ("c.jpg", b"\xff\xd8"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError, match=name):
            read_image(tmp_path / name, LIMITS)


def test_what_is_neither_colour_nor_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="beach"):
        open_background("beach", 64, 48, LIMITS, workdir=tmp_path)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 frames of uneven length, 2 seconds in all, with sound and a late start."""
    path = tmp_path_factory.mktemp("clip") / "back.mkv"
    steps = [50, 110, 80, 90, 60, 110, 90, 70, 100, 80, 90, 70] * 2
    pts = [0, *np.cumsum(steps)[:-1].tolist()]
    write_clip(
        path,
        frames=24,
        width=192,
        height=108,
        pts=pts,
        time_base=Fraction(1, 1000),
        rate=12,
        start=0.5,
        sounds=(Sound(),),
    )
    return path


def shown(frame: VideoFrame) -> int:
    return number(rgb_of(frame))


@pytest.mark.parametrize("cache_bytes", [0, 2**28])
def test_a_video_is_sampled_by_time_and_looped(tmp_path: Path, clip: Path, cache_bytes: int) -> None:
    found = scan(clip, LIMITS, workdir=tmp_path)
    starts = (found.pts - found.pts[0]) * float(found.info.time_base)
    background = Looped(found, Decoder(found, LIMITS), 192, 108, cache_bytes=cache_bytes)
    with background:
        # Forward at another rate than its own, over the end twice, then jumps.
        for when in [*np.arange(0, 2 * found.seconds + 0.3, 1 / 15), 1.9, 0.1, 1.0, found.seconds, 57.25]:
            want = int(np.searchsorted(starts, (when + 1e-6) % found.seconds, side="right")) - 1
            assert shown(background.at(float(when))) == want
        # Exactly at a frame's start that frame is shown, however the seconds were rounded.
        for i, start in enumerate(starts):
            assert shown(background.at(float(start))) == i


def test_frames_that_fit_are_decoded_once(tmp_path: Path, clip: Path) -> None:
    found = scan(clip, LIMITS, workdir=tmp_path)
    with Looped(found, Decoder(found, LIMITS), 64, 36) as background:
        first = [background.at(i / 12) for i in range(24)]
        second = [background.at(found.seconds + i / 12) for i in range(24)]
    assert all(a is b for a, b in zip(first, second, strict=True))


def test_frames_that_do_not_fit_are_not_kept(tmp_path: Path, clip: Path) -> None:
    found = scan(clip, LIMITS, workdir=tmp_path)
    with Looped(found, Decoder(found, LIMITS), 64, 36, cache_bytes=1000) as background:
        first = background.at(0.0)
        assert background.at(0.01) is first  # the same frame is not made twice in a row
        background.at(1.0)
        assert background.at(0.0) is not first


def test_a_video_background_is_opened_by_its_path(tmp_path: Path, clip: Path) -> None:
    with open_background(clip, 192, 108, LIMITS, workdir=tmp_path) as background:
        frame = background.at(0.0)
        assert (frame.format.name, frame.width, frame.height, frame.color_range) == ("yuv420p", 192, 108, 1)
        assert shown(frame) == 0


def test_a_broken_video_background_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(MediaError, match=r"broken\.mp4"):
        open_background(path, 64, 48, LIMITS, workdir=tmp_path)
