"""Segments: reproducible, joinable, with the times that were given."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from actors.video.encode import EncoderSettings, KeyframeClock, SegmentWriter, encoder_options, probe_nvenc
from actors.video.yuv import YuvConverter
from cluster.errors import JobError, UsageError
from cluster.files import sha256_of
from tests.media import draw
from tests.segments import FAST, SIZE, read_frames, write_segments

#: mallopt(3) of glibc: fill allocated memory with a byte.
M_PERTURB = -6


@pytest.mark.parametrize("threads", [1, 3])
def test_equal_frames_give_equal_bytes(tmp_path: Path, threads: int) -> None:
    digests = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        settings = replace(FAST, threads=threads)
        digests.add(
            sha256_of(write_segments(tmp_path / name, [30], np.arange(30), Fraction(1, 25), settings=settings)[0])
        )
    assert len(digests) == 1


@pytest.mark.parametrize(("width", "height"), [(160, 96), (96, 64), (32, 208)])
def test_bytes_do_not_depend_on_what_the_memory_held(tmp_path: Path, width: int, height: int) -> None:
    libc = ctypes.CDLL(None)
    convert = YuvConverter(width, height)
    texture = np.random.default_rng(4).integers(0, 256, (height, width + 24, 3), dtype=np.uint8)
    texture = cv2.normalize(cv2.GaussianBlur(texture, (0, 0), 4), None, 20, 180, cv2.NORM_MINMAX)
    frames = [convert.convert(texture[:, 2 * i : 2 * i + width] + np.uint8(i)) for i in range(12)]
    digests = set()
    try:
        for fill in (1, 85, 170, 254):
            if not libc.mallopt(M_PERTURB, fill):
                pytest.skip("this C library does not fill memory")
            with SegmentWriter(
                tmp_path / "s.mp4", width, height, Fraction(25), Fraction(1, 25), replace(FAST, crf=10)
            ) as s:
                for i, frame in enumerate(frames):
                    s.write(frame, i)
            digests.add(sha256_of(tmp_path / "s.mp4"))
    finally:
        libc.mallopt(M_PERTURB, 0)
    assert len(digests) == 1


def test_bytes_do_not_depend_on_where_the_segment_lies_in_the_video(tmp_path: Path) -> None:
    digests = set()
    for start in (0, 90_000):
        path = tmp_path / f"{start}.mp4"
        convert = YuvConverter(*SIZE)
        with SegmentWriter(path, *SIZE, Fraction(25), Fraction(1, 1000), FAST) as writer:
            for i in range(20):
                writer.write(convert.convert(draw(i, *SIZE)), start + 40 * i)
        digests.add(sha256_of(path))
    assert len(digests) == 1


@pytest.mark.parametrize(
    "time_base", [Fraction(1, 25), Fraction(1001, 30000), Fraction(1, 29978), Fraction(1, 1000), Fraction(1, 10**9)]
)
def test_times_come_back_exactly_from_zero(tmp_path: Path, time_base: Fraction) -> None:
    steps = np.random.default_rng(3).integers(1, 4, 20)
    pts = 5 + np.cumsum(steps * max(1, round(Fraction(1, 25) / time_base)))
    (path,) = write_segments(tmp_path, [20], pts, time_base)
    assert read_frames(path) == [(int(p - pts[0]) * time_base, i) for i, p in enumerate(pts)]


def test_the_info_describes_the_published_file(tmp_path: Path) -> None:
    path = tmp_path / "s.mp4"
    convert = YuvConverter(*SIZE)
    writer = SegmentWriter(path, *SIZE, Fraction(25), Fraction(1, 25), FAST)
    for i in range(4):
        writer.write(convert.convert(draw(i, *SIZE)), i)
    assert not path.exists()
    info = writer.close()
    assert (info.frames, info.nbytes, info.sha256) == (4, path.stat().st_size, sha256_of(path))
    assert [p.name for p in tmp_path.iterdir()] == ["s.mp4"]


def test_a_segment_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        SegmentWriter(tmp_path / "s.mp4", *SIZE, Fraction(25), Fraction(1, 25), FAST) as writer,
    ):
        writer.write(YuvConverter(*SIZE).convert(draw(0, *SIZE)), 0)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_segment_without_frames_is_an_error(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path / "s.mp4", *SIZE, Fraction(25), Fraction(1, 25), FAST)
    with pytest.raises(JobError, match="no frames"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("second", [0, -1, 2**31])
def test_times_that_mp4_cannot_hold_are_refused(tmp_path: Path, second: int) -> None:
    frame = YuvConverter(*SIZE).convert(draw(0, *SIZE))
    with (
        pytest.raises(JobError, match="frame 1"),
        SegmentWriter(tmp_path / "s.mp4", *SIZE, Fraction(25), Fraction(1, 10**9), FAST) as writer,
    ):
        writer.write(frame, 0)
        writer.write(frame, second)


def test_the_stream_is_tagged_bt709_limited_high_profile_with_square_pixels(tmp_path: Path) -> None:
    (path,) = write_segments(tmp_path, [5], np.arange(5), Fraction(1, 25))
    with av.open(str(path)) as container:  # noqa: TID251
        context = container.streams.video[0].codec_context
        frame = next(container.decode(video=0))
        assert (context.profile, context.pix_fmt) == ("High", "yuv420p")
        assert context.sample_aspect_ratio in (None, 1)
        assert (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == (1, 1, 1, 1)


def keyframe_times(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:  # noqa: TID251
        packets = [p for p in container.demux(video=0) if p.size]
    return sorted(p.pts * p.time_base for p in packets if p.is_keyframe)


@pytest.mark.parametrize("step", [1, 5, 13])
def test_keyframes_are_at_most_a_gop_apart_at_any_frame_rate(tmp_path: Path, step: int) -> None:
    pts = np.arange(90) * step  # the nominal rate is 25; with larger steps frames come less often
    settings = replace(FAST, gop_seconds=1.0)
    (path,) = write_segments(tmp_path, [90], pts, Fraction(1, 25), settings=settings)
    keys = keyframe_times(path)
    longest = max(b - a for a, b in pairwise(keys))
    assert keys[0] == 0
    assert longest <= 1 + Fraction(step, 25) + Fraction(1, 25)


def test_a_constant_rate_needs_no_forced_keyframes() -> None:
    clock = KeyframeClock(2.0, Fraction(30000, 1001))
    assert not any(clock.due(Fraction(round(i * 1001 / 30), 1000)) for i in range(500))


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong in (
        {"preset": "p4"},
        {"codec": "nvenc"},
        {"codec": "av1"},
        {"crf": 52},
        {"threads": 0},
        {"gop_seconds": 0},
    ):
        with pytest.raises(UsageError):
            EncoderSettings(**wrong)  # type: ignore[arg-type]


def test_x264_options_hold_all_that_joining_and_reproducing_need() -> None:
    name, options = encoder_options(EncoderSettings(threads=3), 50)
    assert name == "libx264"
    assert options["crf"] == "18"
    assert options["x264-params"].startswith("threads=3:stitchable=1:open-gop=0:keyint=50")


def test_nvenc_is_probed_by_trying_and_the_reason_is_said() -> None:
    # In a process of its own: where there is a card, trying makes a CUDA context.
    code = "from actors.video.encode import probe_nvenc; print(probe_nvenc() or 'works')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "works" or "h264_nvenc" in done.stdout


def test_an_encoder_that_is_missing_is_a_reason_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.video.encode.encoder_options", lambda *_: ("no_such_encoder", {}))
    assert "no_such_encoder" in (probe_nvenc() or "")
