"""What size a target asks for: pure arithmetic on widths and heights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from math import floor

from cluster.errors import UsageError

Size = tuple[int, int]

#: Named targets are the picture's short side, so that a portrait clip at 1080p is 1080 wide.
SHORT_SIDES = {"720p": 720, "1080p": 1080, "1440p": 1440, "4k": 2160}
#: Longest side that x264 takes.
MAX_SIDE = 16384
REMEDY = f"give one of {', '.join(SHORT_SIDES)}, a size as 1920x1080, or a factor as 2"


@dataclass(frozen=True, slots=True)
class ShortSide:
    """A short side in pixels; the aspect is the source's."""

    pixels: int


@dataclass(frozen=True, slots=True)
class Exact:
    """A width and a height in pixels; the aspect may change."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Factor:
    """A factor on both sides."""

    factor: Fraction


Target = ShortSide | Exact | Factor


def parse_target(text: str) -> Target:
    """Reads `720p`, `1080p`, `1440p`, `4k`, `WIDTHxHEIGHT`, or a factor (`2`, `1.5`, `2x`).

    Raises:
        UsageError: it is none of these, or a width or height is odd (4:2:0 video has none) or too large.
    """
    word = text.strip().lower()
    if word in SHORT_SIDES:
        return ShortSide(SHORT_SIDES[word])
    if match := re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", word):
        width, height = int(match[1]), int(match[2])
        if width % 2 or height % 2 or not width or not height:
            raise UsageError(
                f"target {text}", "width and height must be even: 4:2:0 video has one colour sample for 2x2 pixels"
            )
        _refuse_too_large(text, (width, height))
        return Exact(width, height)
    if match := re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)x?", word):
        factor = Fraction(match[1])
        if factor > 16:
            raise UsageError(f"target {text}", "a factor above 16", remedy=REMEDY)
        if factor > 0:
            return Factor(factor)
    raise UsageError(f"target {text}", "is not a size", remedy=REMEDY)


def output_size(source: Size, target: Target) -> Size:
    """Even (width, height) of the result for a source of (width, height).

    Aspect is kept but for the rounding to even sides, unless the target is an exact size.

    Raises:
        UsageError: a side would be larger than x264 takes.
    """
    match target:
        case Exact(width, height):
            return width, height
        case ShortSide(pixels):
            factor = Fraction(pixels, min(source))
        case Factor(value):
            factor = value
    size = (_nearest_even(source[0] * factor), _nearest_even(source[1] * factor))
    _refuse_too_large(f"{size[0]}x{size[1]}", size)
    return size


def reduced_size(source: Size, max_short_side: int) -> Size:
    """The source's size, or one of the same aspect whose short side is `max_short_side` if it is longer."""
    short = min(source)
    if short <= max_short_side:
        return source
    factor = Fraction(max_short_side, short)
    return max(1, floor(source[0] * factor + Fraction(1, 2))), max(1, floor(source[1] * factor + Fraction(1, 2)))


def _nearest_even(value: Fraction) -> int:
    return max(2, 2 * floor(value / 2 + Fraction(1, 2)))


def _refuse_too_large(text: str, size: Size) -> None:
    if max(size) > MAX_SIDE:
        raise UsageError(f"target {text}", f"a side is longer than {MAX_SIDE} pixels", remedy="choose a smaller one")
