"""Green- and blue-screen keying by colour difference, against the screen's own colour at each place.

The screen's excess of its primary over the larger of the other two falls linearly to zero as the figure covers it
(Vlahos's colour-difference key). Divided by the excess of the bare screen nearby, it is the screen's share of the
pixel whatever the light; chroma distances are four times worse on compressed 4:2:0 video.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from actors.frames import Carry, FrameBatch, UInt8
from cluster.errors import UsageError

Float = NDArray[np.float32]
Screen = Literal["green", "blue"]

#: Channel of each screen colour's primary.
_PRIMARY: Mapping[Screen, int] = {"green": 1, "blue": 2}
#: The screen's share of a pixel below which it is all figure, and above which it is all screen: what noise and
#: compression add to a neutral figure and take from a bare screen.
_LOW, _HIGH = 0.04, 0.94
#: The screen is modelled at this fraction of the frame's size; light varies slowly.
_SHRINK = 8
#: Least excess, of 255, of anything that may be screen.
_LEAST = 24
#: Radii in model pixels over which the screen's colour is averaged; the next one only where the one before saw
#: none. The last reaches behind any figure.
_RADII = (4, 16, 64, 256)


@dataclass(frozen=True, slots=True)
class _Model:
    """The bare screen at 1/8 size: colour [h,w,3] and 1 / excess [h,w]."""

    colour: Float
    per_excess: Float


class Chroma:
    """Alpha and despilled, un-mixed foreground before a green or blue screen. Stateless.

    A frame without any screen colour is all figure: alpha 255, colours untouched.

    Params:
        screen: `green`, `blue`, or `auto` (default): whichever covers more of the frame, frame by frame.
    """

    def __call__(self, batch: FrameBatch, carry: Carry, params: Mapping[str, Any]) -> tuple[FrameBatch, Carry]:  # noqa: ARG002
        wanted = params.get("screen", "auto")
        if wanted not in ("auto", *_PRIMARY):
            raise UsageError("screen", f"{wanted!r} is not a screen colour", remedy="choose green, blue or auto")
        rgb, alpha = np.empty_like(batch.rgb), np.empty(batch.rgb.shape[:3], np.uint8)
        for index, frame in enumerate(batch.rgb):
            rgb[index], alpha[index] = key(frame, wanted)
        return batch.with_pixels(rgb, alpha), {}


def key(rgb: UInt8, screen: Screen | Literal["auto"] = "auto") -> tuple[UInt8, UInt8]:
    """Foreground [H,W,3] and alpha [H,W] of one frame [H,W,3]."""
    height, width = rgb.shape[:2]
    grid = max(width // _SHRINK, 1), max(height // _SHRINK, 1)
    small = cv2.resize(rgb, grid, interpolation=cv2.INTER_AREA)
    primary = _PRIMARY[screen] if screen != "auto" else _larger_screen(small)
    model = _screen_model(small, primary)
    if model is None:
        return rgb.copy(), np.full((height, width), 255, np.uint8)

    planes = list(cv2.split(rgb))
    others = cv2.max(*(plane for channel, plane in enumerate(planes) if channel != primary))
    excess = cv2.subtract(planes[primary], others)
    share = cv2.multiply(excess, cv2.resize(model.per_excess, (width, height)), dtype=cv2.CV_32F)
    gain = 255 / (_HIGH - _LOW)
    # saturate(255 - gain * (share - LOW)): convertScaleAbs and friends would round twice
    alpha = cv2.addWeighted(share, -gain, share, 0, 255 + gain * _LOW, dtype=cv2.CV_8U)
    planes[primary] = cv2.min(planes[primary], others)  # despill
    return _unmix(rgb, cv2.merge(planes), alpha, model, primary), alpha


def _excess(rgb: UInt8, primary: int) -> UInt8:
    planes = cv2.split(rgb)
    others = [plane for channel, plane in enumerate(planes) if channel != primary]
    excess: UInt8 = cv2.subtract(planes[primary], cv2.max(*others))
    return excess


def _larger_screen(small: UInt8) -> int:
    """The primary whose screen covers more of the frame."""
    return max(_PRIMARY.values(), key=lambda primary: int((_excess(small, primary) >= _LEAST).sum()))


def _screen_model(small: UInt8, primary: int) -> _Model | None:
    """The screen behind everything, or None where there is no screen."""
    excess = _excess(small, primary)
    candidates = excess[excess >= _LEAST]
    if candidates.size == 0:
        return None
    # First what may be screen anywhere, then what is near the screen's own excess here: soft edges drop out.
    loose = (excess >= max(0.5 * float(np.median(candidates)), _LEAST)).astype(np.float32)
    values = np.dstack([small, excess]).astype(np.float32)
    first = _spread(values, loose)
    bare = loose * (excess >= 0.85 * first[..., 3])
    bare = cv2.erode(bare, np.ones((3, 3), np.uint8)) if bare.sum() > 0.05 * bare.size else bare
    if not bare.any():
        bare = loose
    local = _spread(values, bare)
    return _Model(np.ascontiguousarray(local[..., :3]), 1 / np.maximum(local[..., 3], 1))


def _spread(values: Float, sure: Float) -> Float:
    """Mean of the sure values around each place; farther ones where there are none near."""
    total, count, weight = np.zeros_like(values), np.zeros_like(sure), 1.0
    values = values * sure[..., None]
    for radius in _RADII:
        side = (2 * radius + 1, 2 * radius + 1)
        total += weight * cv2.blur(values, side)
        count += weight * cv2.blur(sure, side)
        weight *= 1e-3
    return total / np.maximum(count, 1e-20)[..., None]


def _unmix(rgb: UInt8, despilled: UInt8, alpha: UInt8, model: _Model, primary: int) -> UInt8:
    """Removes the screen's share from half-covered pixels; everything else stays as despilled.

    Bare screen keeps its despilled grey and is not zeroed: 4:2:0 chroma mixes neighbours whatever their alpha is.
    """
    soft = np.flatnonzero(cv2.inRange(alpha, 1, 254))
    if soft.size:
        height, width = alpha.shape
        a = alpha.reshape(-1)[soft].astype(np.float32)[:, None] / 255
        behind = _sample(model.colour, soft, width, height)
        own = (rgb.reshape(-1, 3)[soft] - (1 - a) * behind) / np.maximum(a, 0.1)
        others = np.delete(own, primary, axis=1).max(1)
        own[:, primary] = np.minimum(own[:, primary], others)
        despilled.reshape(-1, 3)[soft] = np.rint(np.clip(own, 0, 255)).astype(np.uint8)
    return despilled


def _sample(field: Float, index: NDArray[np.intp], width: int, height: int) -> Float:
    """A model field [h,w,3] at flat pixel indices, nearest: it varies by less than a level between its cells."""
    rows, columns = np.divmod(index, width)
    h, w = field.shape[:2]
    sampled: Float = field[rows * h // height, columns * w // width]
    return sampled
