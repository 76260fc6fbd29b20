"""Round, lit shapes with exact edges: what the demo's figure is made of."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Point = NDArray[np.float64]
Colour = tuple[float, float, float]
Float = NDArray[np.float32]

#: Where the light comes from: above, a little left, from the viewer's side.
_LIGHT = np.array([-0.42, -0.62, 0.66], np.float32)
_AMBIENT, _DIFFUSE, _GLOSS = 0.52, 0.56, 0.10


class Canvas:
    """A figure on nothing: premultiplied colours float32 [3,H,W] of 0..255 and coverage float32 [H,W] of 0..1."""

    def __init__(self, width: int, height: int) -> None:
        self.colours = np.zeros((3, height, width), np.float32)
        self.cover = np.zeros((height, width), np.float32)

    def limb(self, a: Point, b: Point, radius_a: float, radius_b: float, colour: Colour) -> None:
        """A round limb from a to b, shaded as if it were solid; points and radii in pixels."""
        reach = max(radius_a, radius_b) + 2
        low = np.floor(np.minimum(a, b) - reach).astype(int)
        high = np.ceil(np.maximum(a, b) + reach).astype(int)
        height, width = self.cover.shape
        left, top = max(low[0], 0), max(low[1], 0)
        right, bottom = min(high[0], width), min(high[1], height)
        if right <= left or bottom <= top:
            return
        y, x = np.mgrid[top:bottom, left:right].astype(np.float32) + 0.5
        along = b - a
        px, py = x - np.float32(a[0]), y - np.float32(a[1])
        length2 = max(float(along @ along), 1e-6)
        h = np.clip((px * np.float32(along[0]) + py * np.float32(along[1])) / np.float32(length2), 0, 1)
        radius = np.float32(radius_a) + h * np.float32(radius_b - radius_a)
        nx = (px - h * np.float32(along[0])) / radius
        ny = (py - h * np.float32(along[1])) / radius
        flat2 = nx * nx + ny * ny
        cover = np.clip((1 - np.sqrt(flat2)) * radius + 0.5, 0, 1)
        nz = np.sqrt(np.clip(1 - flat2, 0, 1))
        facing = np.clip(nx * _LIGHT[0] + ny * _LIGHT[1] + nz * _LIGHT[2], 0, 1)
        light = np.float32(_AMBIENT) + np.float32(_DIFFUSE) * facing
        narrow = (facing * facing * facing) ** 2
        gloss = np.float32(255 * _GLOSS) * narrow * narrow
        shaded = np.minimum(light * np.array(colour, np.float32)[:, None, None] + gloss, 255)
        self._over(left, top, np.asarray(shaded, np.float32), np.asarray(cover, np.float32))

    def strands(self, lines: Sequence[Sequence[Point]] | Point, thickness: int, colour: Colour) -> None:
        """Thin curves, as hair is drawn."""
        mask = np.zeros(self.cover.shape, np.uint8)
        cv2.polylines(mask, [_fixed(line) for line in lines], False, 255, thickness, cv2.LINE_AA, _SHIFT)
        x, y, w, h = cv2.boundingRect(mask)
        if w and h:
            cover: Float = mask[y : y + h, x : x + w].astype(np.float32) / np.float32(255)
            self._over(x, y, np.array(colour, np.float32)[:, None, None], cover)

    def _over(self, left: int, top: int, colours: NDArray[np.float32], cover: Float) -> None:
        h, w = cover.shape
        at = (slice(top, top + h), slice(left, left + w))
        # Premultiplied: what lies below is dimmed by what covers it.
        below = 1 - cover
        self.colours[:, *at] *= below
        self.colours[:, *at] += colours * cover
        self.cover[at] = self.cover[at] * below + cover


#: Fractional bits of the coordinates that OpenCV draws with.
_SHIFT = 4


def _fixed(points: Sequence[Point] | Point) -> NDArray[np.int32]:
    return np.rint(np.array(points) * (1 << _SHIFT)).astype(np.int32).reshape(-1, 1, 2)
