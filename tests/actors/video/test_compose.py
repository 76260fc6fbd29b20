"""Composing: as good as a blend in floats, at the right times, and the same for any chunking."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from av import VideoFrame
from numpy.typing import NDArray

from actors.frames import FrameBatch
from actors.video.background import Background, Still
from actors.video.compose import Composer
from actors.video.yuv import YuvConverter, plane
from tests.actors.video.test_yuv import chart, exact_yuv420, psnr
from tests.media import draw

SIZE = 128, 96


class Numbered(Background):
    """Shows the number of tenths of a second as its grey level, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def at(self, seconds: float) -> VideoFrame:
        self.asked.append(seconds)
        return YuvConverter(*SIZE).convert(np.full((4, 4, 3), round(seconds * 10), np.uint8))


def batch(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8] | None = None, first: int = 0) -> FrameBatch:
    count = len(rgb)
    return FrameBatch(rgb, np.arange(first, first + count) * 100, np.zeros(count, bool), alpha)


def planes(frames: Sequence[VideoFrame]) -> list[list[NDArray[np.uint8]]]:
    return [[plane(frame, i).copy() for i in range(3)] for frame in frames]


def soft_alpha(width: int = 128, height: int = 96) -> NDArray[np.uint8]:
    alpha = np.zeros((height, width), np.uint8)
    cv2.circle(alpha, (width // 2, height // 2), height // 3, 255, -1)
    return cv2.GaussianBlur(alpha, (0, 0), 3)


def test_soft_edges_match_a_blend_in_floats() -> None:
    alpha = soft_alpha()
    red = np.full((96, 128, 3), (220, 20, 20), np.uint8)
    blue = np.full((96, 128, 3), (20, 20, 220), np.uint8)
    (frame,) = Composer(*SIZE, Still(blue, *SIZE)).compose(batch(red[None], alpha[None]), [0.0])
    weight = alpha[..., None] / 255
    want = exact_yuv420(red * weight + blue * (1 - weight))
    edge = (alpha > 0) & (alpha < 255)
    for i, least in enumerate((54, 52, 52)):
        mask = edge if i == 0 else edge[::2, ::2]
        assert psnr(plane(frame, i)[mask], want[i][mask]) > least


def test_alpha_0_shows_the_background_and_255_the_figure_exactly() -> None:
    rgb, back = chart(), np.ascontiguousarray(chart()[::-1])
    figure, behind = (YuvConverter(*SIZE).convert(p) for p in (rgb, back))
    for value, want in ((0, behind), (255, figure)):
        alpha = np.full((1, 96, 128), value, np.uint8)
        (frame,) = Composer(*SIZE, Still(back, *SIZE)).compose(batch(rgb[None], alpha), [0.0])
        assert all(np.array_equal(plane(frame, i), plane(want, i)) for i in range(3))


def test_colours_hidden_by_alpha_do_not_bleed() -> None:
    alpha = np.zeros((96, 128), np.uint8)
    alpha[:, 64:] = 255
    rgb = np.where(alpha[..., None] > 0, np.uint8(200), np.array([255, 0, 255], np.uint8)).astype(np.uint8)
    (frame,) = Composer(*SIZE, Still(np.full((2, 2, 3), 90, np.uint8), *SIZE)).compose(
        batch(rgb[None], alpha[None]), [0]
    )
    assert abs(int(plane(frame, 1)[40, 10]) - 128) <= 1
    assert abs(int(plane(frame, 2)[40, 10]) - 128) <= 1


@pytest.mark.parametrize("sizes", [[7], [1] * 7, [3, 3, 1], [2, 5]])
def test_any_chunking_gives_the_same_bytes_and_times(sizes: list[int]) -> None:
    rgb = np.stack([draw(i, 64, 48) for i in range(7)])
    alpha = np.stack([np.roll(soft_alpha(64, 48), i, 1) for i in range(7)])
    seconds = [i / 10 for i in range(7)]
    want = list(Composer(*SIZE, Numbered()).compose(batch(rgb, alpha), seconds))
    composer = Composer(*SIZE, Numbered())
    got: list[VideoFrame] = []
    for size in sizes:
        at = len(got)
        part = batch(rgb[at : at + size], alpha[at : at + size], at)
        got += composer.compose(part, seconds[at : at + size])
        assert len(got) == at + size  # nothing is held back for the next batch
    assert [f.pts for f in got] == [i * 100 for i in range(7)]
    for a, b in zip(planes(got), planes(want), strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_background_is_asked_for_each_frame_s_own_time() -> None:
    background = Numbered()
    rgb, alpha = np.zeros((3, 96, 128, 3), np.uint8), np.zeros((3, 96, 128), np.uint8)
    frames = list(Composer(*SIZE, background).compose(batch(rgb, alpha), [0.0, 3.3, 12.5]))
    assert background.asked == [0.0, 3.3, 12.5]
    levels = [plane(frame, 0)[0, 0] for frame in frames]
    assert [round((int(v) - 16) * 255 / 219) for v in levels] == pytest.approx([0, 33, 125], abs=1)


def test_a_shared_background_frame_is_never_changed() -> None:
    background = Still(chart(), *SIZE)
    before = plane(background.at(0), 0).copy()
    rgb = np.zeros((4, 96, 128, 3), np.uint8)
    list(Composer(*SIZE, background).compose(batch(rgb, np.full((4, 96, 128), 128, np.uint8)), [0.0] * 4))
    assert np.array_equal(plane(background.at(0), 0), before)


def test_without_alpha_the_frame_is_converted_alone() -> None:
    want = YuvConverter(*SIZE).convert(chart())
    for background in (None, Still(np.zeros((2, 2, 3), np.uint8), *SIZE)):
        (frame,) = Composer(*SIZE, background).compose(batch(chart()[None]), [0.0])
        assert frame.format.name == "yuv420p"
        assert all(np.array_equal(plane(frame, i), plane(want, i)) for i in range(3))


def test_composed_frames_are_tagged_bt709_limited() -> None:
    alpha = np.full((1, 96, 128), 128, np.uint8)
    (frame,) = Composer(*SIZE, Still(chart(), *SIZE)).compose(batch(chart()[None], alpha), [0.0])
    assert frame.format.name == "yuv420p"
    assert (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == (1, 1, 1, 1)


def test_alpha_without_a_background_is_an_error() -> None:
    alpha = np.zeros((1, 96, 128), np.uint8)
    with pytest.raises(ValueError, match="background"):
        list(Composer(*SIZE, None).compose(batch(chart()[None], alpha), [0.0]))
