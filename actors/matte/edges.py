"""Clean edges without a network: alpha and foreground colour of the pixels where person and background mix.

Near an edge every pixel is I = alpha F + (1 - alpha) B. Sure pixels close by tell F and B; where these differ
clearly, I's place on the line between them is alpha (the projection step of Bayesian matting, Chuang et al., 2001).
Where they do not, alpha stays what it was. All functions are pure, per frame, and deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from actors.frames import UInt8

Float = NDArray[np.float32]

#: Longest side of the grid on which masks and local colours are computed; colours vary slowly, and an edge is
#: uncertain over about one cell of a segmenter's 256x256 output.
_GRID = 256
#: Cells from a segmenter's edge to pixels that are surely person, or surely background (hair reaches outwards).
_INSIDE, _OUTSIDE = 2, 3
#: Window radii in cells for local colours; the next one counts only where the one before saw no sure pixel.
_RADII = (3, 8, 24, 96)
#: Colour distance (of 255) between F and B at which projection and segmenter are trusted equally, squared.
_CLEAR2 = 30.0**2
#: How much a textured background or person counts against the projection.
_BACKGROUND_TEXTURE, _PERSON_TEXTURE = 10.0, 1.0


@dataclass(frozen=True, slots=True)
class _Colours:
    """Local mean colour [h,w,3] and variance (summed over channels) [h,w] of a frame's sure pixels."""

    mean: Float
    variance: Float


def refine(rgb: UInt8, probability: Float) -> tuple[UInt8, UInt8]:
    """Turns a coarse segmentation into a matte.

    Args:
        rgb: frame [H,W,3].
        probability: of a person, [h,w] of any size, covering the frame.

    Returns:
        Foreground [H,W,3], with the background's colour taken out of the edges, and alpha [H,W].
    """
    height, width = rgb.shape[:2]
    grid = _grid_size(width, height)
    small = cv2.resize(rgb, grid, interpolation=cv2.INTER_AREA).astype(np.float32)
    coarse = cv2.resize(probability, grid, interpolation=cv2.INTER_LINEAR)
    person = (coarse > 0.9).astype(np.float32)
    maybe = (coarse > 0.1).astype(np.float32)
    inside = cv2.erode(person, _disc(_INSIDE))
    reach = cv2.dilate(maybe, _disc(_OUTSIDE))
    f = _local_colours(small, inside)
    b = _local_colours(small, 1 - reach)

    # Bounds that close the band softly: 1 once well inside the person, 0 at the band's outer end.
    size = (width, height)
    least = cv2.resize(_ramp(person, _INSIDE), size, interpolation=cv2.INTER_LINEAR)
    most = cv2.resize(_ramp(reach, _OUTSIDE), size, interpolation=cv2.INTER_LINEAR)
    alpha = least.copy()
    band = np.flatnonzero((most > 0) & (least < 1))
    if band.size:
        prior = cv2.resize(probability, size, interpolation=cv2.INTER_LINEAR).reshape(-1)[band]
        pixels = rgb.reshape(-1, 3)[band].astype(np.float32)
        mixed = _project(pixels, prior, _at(f.mean, size, band), _at(b.mean, size, band), _texture(f, b, size, band))
        alpha.reshape(-1)[band] = np.clip(mixed, least.reshape(-1)[band], most.reshape(-1)[band])
    alpha8 = _to_uint8(alpha * 255)
    return _unmix(rgb, alpha8, f.mean, b.mean), alpha8


def decontaminate(rgb: UInt8, alpha: UInt8) -> UInt8:
    """Takes the old background's colour out of the half-transparent pixels of rgb [H,W,3] under alpha [H,W]."""
    height, width = alpha.shape
    grid = _grid_size(width, height)
    small = cv2.resize(rgb, grid, interpolation=cv2.INTER_AREA).astype(np.float32)
    cover = cv2.resize(alpha, grid, interpolation=cv2.INTER_AREA)
    f = _local_colours(small, (cover >= 250).astype(np.float32))
    b = _local_colours(small, (cover <= 5).astype(np.float32))
    return _unmix(rgb, alpha, f.mean, b.mean)


def _grid_size(width: int, height: int) -> tuple[int, int]:
    scale = min(_GRID / max(width, height), 1.0)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _disc(radius: int) -> UInt8:
    disc: UInt8 = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return disc


def _ramp(mask: Float, radius: int) -> Float:
    """0 outside and at the edge of a 0/1 mask, rising to 1 at `radius` cells inside."""
    side = 2 * radius + 1
    ramp: Float = np.clip(2 * cv2.blur(mask, (side, side)) - 1, 0, 1)
    return ramp


def _local_colours(small: Float, sure: Float) -> _Colours:
    """Colours of the sure pixels near each cell, by normalised box filters of growing size."""
    values = np.dstack([small, (small * small).sum(2)]) * sure[..., None]
    total, count = np.zeros_like(values), np.zeros_like(sure)
    share = 1.0
    for radius in _RADII:
        side = (2 * radius + 1, 2 * radius + 1)
        total += share * cv2.blur(values, side)
        count += share * cv2.blur(sure, side)
        share *= 1e-2
    seen = count > 1e-8
    mean = total / np.where(seen, count, 1)[..., None]
    # A frame with no sure pixel within reach: the frame's own colour, so that nothing is un-mixed there.
    mean[~seen, :3] = small[~seen]
    mean[~seen, 3] = (small[~seen] ** 2).sum(1)
    variance = np.maximum(mean[..., 3] - (mean[..., :3] ** 2).sum(2), 0)
    return _Colours(np.ascontiguousarray(mean[..., :3]), variance)


def _at(field: Float, size: tuple[int, int], index: NDArray[np.intp]) -> Float:
    """A grid field enlarged to the frame, at the flat pixel indices."""
    full: Float = cv2.resize(field, size, interpolation=cv2.INTER_LINEAR)
    return full.reshape(-1, 3)[index] if field.ndim == 3 else full.reshape(-1)[index]


def _texture(f: _Colours, b: _Colours, size: tuple[int, int], index: NDArray[np.intp]) -> Float:
    return _at(_BACKGROUND_TEXTURE * b.variance + _PERSON_TEXTURE * f.variance, size, index)


def _project(pixels: Float, prior: Float, f: Float, b: Float, texture: Float) -> Float:
    """Alpha of N pixels [N,3] from their place between b and f, mixed with the prior by how clear that place is."""
    line = f - b
    length2 = (line * line).sum(1)
    offset = pixels - b
    place = (offset * line).sum(1) / (length2 + 1e-3)
    aside = offset - place[:, None] * line
    trust = length2 / (length2 + _CLEAR2 + texture) * np.exp(-(aside * aside).sum(1) / (0.5 * length2 + 1))
    return trust * np.clip(place, 0, 1) + (1 - trust) * prior  # type: ignore[no-any-return]


def _unmix(rgb: UInt8, alpha: UInt8, f: Float, b: Float) -> UInt8:
    """Replaces soft pixels by their foreground: I un-mixed with alpha, and the less of it there is, the more F.

    Transparent pixels beside soft ones get F too: 4:2:0 chroma and scaling mix neighbours whatever their alpha is.
    """
    size = (rgb.shape[1], rgb.shape[0])
    near = cv2.dilate((alpha > 0).astype(np.uint8), np.ones((5, 5), np.uint8))
    index = np.flatnonzero((near > 0) & (alpha < 255))
    out = rgb.copy()
    if index.size:
        a = (alpha.reshape(-1)[index].astype(np.float32) / 255)[:, None]
        own, old = _at(f, size, index), _at(b, size, index)
        pixels = rgb.reshape(-1, 3)[index].astype(np.float32)
        unmixed = np.clip((pixels - (1 - a) * old) / np.maximum(a, 0.05), 0, 255)
        out.reshape(-1, 3)[index] = _to_uint8(own + a * (unmixed - own))
    return out


def _to_uint8(x: NDArray[np.floating[Any]]) -> UInt8:
    levels: UInt8 = np.rint(np.clip(x, 0, 255)).astype(np.uint8)
    return levels
