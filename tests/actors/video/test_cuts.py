"""Cuts are found where they are, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from actors.video.cuts import detect_cuts
from actors.video.limits import Limits
from actors.video.scan import scan


def _statistics(n: int, cuts: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    diff, corr = np.full(n, 1.0, np.float32), np.ones(n, np.float32)
    for at, size in cuts.items():
        diff[at], corr[at] = size, 0.1
    return diff, corr


def test_two_cuts_far_apart() -> None:
    assert detect_cuts(*_statistics(60, {20: 30, 45: 12})).tolist() == [20, 45]


def test_of_two_cuts_closer_than_twelve_frames_the_larger_stays() -> None:
    assert detect_cuts(*_statistics(60, {20: 12, 28: 30})).tolist() == [28]
    assert detect_cuts(*_statistics(60, {20: 30, 28: 16})).tolist() == [20]


def test_fast_motion_flicker_and_correlated_changes_are_no_cuts() -> None:
    moving = _statistics(60, dict.fromkeys(range(10, 50, 3), 20.0))  # animation held on threes
    assert detect_cuts(*moving).tolist() == []
    diff, corr = _statistics(60, {20: 30})
    corr[20] = 0.9  # a flash over the same picture
    assert detect_cuts(diff, corr).tolist() == []


def test_first_frame_is_never_a_cut_and_empty_is_fine() -> None:
    assert detect_cuts(*_statistics(30, {0: 90})).tolist() == []
    assert detect_cuts(np.empty(0, np.float32), np.empty(0, np.float32)).tolist() == []


def test_the_film_clip_has_one_cut(shared: Path, tmp_path: Path) -> None:
    for name, cuts in (("sintel_10s.mp4", [214]), ("person_gesture.mkv", [])):
        found = scan(shared / "clips" / name, Limits(), workdir=tmp_path)
        assert detect_cuts(found.diff, found.corr).tolist() == cuts
