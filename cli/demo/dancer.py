"""The demo's dancer: where the joints are at a time, and how the figure is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from math import atan2, cos, pi, sin, sqrt

import numpy as np

from cli.demo.canvas import Canvas, Point

BEATS_PER_SECOND = 2.5
#: The dance repeats after so many beats.
BEATS = 16

_SKIN = (226.0, 172.0, 138.0)
_HAIR = (58.0, 36.0, 34.0)
_TOP = (232.0, 84.0, 98.0)
_TROUSERS = (48.0, 58.0, 118.0)
_SHOES = (240.0, 236.0, 228.0)

# Lengths as parts of the figure's height.
_THIGH, _SHIN, _SPINE, _UPPER, _FORE = 0.245, 0.235, 0.235, 0.150, 0.140
_STRANDS, _STRAND_POINTS = 46, 9


@dataclass(frozen=True, slots=True)
class Pose:
    """Joints at a time, in parts of the figure's height: x from the middle to the right, y from the floor up."""

    hips: Point
    chest: Point
    head: Point
    tilt: float
    arms: tuple[tuple[Point, Point, Point], tuple[Point, Point, Point]]
    legs: tuple[tuple[Point, Point, Point], tuple[Point, Point, Point]]


def pose(seconds: float) -> Pose:
    """The dancer at a time: two steps to a bar, arms in waves over four beats."""
    beat = seconds * BEATS_PER_SECOND
    sway = sin(pi * beat)
    bounce = abs(sin(pi * beat))
    wave = sin(pi * beat / 2)
    hips = np.array([0.04 * sway + 0.02 * sin(pi * beat / 8), 0.503 - 0.022 * bounce])
    lean = -0.10 * sway + 0.06 * wave
    chest = hips + _SPINE * np.array([sin(lean), cos(lean)])
    tilt = 0.16 * sin(pi * beat + 0.5) - lean
    head = chest + 0.142 * np.array([sin(lean + 0.5 * tilt), cos(lean + 0.5 * tilt)])
    arms = (
        _arm(chest, lean, -1, 1.35 + 0.95 * wave, 0.55 + 0.75 * sin(pi * beat + 0.6)),
        _arm(chest, lean, 1, 1.35 - 0.95 * sin(pi * beat / 2 + 0.9), 0.55 + 0.75 * sin(pi * beat + 2.4)),
    )
    lifted = sin(pi * beat) * 0.10
    legs = (
        _leg(hips, -1, np.array([-0.12 - 0.03 * wave, max(0.0, lifted) * (0.6 + 0.4 * wave)])),
        _leg(hips, 1, np.array([0.12 - 0.03 * wave, max(0.0, -lifted) * (0.6 - 0.4 * wave)])),
    )
    return Pose(hips, chest, head, tilt, arms, legs)


def _arm(chest: Point, lean: float, side: int, lift: float, bend: float) -> tuple[Point, Point, Point]:
    """Shoulder, elbow, wrist; `lift` is the upper arm's angle from hanging, `bend` the elbow's."""
    shoulder = chest + 0.088 * side * np.array([cos(lean), -sin(lean)]) + np.array([0.0, -0.012])
    elbow = shoulder + _UPPER * np.array([side * sin(lift), -cos(lift)])
    wrist = elbow + _FORE * np.array([side * sin(lift + bend), -cos(lift + bend)])
    return shoulder, elbow, wrist


def _leg(hips: Point, side: int, foot: Point) -> tuple[Point, Point, Point]:
    """Hip, knee, ankle: the knee goes outwards as far as the two lengths ask."""
    hip = hips + np.array([0.052 * side, -0.015])
    ankle = foot + np.array([0.0, 0.035])
    reach = ankle - hip
    distance = min(sqrt(float(reach @ reach)), _THIGH + _SHIN - 1e-3)
    inner = np.arccos((_THIGH**2 + distance**2 - _SHIN**2) / (2 * _THIGH * distance))
    angle = atan2(reach[1], reach[0]) + side * inner
    return hip, hip + _THIGH * np.array([cos(angle), sin(angle)]), ankle


def draw(canvas: Canvas, seconds: float, floor: Point, height: float) -> None:
    """Draws the dancer at a time.

    Args:
        canvas: drawn over.
        seconds: since the start of the dance.
        floor: the pixel on the floor between the feet.
        height: of the figure, in pixels.
    """
    now = pose(seconds)

    def at(point: Point) -> Point:
        return np.asarray(floor + height * point * np.array([1.0, -1.0]))

    def limb(a: Point, b: Point, radius_a: float, radius_b: float, colour: tuple[float, float, float]) -> None:
        canvas.limb(at(a), at(b), radius_a * height, radius_b * height, colour)

    _hair(canvas, seconds, now, floor, height)
    for hip, knee, ankle in now.legs:
        outwards = np.sign(hip[0] - now.hips[0])
        heel = ankle + np.array([-0.008 * outwards, -0.013])
        limb(ankle, heel, 0.024, 0.022, _SKIN)
        limb(heel, ankle + np.array([0.052 * outwards, -0.017]), 0.025, 0.019, _SHOES)
        limb(hip, knee, 0.060, 0.044, _TROUSERS)
        limb(knee, ankle + np.array([0.0, 0.022]), 0.043, 0.034, _TROUSERS)
    waist = 0.55 * now.hips + 0.45 * now.chest
    limb(now.hips, now.hips + np.array([0.0, 0.035]), 0.086, 0.070, _TROUSERS)
    limb(waist, now.hips + np.array([0.0, 0.05]), 0.056, 0.064, _SKIN)
    limb(now.chest + np.array([0.0, 0.05]), now.head, 0.026, 0.028, _SKIN)
    across = 0.048 * np.array([cos(now.tilt), 0.0])
    for side in (-1, 1):
        limb(now.chest + side * across + np.array([0.0, -0.01]), waist + 0.5 * side * across, 0.046, 0.044, _TOP)
    limb(now.chest + np.array([0.0, -0.035]), waist + np.array([0.0, 0.01]), 0.070, 0.062, _TOP)
    _head(canvas, now, floor, height)
    for shoulder, elbow, wrist in now.arms:
        limb(shoulder, elbow, 0.033, 0.026, _SKIN)
        limb(elbow, wrist, 0.026, 0.019, _SKIN)
        hand = wrist + 0.032 * (wrist - elbow) / _FORE
        limb(wrist, hand, 0.020, 0.023, _SKIN)
        limb(shoulder, 0.75 * shoulder + 0.25 * elbow, 0.039, 0.035, _TOP)


def _head(canvas: Canvas, now: Pose, floor: Point, height: float) -> None:
    turn = np.array([[cos(now.tilt), sin(now.tilt)], [-sin(now.tilt), cos(now.tilt)]])

    def at(x: float, y: float) -> Point:
        return np.asarray(floor + height * (now.head + turn @ np.array([x, y])) * np.array([1.0, -1.0]))

    canvas.limb(at(0, 0.012), at(0, 0.03), 0.068 * height, 0.070 * height, _HAIR)
    canvas.limb(at(0, 0.006), at(0, -0.022), 0.056 * height, 0.046 * height, _SKIN)
    canvas.limb(at(-0.040, 0.040), at(0.030, 0.060), 0.024 * height, 0.022 * height, _HAIR)
    canvas.limb(at(0.030, 0.060), at(0.050, 0.034), 0.022 * height, 0.014 * height, _HAIR)
    for side in (-1, 1):
        canvas.limb(at(0.021 * side, 0.006), at(0.021 * side, 0.002), 0.0068 * height, 0.0068 * height, (40, 26, 30))
        canvas.limb(at(0.062 * side, 0.02), at(0.056 * side, -0.02), 0.014 * height, 0.006 * height, _HAIR)
    smile = [at(0.017 * u, -0.032 - 0.007 * (1 - u * u)) for u in np.linspace(-1, 1, 9)]
    canvas.strands([smile], max(1, round(0.0045 * height)), (176, 58, 70))


def _hair(canvas: Canvas, seconds: float, now: Pose, floor: Point, height: float) -> None:
    """Long loose hair behind the figure: its tips follow the head with a delay, and swing out."""
    s = np.linspace(0, 1, _STRAND_POINTS)
    strand = np.arange(_STRANDS)[:, None]
    u = 2 * strand / (_STRANDS - 1) - 1
    length = 0.235 + 0.035 * np.sin(7.3 * strand)
    curl = 0.012 * s * np.sin(2.1 * strand + 5.0 * s + 2.2 * seconds)
    spread = np.stack([0.058 * u + 0.075 * u * s * s + curl, 0.03 - length * s], -1)
    behind = np.array([pose(seconds - 0.028 * k).head - now.head for k in range(_STRAND_POINTS)])
    lines = floor + height * (now.head + 1.5 * s[:, None] * behind + spread) * np.array([1.0, -1.0])
    canvas.strands(lines[::2], max(1, round(0.010 * height)), _HAIR)
    canvas.strands(lines[1::2], max(1, round(0.005 * height)), (92.0, 58.0, 48.0))
