"""Cards: what the driver lists, less what the environment hides; nothing where there is no driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.cards import Card, local_cards, parse_cards

LINES = "NVIDIA GeForce RTX 3060, 12288, 252, 812\nOdd, Name, 8192, [N/A], 5\n"
FIRST, SECOND = Card("NVIDIA GeForce RTX 3060", 12036, 812), Card("Odd, Name", 8192, 5)


def driver(folder: Path, script: str) -> dict[str, str]:
    """An environment in which `nvidia-smi` is this shell script."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {"PATH": str(folder)}


def test_cards_are_read_as_the_driver_tells_them() -> None:
    assert parse_cards(LINES + "No devices were found\n") == (FIRST, SECOND)


@pytest.mark.parametrize(
    ("visible", "cards"),
    [
        (None, (FIRST, SECOND)),
        ("", ()),
        ("-1", ()),
        ("1", (SECOND,)),
        ("1,0", (SECOND, FIRST)),
        ("7", ()),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", (FIRST, SECOND)),
    ],
)
def test_cards_are_those_that_the_environment_leaves(tmp_path: Path, visible: str | None, cards: tuple[Card]) -> None:
    environ = driver(tmp_path, f"printf '{LINES.encode('unicode_escape').decode()}'")
    assert local_cards(environ if visible is None else {**environ, "CUDA_VISIBLE_DEVICES": visible}) == cards


@pytest.mark.parametrize("script", ["echo 'No devices were found'; exit 6", "exit 9", "echo nonsense"])
def test_driver_that_fails_is_no_card(tmp_path: Path, script: str) -> None:
    assert local_cards(driver(tmp_path, script)) == ()


def test_no_driver_is_no_card(tmp_path: Path) -> None:
    assert local_cards({"PATH": str(tmp_path)}) == ()
