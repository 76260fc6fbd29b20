"""Sampling our own files, beside the other libraries of the process."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from actors.video.sample import Sampler
from cluster.errors import JobError
from tests.media import number
from tests.segments import write_final


def test_any_order_of_access_gives_the_right_frames(tmp_path: Path) -> None:
    lengths = [1, 1, 2, 26, 1, 29, 1, 1]
    final, _ = write_final(tmp_path, lengths, 50 + np.arange(62), Fraction(1, 25), 1)
    frames = Sampler(final)
    assert len(frames) == 62
    order = np.random.default_rng(0).permutation(62)
    for index in [*order.tolist(), *range(62), *reversed(range(62))]:
        assert number(frames[index]) == index


def test_a_frame_that_is_not_there_is_named(tmp_path: Path) -> None:
    final, _ = write_final(tmp_path, [3], np.arange(3), Fraction(1, 25), 1)
    with pytest.raises(JobError, match=r"final\.mp4: frame 3: has 3 frames"):
        Sampler(final)[3]


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(JobError, match=r"a\.mp4"):
        Sampler(tmp_path / "a.mp4")


def test_opencv_still_reads_png_after_sampling(tmp_path: Path) -> None:
    final, _ = write_final(tmp_path, [3], np.arange(3), Fraction(1, 25), 1)
    code = f"""
from pathlib import Path
from actors.video.sample import Sampler
Sampler(Path({str(final)!r}))[1]
import cv2, numpy as np
done, data = cv2.imencode(".png", np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
assert cv2.imdecode(data, cv2.IMREAD_COLOR) is not None
"""
    subprocess.run([sys.executable, "-c", code], check=True)
