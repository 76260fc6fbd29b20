"""RGB to YUV: the right matrix, range and kernels, and an alpha that stays exact."""

from __future__ import annotations

import numpy as np
import pytest
from av.video.reformatter import ColorRange
from numpy.typing import NDArray

from actors.video.yuv import YuvConverter, plane

# BT.709 (ITU-R BT.709-6, 3.2 to 3.4) from R'G'B' in 0..1 to Y', Cb, Cr
_MATRIX = np.array(
    [
        [0.2126, 0.7152, 0.0722],
        [-0.2126 / 1.8556, -0.7152 / 1.8556, 0.5],
        [0.5, -0.7152 / 1.5748, -0.0722 / 1.5748],
    ]
)


def exact_yuv420(rgb: NDArray[np.uint8]) -> list[NDArray[np.float64]]:
    """Limited-range planes in floats, chroma averaged over 2x2."""
    ycc = rgb.astype(np.float64) / 255 @ _MATRIX.T
    height, width = rgb.shape[:2]
    chroma = [128 + 224 * ycc[..., i].reshape(height // 2, 2, width // 2, 2).mean((1, 3)) for i in (1, 2)]
    return [16 + 219 * ycc[..., 0], *chroma]


def chart(width: int = 128, height: int = 96, step: int = 16) -> NDArray[np.uint8]:
    """Patches of many colours, black, white and the primaries among them."""
    colours = np.random.default_rng(7).integers(0, 256, (height // step, width // step, 3), dtype=np.uint8)
    corners = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
    colours.reshape(-1, 3)[: len(corners)] = corners
    return colours.repeat(step, 0).repeat(step, 1)


def psnr(got: NDArray[np.uint8], want: NDArray[np.float64]) -> float:
    return float(10 * np.log10(255**2 / np.mean((got - want) ** 2)))


def test_colours_of_a_chart_are_bt709_limited_within_one_level() -> None:
    rgb = chart()
    frame = YuvConverter(128, 96).convert(rgb)
    for i, want in enumerate(exact_yuv420(rgb)):
        assert np.abs(plane(frame, i) - want).max() <= 1.0


def test_tags_say_bt709_limited() -> None:
    frame = YuvConverter(128, 96).convert(chart())
    assert (frame.colorspace, frame.color_range) == (1, ColorRange.MPEG)
    assert (frame.color_primaries, frame.color_trc) == (1, 1)


def test_chroma_at_coloured_edges_is_the_average_of_its_pixels() -> None:
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[..., 2] = 255
    y, x = np.mgrid[0:64, 0:64]
    rgb[(x - 31) ** 2 + (y - 29) ** 2 < 400] = (255, 0, 0)
    frame = YuvConverter(64, 64).convert(rgb)
    for i, want in enumerate(exact_yuv420(rgb)):
        assert psnr(plane(frame, i), want) > 55


@pytest.mark.parametrize("size", [(256, 192), (192, 144), (64, 48), (100, 76)])
def test_scaling_keeps_flat_colours(size: tuple[int, int]) -> None:
    rgb = np.full((96, 128, 3), (200, 40, 90), np.uint8)
    alpha = np.full((96, 128), 77, np.uint8)
    frame = YuvConverter(*size).convert(rgb, alpha)
    assert (frame.width, frame.height, frame.format.name) == (*size, "yuva420p")
    for i, want in enumerate(exact_yuv420(rgb)):
        assert np.abs(plane(frame, i) - want[0, 0]).max() <= 1.0
    assert np.all(plane(frame, 3) == 77)


def test_reducing_averages_instead_of_picking() -> None:
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[::2] = 255  # lines that a picked sample would turn black or white
    frame = YuvConverter(32, 32).convert(rgb)
    assert np.abs(plane(frame, 0).astype(int) - (16 + 235) // 2).max() <= 2


@pytest.mark.parametrize("size", [(128, 96), (256, 192), (64, 48), (322, 240)])
def test_alpha_is_exact_at_both_ends_and_draws_no_outline(size: tuple[int, int]) -> None:
    alpha = np.zeros((96, 128), np.uint8)
    alpha[20:70, 30:90] = 255
    scaled = plane(YuvConverter(*size).convert(chart(), alpha), 3)
    assert scaled.shape == (size[1], size[0])
    x, y = size[0] / 128, size[1] / 96
    inside = scaled[round(23 * y) : round(67 * y), round(33 * x) : round(87 * x)]
    assert inside.min() == 255
    scaled = scaled.copy()
    scaled[round(17 * y) : round(73 * y), round(27 * x) : round(93 * x)] = 0
    assert scaled.max() == 0


def test_alpha_of_equal_size_is_copied() -> None:
    alpha = np.random.default_rng(1).integers(0, 256, (96, 128), dtype=np.uint8)
    assert np.array_equal(plane(YuvConverter(128, 96).convert(chart(), alpha), 3), alpha)


def test_input_may_be_read_only_and_is_not_changed() -> None:
    rgb, alpha = chart(), np.full((96, 128), 9, np.uint8)
    before = rgb.copy()
    rgb.setflags(write=False)
    alpha.setflags(write=False)
    YuvConverter(256, 192).convert(rgb, alpha)
    assert np.array_equal(rgb, before)


def test_one_converter_takes_frames_of_changing_sizes() -> None:
    converter = YuvConverter(64, 48)
    first = plane(converter.convert(chart()), 0).copy()
    converter.convert(chart(320, 240))
    assert np.array_equal(plane(converter.convert(chart()), 0), first)


@pytest.mark.parametrize("size", [(63, 48), (64, 47), (0, 2)])
def test_odd_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="even"):
        YuvConverter(*size)


def test_alpha_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha"):
        YuvConverter(64, 48).convert(chart(), np.zeros((48, 64), np.uint8))
