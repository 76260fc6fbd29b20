"""Target sizes: short sides, exact sizes and factors give even sizes, or a refusal with its reason."""

from __future__ import annotations

from fractions import Fraction

import pytest

from actors.upscale.sizes import Exact, Factor, ShortSide, Size, output_size, parse_target, reduced_size
from cluster.errors import UsageError


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("720p", ShortSide(720)),
        ("1080p", ShortSide(1080)),
        ("1440P", ShortSide(1440)),
        (" 4k ", ShortSide(2160)),
        ("4K", ShortSide(2160)),
        ("1920x1080", Exact(1920, 1080)),
        ("1080X1920", Exact(1080, 1920)),
        ("2", Factor(Fraction(2))),
        ("2x", Factor(Fraction(2))),
        ("1.5", Factor(Fraction(3, 2))),
        ("0.5", Factor(Fraction(1, 2))),
    ],
)
def test_targets_are_read(text: str, target: object) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    ("source", "target", "size"),
    [
        ((576, 1024), "1080p", (1080, 1920)),
        ((1024, 576), "1080p", (1920, 1080)),
        ((640, 480), "720p", (960, 720)),
        ((854, 480), "1080p", (1922, 1080)),
        ((640, 640), "4k", (2160, 2160)),
        ((1920, 1080), "720p", (1280, 720)),
        ((641, 481), "720p", (960, 720)),
        ((853, 479), "2", (1706, 958)),
        ((641, 481), "1", (642, 482)),
        ((853, 479), "1.5", (1280, 718)),
        ((100, 100), "1280x720", (1280, 720)),
        ((4000, 16), "0.1", (400, 2)),
    ],
)
def test_sizes_keep_the_aspect_and_are_even(source: Size, target: str, size: Size) -> None:
    assert output_size(source, parse_target(target)) == size


@pytest.mark.parametrize("target", ["720p", "1080p", "1440p", "4k", "0.37", "1", "1.1", "2.5", "4"])
def test_every_size_is_even_and_at_most_a_pixel_off_the_aspect(target: str) -> None:
    parsed = parse_target(target)
    for source in [(w, h) for w in range(160, 700, 37) for h in range(160, 700, 41)]:
        width, height = output_size(source, parsed)
        assert width % 2 == 0
        assert height % 2 == 0
        factor = parsed.factor if isinstance(parsed, Factor) else Fraction(parsed.pixels, min(source))
        assert abs(width - source[0] * factor) <= 1
        assert abs(height - source[1] * factor) <= 1


@pytest.mark.parametrize(
    "text",
    ["", "p", "720", "720i", "1080 p", "hd", "0", "0x", "-2", "nan", "inf", "1e3", "x", "1920x", "1920*1080", "²", "٢"],
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="target"):
        parse_target(text)


@pytest.mark.parametrize("text", ["1921x1080", "1920x1079", "0x1080", "1920x0"])
def test_odd_and_empty_sizes_are_refused_with_the_reason(text: str) -> None:
    with pytest.raises(UsageError, match="must be even: 4:2:0"):
        parse_target(text)


def test_sizes_beyond_the_encoder_are_refused() -> None:
    with pytest.raises(UsageError, match="longer than 16384"):
        parse_target("20000x1000")
    with pytest.raises(UsageError, match="longer than 16384"):
        output_size((16000, 160), parse_target("1080p"))
    with pytest.raises(UsageError, match="longer than 16384"):
        output_size((1920, 1080), parse_target("16"))


@pytest.mark.parametrize(
    ("source", "limit", "size"),
    [
        ((1920, 1080), 480, (853, 480)),
        ((1080, 1920), 480, (480, 853)),
        ((640, 480), 480, (640, 480)),
        ((320, 200), 480, (320, 200)),
        ((10000, 3), 1, (3333, 1)),
    ],
)
def test_inputs_are_reduced_to_a_short_side_and_never_enlarged(source: Size, limit: int, size: Size) -> None:
    assert reduced_size(source, limit) == size
