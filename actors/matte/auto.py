"""Whether a clip was shot before a green or blue screen, told from the border of one frame."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from actors.frames import UInt8

#: The border is this part of the width at the left and right and of the height at the top. The bottom is left out,
#: and so is the foot of the sides: that is where figures stand and studio floors show.
_STRIP, _FOOT = 1 / 12, 1 / 8
#: Part of the border that must be screen: an arm or a light stand may reach into it.
_COVERED = 0.85
#: Least excess of the primary over the other two channels, of 255, and as a part of the primary itself. Blue must be
#: purer: skies reach 0.4, blue screens start at 0.5; nothing like that competes with green but plants.
_LEAST_EXCESS = 24
_LEAST_PURITY = {"green": 0.25, "blue": 0.45}
#: One paint under any light keeps the ratios of its channels: largest spread (5th to 95th percentile) of the
#: others over the primary.
_LARGEST_SPREAD = 0.3
#: Paint has no texture: largest median step between neighbours, of 255, after reduction. Lawns have 10 and more.
_LARGEST_STEP = 3.0
#: Longest side that the test looks at; reduction takes noise and grain away.
_SIDE = 160


def border_screen(rgb: UInt8) -> Literal["green", "blue"] | None:
    """The screen colour when the border of rgb [H,W,3] is one flat green or blue, however unevenly lit, else None."""
    scale = min(_SIDE / max(rgb.shape[:2]), 1.0)
    size = max(round(rgb.shape[1] * scale), 8), max(round(rgb.shape[0] * scale), 8)
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    border = _border(size)
    if _is_screen(small, border, 1, _LEAST_PURITY["green"]):
        return "green"
    if _is_screen(small, border, 2, _LEAST_PURITY["blue"]):
        return "blue"
    return None


def _border(size: tuple[int, int]) -> NDArray[np.bool_]:
    width, height = size
    border = np.zeros((height, width), np.bool_)
    across, down = max(round(width * _STRIP), 1), max(round(height * _STRIP), 1)
    border[:down] = border[:, :across] = border[:, -across:] = True
    border[height - round(height * _FOOT) :] = False
    return border


def _is_screen(small: NDArray[np.float32], border: NDArray[np.bool_], primary: int, purity: float) -> bool:
    own = small[..., primary]
    others = np.delete(small, primary, axis=2)
    excess = own - others.max(2)
    screen = border & (excess >= _LEAST_EXCESS) & (excess >= purity * own)
    if screen.sum() < _COVERED * border.sum():
        return False
    ratios = others[screen] / own[screen][:, None]
    low, high = np.percentile(ratios, (5, 95), axis=0)
    step = np.abs(np.diff(own, axis=1))[screen[:, 1:] & screen[:, :-1]]
    return bool((high - low).max() <= _LARGEST_SPREAD and np.median(step) <= _LARGEST_STEP)
