"""Loops: no visible seam, the right length, stills become clips."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from actors.video.encode import EncoderSettings
from actors.video.limits import Limits
from actors.video.loop import fade_weight, make_loop
from cluster.errors import MediaError, UsageError
from tests.media import write_clip
from tests.segments import read_frames

LIMITS = Limits()
FINE = EncoderSettings(preset="veryfast", crf=10, threads=1)


def pictures(path: Path) -> list[NDArray[np.float32]]:
    with av.open(str(path)) as container:  # noqa: TID251
        return [f.to_ndarray(format="rgb24").astype(np.float32) for f in container.decode(video=0)]


def jumps(frames: list[NDArray[np.float32]]) -> list[float]:
    """Mean difference of each frame to the next; the last entry is the seam."""
    following = [*frames[1:], frames[0]]
    return [float(np.abs(a - b).mean()) for a, b in zip(frames, following, strict=True)]


@pytest.fixture(scope="module")
def drift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A texture that drifts and brightens: played twice, it would jump."""
    rng = np.random.default_rng(4)
    texture = cv2.GaussianBlur(rng.integers(0, 256, (96, 400, 3), dtype=np.uint8), (0, 0), 4)
    texture = cv2.normalize(texture, None, 20, 180, cv2.NORM_MINMAX)
    path = tmp_path_factory.mktemp("drift") / "drift.mp4"
    with av.open(str(path), "w") as out:  # noqa: TID251
        stream = out.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "8", "threads": "1"})
        stream.codec_context.width, stream.codec_context.height = 160, 96
        for i in range(50):
            rgb = np.ascontiguousarray(texture[:, 2 * i : 2 * i + 160] + np.uint8(i))
            out.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def loop(source: Path, target: Path, **more: object) -> list[NDArray[np.float32]]:
    options = {"seconds": None, "fade_seconds": 0.4, "size": None, "limits": LIMITS, "settings": FINE, **more}
    made = make_loop(source, target, **options)  # type: ignore[arg-type]
    frames = pictures(target)
    assert made.frames == len(frames)
    assert (made.height, made.width) == frames[0].shape[:2]
    return frames


def test_the_seam_jumps_no_more_than_neighbouring_frames_do(tmp_path: Path, drift: Path) -> None:
    *inside, seam = jumps(loop(drift, tmp_path / "loop.mp4"))
    assert seam <= max(inside)
    *inside, uncut = jumps(pictures(drift))
    assert uncut > 2 * max(inside)  # so the test would see a seam


def test_the_fade_blends_the_tail_into_the_head(tmp_path: Path, drift: Path) -> None:
    source = pictures(drift)
    frames = loop(drift, tmp_path / "loop.mp4")
    assert len(frames) == 50 - 10
    for i in range(10):
        weight = fade_weight(i, 10)
        want = (1 - weight) * source[40 + i] + weight * source[i]
        assert np.abs(frames[i] - want).mean() < 3
    for i in range(10, 40):
        assert np.abs(frames[i] - source[i]).mean() < 3


def test_times_and_length_are_the_source_s_less_the_fade(tmp_path: Path) -> None:
    source = tmp_path / "uneven.mkv"
    pts = np.cumsum([0, *([40, 70, 55] * 9)]).tolist()
    write_clip(source, frames=28, width=192, height=108, pts=pts, time_base=Fraction(1, 1000), rate=20, start=0.5)
    made = make_loop(
        source, tmp_path / "loop.mp4", seconds=None, fade_seconds=0.2, size=None, limits=LIMITS, settings=FINE
    )
    times = [t for t, _ in read_frames(tmp_path / "loop.mp4")]
    assert times == [Fraction(p, 1000) for p in pts[: 28 - made.blended]]
    assert made.seconds == pytest.approx(pts[28 - made.blended] / 1000)


@pytest.mark.parametrize(("fade", "frames"), [(0.0, 50), (5.0, 25)])
def test_the_fade_is_at_most_half(tmp_path: Path, drift: Path, fade: float, frames: int) -> None:
    assert len(loop(drift, tmp_path / "loop.mp4", fade_seconds=fade)) == frames


def test_a_length_takes_only_the_beginning(tmp_path: Path, drift: Path) -> None:
    assert len(loop(drift, tmp_path / "loop.mp4", seconds=1.0, fade_seconds=0.4)) == 25


def test_a_size_is_covered(tmp_path: Path, drift: Path) -> None:
    assert loop(drift, tmp_path / "loop.mp4", size=(64, 96))[0].shape == (96, 64, 3)


def test_a_still_becomes_a_clip_that_stands_still(tmp_path: Path) -> None:
    source = tmp_path / "still.png"
    cv2.imwrite(str(source), np.full((97, 161, 3), (30, 60, 90), np.uint8))
    frames = loop(source, tmp_path / "clip.mp4", seconds=2.0)
    assert len(frames) == 50
    assert frames[0].shape == (96, 160, 3)
    assert max(jumps(frames)) < 0.5
    assert np.abs(frames[7] - (90, 60, 30)).max() <= 4


def test_the_same_source_gives_the_same_bytes(tmp_path: Path, drift: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        loop(drift, tmp_path / name)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_lengths_that_cannot_be_are_refused(tmp_path: Path, drift: Path) -> None:
    still = tmp_path / "still.png"
    cv2.imwrite(str(still), np.zeros((48, 64, 3), np.uint8))
    for source, more in ((still, {}), (drift, {"seconds": 0.0}), (drift, {"fade_seconds": -1.0})):
        with pytest.raises(UsageError):
            loop(source, tmp_path / "loop.mp4", **more)


def test_a_video_of_one_frame_cannot_loop(tmp_path: Path) -> None:
    source = tmp_path / "one.mp4"
    write_clip(source, frames=1, width=64, height=48)
    with pytest.raises(MediaError, match=r"one\.mp4.*single frame"):
        loop(source, tmp_path / "loop.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["one.mp4"]
