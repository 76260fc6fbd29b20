"""The demo's background: a dance floor under moving lights. All of it repeats after the loop's length: no seam."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from actors.video.encode import EncoderSettings, SegmentWriter
from actors.video.yuv import YuvConverter

WIDTH, HEIGHT, RATE = 540, 960, 25
FRAMES = 4 * RATE
_HORIZON = 0.70
_BEATS_PER_LOOP = 10
_TILES = 30
_PALETTE = np.array([(196, 40, 140), (70, 60, 210), (30, 140, 200), (220, 110, 50), (130, 50, 200)], np.float32)
#: Soft lights are drawn at a quarter of the size and enlarged.
_SOFT = 4

Float = NDArray[np.float32]


def write_stage(target: Path, *, frames: int = FRAMES) -> None:
    """Draws the loop and encodes it, without sound."""
    convert = YuvConverter(WIDTH, HEIGHT)
    settings = EncoderSettings(crf=18, preset="veryfast")
    with SegmentWriter(target, WIDTH, HEIGHT, Fraction(RATE), Fraction(1, RATE), settings) as writer:
        for index, rgb in enumerate(pictures(range(frames))):
            writer.write(convert.convert(rgb), index)


def pictures(indices: Iterable[int]) -> Iterator[NDArray[np.uint8]]:
    """These frames of the loop, uint8 [H,W,3]."""
    wall, floor, tiles = _wall(), _floor_light(), _tiles()
    dither = np.random.default_rng(1).uniform(-0.5, 0.5, (HEIGHT, WIDTH, 1)).astype(np.float32)
    for index in indices:
        phase = 2 * np.pi * index / FRAMES
        soft = cv2.resize(_beams(phase) + _discs(phase), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        picture = wall + soft + floor * _colours(phase)[tiles]
        yield np.clip(picture + dither, 0, 255).astype(np.uint8)


def _wall() -> Float:
    """A dusk gradient [H,W,3], darker at the edges, with a band of glow where it meets the floor."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    v, u = y / HEIGHT, x / WIDTH - 0.5
    top, low = np.array([22, 14, 58], np.float32), np.array([96, 34, 112], np.float32)
    mix = np.clip(v / _HORIZON, 0, 1)[..., None] ** 1.6
    wall = top + (low - top) * mix
    glow = np.exp(-(((v - _HORIZON) / 0.07) ** 2))[..., None] * np.array([120, 56, 84], np.float32)
    shade = np.where(v > _HORIZON, 0.42, 1.0)[..., None] * (1 - 0.9 * u**2)[..., None]
    return np.asarray((wall + glow) * shade, np.float32)


def _tiles() -> NDArray[np.intp]:
    """For each pixel the number of its tile [H,W], 0 above the floor: a chequered floor in perspective."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    depth = np.maximum(y / HEIGHT - _HORIZON, 1e-3)
    column = np.floor((x / WIDTH - 0.5) * 0.42 / depth + 32.5).astype(np.intp)
    row = np.floor(0.55 / depth).astype(np.intp)
    tile = 1 + (column * 7 + row * 13 + (column * row) % 5) % _TILES
    return np.where(y / HEIGHT > _HORIZON, tile, 0)


def _floor_light() -> Float:
    """How much of a tile's colour shows [H,W,1]: little in joints, none at the horizon, where tiles would flicker."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    depth = np.maximum(y / HEIGHT - _HORIZON, 1e-3)
    column, row = (x / WIDTH - 0.5) * 0.42 / depth + 32.5, 0.55 / depth
    joints = np.minimum(_joint(column, 0.04), _joint(row, 0.06))
    fade = np.clip((depth - 0.02) / 0.16, 0, 1)
    light: Float = (joints * fade * (1 - 1.2 * (x / WIDTH - 0.5) ** 2))[..., None].astype(np.float32)
    return light


def _joint(place: Float, width: float) -> Float:
    near = np.abs(place - np.round(place))
    seen: Float = np.clip(near / width, 0.25, 1).astype(np.float32)
    return seen


def _colours(phase: float) -> Float:
    """Colour of each tile number at a time [n,3]; number 0 is black."""
    tile = np.arange(_TILES + 1)
    pulse = 0.5 + 0.5 * np.cos(_BEATS_PER_LOOP * phase + np.pi * (tile % 2))
    drift = 0.5 + 0.5 * np.sin(phase + 1.7 * tile)
    level = (0.25 + 0.5 * pulse + 0.25 * drift)[:, None] * _PALETTE[tile % len(_PALETTE)]
    level[0] = 0
    return np.asarray(level, np.float32)


def _beams(phase: float) -> Float:
    """Four swinging spotlights from above, at a quarter of the size [h,w,3]."""
    h, w = HEIGHT // _SOFT, WIDTH // _SOFT
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    total = np.zeros((h, w, 3), np.float32)
    for k, colour in enumerate([(255, 70, 130), (80, 130, 255), (255, 170, 70), (150, 80, 255)]):
        source = np.array([w * (0.14 + 0.24 * k), -0.04 * h])
        angle = 0.42 * np.sin(phase + k * 1.9) + 0.30 * (1.5 - k) / 1.5
        dx, dy = x - source[0], y - source[1]
        along = dx * np.sin(angle) + dy * np.cos(angle)
        across = dx * np.cos(angle) - dy * np.sin(angle)
        cone = np.exp(-((across / (3 + 0.16 * np.maximum(along, 1))) ** 2)) * (along > 0)
        total += (0.42 * cone * np.exp(-along / (0.75 * h)))[..., None] * np.array(colour, np.float32)
    return total


def _discs(phase: float) -> Float:
    """Drifting out-of-focus lights, at a quarter of the size [h,w,3]."""
    h, w = HEIGHT // _SOFT, WIDTH // _SOFT
    total = np.zeros((h, w, 3), np.float32)
    rng = np.random.default_rng(3)
    for _ in range(26):
        x, y, radius, hue, start = rng.uniform(size=5)
        at = (x * 1.1 - 0.05 + 0.03 * np.sin(phase + 9 * start), y * 0.62 + 0.02 * np.cos(phase + 5 * hue))
        level = 26 + 22 * np.sin(phase * (1 + int(3 * start)) + 7 * hue)
        colour = 0.6 + 0.4 * np.cos(2 * np.pi * (hue + np.array([0.0, 0.33, 0.67])))
        disc = np.zeros((h, w, 3), np.float32)
        centre = (round(at[0] * w * 16), round(at[1] * h * 16))
        cv2.circle(disc, centre, round((4 + 10 * radius) * 16), (level * colour).tolist(), -1, cv2.LINE_AA, 4)
        total += disc
    return np.asarray(cv2.GaussianBlur(total, (0, 0), 1.0), np.float32)
