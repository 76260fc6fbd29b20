"""`troupe backgrounds`: add, list and loop from end to end, with real files."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from cli.backgrounds import app


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    cv2.imwrite(str(tmp_path / "beach.png"), np.full((90, 160, 3), (200, 120, 40), np.uint8))
    return tmp_path / "beach.png"


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*arguments])
    return result.exit_code, result.stdout


def test_still_becomes_a_loop_that_joins_the_library(picture: Path) -> None:
    code, made = run("loop", str(picture), "loop.mp4", "--seconds", "1", "--size", "320x180", "--json")
    assert code == 0
    assert (json.loads(made)["width"], json.loads(made)["height"]) == (320, 180)
    assert run("add", "folk", "loop.mp4", "--source", "own camera", "--licence", "CC0-1.0")[0] == 0
    listed = json.loads(run("list", "--json")[1])
    assert listed["popular"] == []
    (item,) = listed["folk"]
    assert (item["path"], item["source"], item["licence"]) == (
        str(picture.parent / "backgrounds" / "folk" / "loop.mp4"),
        "own camera",
        "CC0-1.0",
    )


def test_list_shows_what_has_no_licence(picture: Path) -> None:
    assert run("add", "popular", str(picture), "--allow-unlicensed")[0] == 0
    code, text = run("list", "popular")
    assert code == 0
    assert "unknown" in text


def test_file_that_does_not_open_exits_1(picture: Path) -> None:
    broken = picture.with_name("broken.mp4")
    broken.write_bytes(b"not a video")
    assert run("add", "popular", str(broken), "--source", "s", "--licence", "l")[0] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["add", "popular", "beach.png"],
        ["add", "no-such", "beach.png", "--source", "s", "--licence", "l"],
        ["add", "popular", "absent.png", "--source", "s", "--licence", "l"],
        ["list", "no-such"],
        ["loop", "absent.mp4", "loop.mp4"],
        ["loop", "beach.png", "loop.mkv"],
        ["loop", "beach.png", "beach.mp4", "--size", "large"],
        ["loop", "beach.png", "beach.mp4", "--size", "321x180"],
        ["loop", "beach.png", "absent/beach.mp4", "--seconds", "1"],
    ],
)
@pytest.mark.usefixtures("picture")
def test_bad_usage_exits_2(arguments: list[str]) -> None:
    assert run(*arguments)[0] == 2
