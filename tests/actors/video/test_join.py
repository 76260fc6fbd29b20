"""Joining: every frame and every time of the source, no re-encoding, the same file each time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from actors.video.boxes import video_end
from actors.video.encode import EncoderSettings
from actors.video.join import decode_times, join
from cluster.errors import JobError
from cluster.files import sha256_of
from tests.segments import FAST, read_frames, write_final, write_segments

LENGTHS = [20, 1, 2, 3, 14]
COUNT = sum(LENGTHS)


def growing(start: int = 0) -> NDArray[np.int64]:
    """Intervals that grow and shrink, most of all at the joints."""
    steps = np.random.default_rng(5).integers(300, 5000, COUNT)
    steps[[20, 21, 23, 26]] = (15_000, 300, 15_000, 300)
    return start + np.cumsum(steps)


CASES = {
    "constant": (np.arange(COUNT), Fraction(1, 25), 1),
    "numerator": (np.arange(COUNT) + 7, Fraction(1001, 30000), 1),
    "variable": (growing(), Fraction(1, 29978), 2345),
    "late start": (growing(45_000), Fraction(1, 30000), 999),
    "milliseconds": (np.round(np.arange(COUNT) * 1000 / 30).astype(np.int64) + 33, Fraction(1, 1000), 33),
    "nanoseconds": (np.arange(COUNT) * 41_708_333 + 10**9, Fraction(1, 10**9), 41_708_333),
    "slow": (np.arange(COUNT) * 3, Fraction(2, 1), 3),
}


@pytest.mark.parametrize("name", CASES)
def test_all_frames_come_back_in_order_at_exactly_the_source_s_times(tmp_path: Path, name: str) -> None:
    pts, time_base, last = CASES[name]
    final, joined = write_final(tmp_path, LENGTHS, pts, time_base, last)
    assert joined.frames == COUNT
    assert read_frames(final) == [(int(p) * time_base, i) for i, p in enumerate(pts)]
    assert video_end(final) == (int(pts[-1]) + last) * time_base


def test_a_single_frame_is_a_video(tmp_path: Path) -> None:
    final, _ = write_final(tmp_path, [1], np.array([5]), Fraction(1, 25), 7)
    assert read_frames(final) == [(Fraction(5, 25), 0)]
    assert video_end(final) == Fraction(12, 25)


def test_pixels_are_those_of_the_segments(tmp_path: Path) -> None:
    pts, time_base, last = CASES["variable"]
    final, _ = write_final(tmp_path, LENGTHS, pts, time_base, last)
    want: list[bytes] = []
    for i in range(len(LENGTHS)):
        with av.open(str(tmp_path / f"segment-{i}.mp4")) as container:  # noqa: TID251
            want += [frame.to_ndarray().tobytes() for frame in container.decode(video=0)]
    with av.open(str(final)) as container:  # noqa: TID251
        assert [frame.to_ndarray().tobytes() for frame in container.decode(video=0)] == want


def test_the_same_arguments_give_the_same_file(tmp_path: Path) -> None:
    pts, time_base, last = CASES["late start"]
    digests = set()
    for name in ("a", "b"):
        final, joined = write_final(tmp_path / name, LENGTHS, pts, time_base, last)
        assert joined.sha256 == sha256_of(final)
        assert joined.nbytes == final.stat().st_size
        digests.add(joined.sha256)
    assert len(digests) == 1


def test_the_header_comes_first(tmp_path: Path) -> None:
    final, _ = write_final(tmp_path, [5], np.arange(5), Fraction(1, 25), 1)
    data = final.read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")


def test_every_seek_finds_its_frame(tmp_path: Path) -> None:
    pts, time_base, last = CASES["variable"]
    final, _ = write_final(tmp_path, LENGTHS, pts, time_base, last)
    with av.open(str(final)) as container:  # noqa: TID251
        stream = container.streams.video[0]
        for p in pts[::3]:
            container.seek(int(int(p) * time_base / stream.time_base), stream=stream)
            times = (frame.pts * frame.time_base for frame in container.decode(stream))
            assert next(t for t in times if t >= int(p) * time_base) == int(p) * time_base


def test_decode_times_increase_and_never_pass_the_presentation_times() -> None:
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.integers(1, 1000, 200))
    order = np.concatenate([np.argsort(np.arange(k) + rng.integers(0, 4, k)) + at for at, k in ((0, 90), (90, 110))])
    dts = decode_times(order, times)
    assert np.all(np.diff(dts) > 0)
    assert np.all(dts <= times[order])


def test_segments_of_other_settings_do_not_join(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    pts = np.arange(10)
    first = write_segments(tmp_path, [5], pts, Fraction(1, 25), settings=FAST)
    other = EncoderSettings(preset="ultrafast", crf=20, threads=1)
    second = write_segments(tmp_path / "other", [5], pts, Fraction(1, 25), settings=other)
    with pytest.raises(JobError, match=r"segment-0\.mp4.*headers differ"):
        join([*first, *second], tmp_path / "f.mp4", pts=pts, time_base=Fraction(1, 25), last_duration=1, sound=None)
    assert not (tmp_path / "f.mp4").exists()


@pytest.mark.parametrize(
    ("pts", "why"),
    [
        (np.arange(11), "segments hold 10"),
        (np.arange(9), "plan's times"),
        (np.arange(10) * 2, "plan's times"),
        (np.arange(10) - 3, "mp4 starts at 0"),
    ],
)
def test_segments_that_are_not_the_plan_s_do_not_join(tmp_path: Path, pts: NDArray[np.int64], why: str) -> None:
    files = write_segments(tmp_path, [5, 5], np.arange(10), Fraction(1, 25))
    with pytest.raises(JobError, match=why):
        join(files, tmp_path / "f.mp4", pts=pts, time_base=Fraction(1, 25), last_duration=1, sound=None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["segment-0.mp4", "segment-1.mp4"]
