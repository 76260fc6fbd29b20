"""What is behind and what is in front in a green- or blue-screen frame, modelled on a coarse grid.

Light and colours vary slowly, so the grid has 1/8 of the frame's size: a blur that reaches behind a figure costs 120 ms
at full size and less than one here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from actors.frames import UInt8

Float = NDArray[np.float32]
Screen = Literal["green", "blue"]

#: Channel of each screen colour's primary.
PRIMARY: Mapping[Screen, int] = {"green": 1, "blue": 2}
#: The screen's share of a pixel below which it is all figure, and above which it is all screen: what noise and
#: compression add to a neutral figure and take from a bare screen.
LOW, HIGH = 0.04, 0.94
SHRINK = 8

#: Least excess, of 255, of anything that may be screen.
_LEAST = 24
#: Radii in model pixels over which the screen's colour and the figure's are averaged; the next one counts only where
#: the one before saw none.
_SCREEN_RADII = (4, 16)
_FIGURE_RADII = (3, 8)
#: How much a figure of several colours counts against its mean, and the squared colour distance (of 255) between
#: figure and screen at which that line is trusted by half.
_VARIETY, _CLEAR2 = 10.0, 30.0**2


@dataclass(frozen=True, slots=True)
class ScreenModel:
    """What is behind and what is in front around each place, at 1/8 size.

    Attributes:
        screen: the bare screen's colour [h,w,3].
        excess: the bare screen's excess [h,w], at least 1.
        figure: the figure's colour [h,w,3].
        trust: 0..1 [h,w], how clearly the figure's colour differs from the screen's and how much it is one colour.
        solid: 1 well inside the figure [h,w], else 0.
    """

    screen: Float
    excess: Float
    figure: Float
    trust: Float
    solid: Float


def shrunk(rgb: UInt8) -> UInt8:
    """A frame [H,W,3] at the grid's size [h,w,3]."""
    grid = max(rgb.shape[1] // SHRINK, 1), max(rgb.shape[0] // SHRINK, 1)
    small: UInt8 = cv2.resize(rgb, grid, interpolation=cv2.INTER_AREA)
    return small


def others(planes: Sequence[UInt8], primary: int, dst: UInt8 | None = None) -> UInt8:
    """The larger of the two channels that are not the primary."""
    a, b = (plane for channel, plane in enumerate(planes) if channel != primary)
    larger: UInt8 = cv2.max(a, b, dst=dst)
    return larger


def _excess(rgb: UInt8, primary: int) -> Float:
    """Of the primary over the larger of the other two [H,W], -255..255."""
    planes = cv2.split(rgb)
    excess: Float = cv2.subtract(planes[primary], others(planes, primary), dtype=cv2.CV_32F)
    return excess


def larger_screen(small: UInt8) -> int:
    """The primary whose screen covers more of the frame."""
    return max(PRIMARY.values(), key=lambda primary: int((_excess(small, primary) >= _LEAST).sum()))


def screen_model(small: UInt8, primary: int) -> ScreenModel | None:
    """The screen behind everything, or None where there is no screen."""
    excess = _excess(small, primary)
    candidates = excess[excess >= _LEAST]
    if candidates.size == 0:
        return None
    # First what may be screen anywhere, then what is near the screen's own excess here: soft edges drop out.
    loose = (excess >= max(0.5 * float(np.median(candidates)), _LEAST)).astype(np.float32)
    first = _spread(excess[..., None], loose, _SCREEN_RADII, everywhere=True)
    bare = loose * (excess >= 0.85 * first[..., 0])
    inner = cv2.erode(bare, np.ones((3, 3), np.uint8))
    screen = _spread(
        np.dstack([small, excess]), inner if inner.sum() > 0.05 * inner.size else bare, _SCREEN_RADII, everywhere=True
    )

    figure = (excess < LOW * screen[..., 3]).astype(np.float32)
    inside = cv2.erode(figure, np.ones((3, 3), np.uint8))
    own = _spread(np.dstack([small, (small.astype(np.float32) ** 2).sum(2)]), inside, _FIGURE_RADII, everywhere=False)
    variety = np.maximum(own[..., 3] - (own[..., :3] ** 2).sum(2), 0)
    length2 = ((own[..., :3] - screen[..., :3]) ** 2).sum(2)
    trust = length2 / (length2 + _VARIETY * variety + _CLEAR2)
    return ScreenModel(
        screen=screen[..., :3],
        excess=np.maximum(screen[..., 3], 1),
        figure=own[..., :3],
        trust=np.where(own[..., 3] > 0, trust, 0).astype(np.float32),
        solid=inside,
    )


def _spread(values: NDArray[Any], sure: Float, radii: Sequence[int], *, everywhere: bool) -> Float:
    """Mean of the sure values around each place; farther ones only where there are none near.

    Places out of all reach get the mean of all sure values if `everywhere`, else 0.
    """
    values = (values * sure[..., None]).astype(np.float32)
    total, count, weight = np.zeros_like(values), np.zeros_like(sure), 1.0
    for radius in radii:
        side = (2 * radius + 1, 2 * radius + 1)
        total += weight * cv2.blur(values, side).reshape(total.shape)  # OpenCV drops a last axis of one
        count += weight * cv2.blur(sure, side)
        weight *= 1e-3
    if everywhere:
        total += weight * values.mean((0, 1))
        count += weight * sure.mean()
    mean: Float = np.divide(total, np.maximum(count, 1e-20)[..., None], dtype=np.float32)
    return mean
