"""Contact sheets: source and result side by side at the same times."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from actors.video.sheet import Pick, pick_indices, write_sheet
from cluster.errors import JobError, UsageError
from tests.media import draw, number
from tests.segments import SIZE, write_final


@pytest.mark.parametrize(("frames", "want"), [(80, [5, 15, 25, 35, 45, 55, 65, 75]), (3, [0, 1, 2]), (1, [0])])
def test_times_are_spread_evenly(frames: int, want: list[int]) -> None:
    assert pick_indices(frames) == want


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_final(tmp_path_factory.mktemp("final"), [20, 20], 7 + np.arange(40), Fraction(1, 25), 1)[0]


@pytest.mark.parametrize("name", ["sheet.png", "sheet.jpg"])
def test_each_tile_shows_the_same_frame_of_source_and_result(tmp_path: Path, result: Path, name: str) -> None:
    picks = [Pick(i, i / 25, draw(i, 80, 48)) for i in pick_indices(40)]
    write_sheet(tmp_path / name, result, picks)
    sheet = cv2.imread(str(tmp_path / name))[:, :, ::-1]
    width, height = 360, round(360 * SIZE[1] / SIZE[0])
    for i, pick in enumerate(picks):
        top, left = 8 + i // 2 * (height + 24 + 8), 8 + i % 2 * (2 * width + 8)
        for side in (0, 1):
            assert number(sheet[top : top + height, left + side * width : left + (side + 1) * width]) == pick.index
        label = sheet[top + height : top + height + 24, left : left + 2 * width]
        assert label.max() > 150 and label.min() < 60
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_sources_of_another_shape_are_shown_whole(tmp_path: Path, result: Path) -> None:
    tall = np.full((96, 30, 3), 200, np.uint8)
    write_sheet(tmp_path / "sheet.png", result, [Pick(0, 0.0, tall)])
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet[8 + 108, 8 + 180].tolist() == [200] * 3
    assert sheet[8 + 108, 8 + 10].tolist() == [0] * 3


def test_wrong_names_and_frames_are_refused(tmp_path: Path, result: Path) -> None:
    with pytest.raises(UsageError, match=r"sheet\.gif"):
        write_sheet(tmp_path / "sheet.gif", result, [Pick(0, 0.0, draw(0, *SIZE))])
    with pytest.raises(JobError, match="40 frames"):
        write_sheet(tmp_path / "sheet.png", result, [Pick(40, 1.6, draw(0, *SIZE))])
    assert list(tmp_path.iterdir()) == []
