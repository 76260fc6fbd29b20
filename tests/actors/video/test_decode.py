"""Frames come out right whatever the container, codec, times and colours; any range equals the same frames in order."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange

from actors.video.decode import Decoder
from actors.video.info import UNKNOWN
from actors.video.limits import Limits
from actors.video.scan import Scan, inspect, scan
from actors.video.sound import extract_sound
from cluster.errors import MediaError
from tests.broken import write_damaged
from tests.media import GREEN, Clip, Look, Sound, draw, has_flash, number, write_clip

MS = Fraction(1, 1000)
LIMITS = Limits(stall_seconds=120)
TEN_BIT, FULL, HD = Look("yuv420p10le"), Look(full_range=True), {"width": 1280, "height": 720, "frames": 6}
X265 = {"preset": "medium", "x265-params": "log-level=none:open-gop=1:bframes=3:pools=1"}

CLIPS: dict[str, dict[str, object]] = {
    "plain.mp4": {"sounds": (Sound(),)},
    "faststart.mp4": {"container_options": {"movflags": "+faststart"}},
    "fragmented.mp4": {"options": {"bf": "0"}, "container_options": {"movflags": "+frag_keyframe+empty_moov"}},
    "ntsc.mp4": {"rate": Fraction(30000, 1001)},
    "variable.mp4": {"pts": [0, 1000, 4000, 5000, 29000, *range(30000, 51000, 700)], "time_base": Fraction(1, 30000)},
    "edit_list.mp4": {"trim": 13, "frames": 60},
    "late_start.mp4": {"start": 1.5, "sounds": (Sound(),)},
    "one_frame.mp4": {"frames": 1},
    "open_gop.mp4": {"frames": 100, "gop": 20, "options": {"bf": "3", "x264-params": "open-gop=1"}},
    "open_gop_hevc.mp4": {"frames": 100, "gop": 20, "codec": "libx265", "options": X265},
    "intra_refresh.mp4": {"frames": 60, "gop": 20, "options": {"x264-params": "intra-refresh=1"}},
    "hevc.mkv": {"codec": "libx265"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "opus.mkv": {"sounds": (Sound("libopus"),)},
    "h264_without_times.avi": {"frames": 60, "sounds": (Sound("pcm_s16le"),)},
    "mpeg4_without_times.avi": {"codec": "mpeg4", "options": {"bf": "2", "qscale": "2", "flags": "+qscale"}},
    "mpeg4.avi": {"codec": "mpeg4"},
    "motion_jpeg.avi": {"codec": "mjpeg", "look": Look("yuvj420p", matrix="bt601", full_range=True)},
    "ten_bit.mp4": {"look": TEN_BIT},
    "prores.mov": {"codec": "prores_ks", "look": Look("yuv422p10le")},
    "rgb.mkv": {"codec": "ffv1", "look": Look("bgr0")},
    "alpha.mkv": {"codec": "ffv1", "look": Look("yuva420p")},
    "live.mkv": {"frames": 60, "container_options": {"live": "1"}},
    "wide_pixels.mkv": {"look": Look(aspect=Fraction(4, 3))},
    "one_keyframe.mp4": {"frames": 60, "gop": 1000},
    "odd_size.mp4": {"width": 321, "height": 241, "look": Look("yuv444p")},
    "odd_size_420.mkv": {"width": 321, "height": 241, "codec": "ffv1"},
    "turned_90.mp4": {"look": Look(rotation=90)},
    "turned_180.mp4": {"look": Look(rotation=180)},
    "turned_270.mp4": {"look": Look(rotation=270)},
    "wide_pixels.mp4": {"look": Look(aspect=Fraction(4, 3))},
    "wide_pixels_turned.mp4": {"look": Look(aspect=Fraction(4, 3), rotation=90)},
    "full_range.mp4": {"look": FULL},
    "tagged_601.mp4": {"look": Look(matrix="bt601", screen=GREEN)},
    "tagged_709.mp4": {"look": Look(matrix="bt709", screen=GREEN)},
    "untagged_240_lines.mp4": {"look": Look(matrix="bt601", tagged=False, screen=GREEN)},
    "untagged_720_lines.mp4": {"look": Look(matrix="bt709", tagged=False, screen=GREEN), **HD},
}


def assert_right(clip: Clip, found: Scan, *, tolerance: float = 0.0) -> list[np.ndarray]:
    """All frames by number and time; ranges in any order equal them to the last bit."""
    times = [t * found.info.time_base for t in found.pts.tolist()]
    assert len(times) == clip.frames
    assert max(abs(a - b) for a, b in zip(times, clip.seconds, strict=True)) <= tolerance
    with Decoder(found, LIMITS) as decoder:
        frames = list(decoder.frames(0, len(found)))
        assert [number(f) for f in frames] == clip.numbers
        for first in [len(frames) * k // 7 for k in (6, 2, 4)]:
            part = np.empty((min(2, len(frames) - first), *frames[0].shape), np.uint8)
            decoder.read_into(part, first, first + len(part))
            np.testing.assert_array_equal(part, frames[first : first + len(part)])
    return frames


@pytest.mark.parametrize("name", CLIPS)
def test_every_kind_of_clip_yields_its_frames_times_and_colours(name: str, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / name, **CLIPS[name])  # type: ignore[arg-type]
    found = scan(clip.path, LIMITS, workdir=tmp_path)
    rounded = 0.0005 if clip.path.suffix in (".mkv", ".webm") else 0.0
    frames = assert_right(clip, found, tolerance=rounded)
    look = CLIPS[name].get("look", Look())
    assert isinstance(look, Look)
    for index in (0, len(frames) - 1):
        flash = has_flash(frames[index])
        drawn = draw(clip.numbers[index], clip.width, clip.height, look.screen, flash)
        lossy = 6.5 if clip.path.suffix == ".avi" else 3.0  # a wrong matrix or range is off by 8 and more on average
        assert np.abs(frames[index].astype(int) - drawn).mean() < lossy


@pytest.mark.parametrize("name", ["open_gop.mp4", "open_gop_hevc.mp4", "edit_list.mp4"])
def test_every_single_frame_is_right_when_jumped_to(name: str, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / name, **CLIPS[name])  # type: ignore[arg-type]
    found = scan(clip.path, LIMITS, workdir=tmp_path)
    with Decoder(found, LIMITS) as decoder:
        frames = list(decoder.frames(0, len(found)))
        for index in reversed(range(len(found))):
            np.testing.assert_array_equal(next(decoder.frames(index, index + 1)), frames[index])


def test_transport_stream_is_remuxed_and_keeps_times_and_sound(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.ts", frames=60, gop=12, sounds=(Sound(),))
    found = scan(clip.path, LIMITS, workdir=tmp_path / "work")
    assert found.path == clip.path
    assert found.source.parent == tmp_path / "work"
    assert found.source.suffix == ".mp4"
    assert any("MPEG-TS" in notice for notice in found.info.notices)
    assert [s.codec for s in found.info.sounds] == ["aac"]
    with av.open(found.source) as remuxed:  # noqa: TID251 - our own file
        # Its sound is read from the stream itself: MP4 does not hold all that a stream does.
        assert [stream.type for stream in remuxed.streams] == ["video"]
    assert found.info.time_base == Fraction(1, 90000)
    shift = Fraction(int(found.pts[0]), 90000)
    assert_right(Clip(clip.path, 60, [p + round(shift * 90000) for p in clip.pts], clip.time_base), found)
    again = scan(clip.path, LIMITS, workdir=tmp_path / "work")
    assert again.source == found.source
    assert sorted(p.name for p in (tmp_path / "work").iterdir()) == [found.source.name]


def test_interlaced_fields_are_merged_with_times_kept_and_reported(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=40, gop=8, look=Look(interlaced=True))
    found = scan(clip.path, LIMITS, workdir=tmp_path)
    assert found.info.interlaced
    assert any("interlaced" in notice for notice in found.info.notices)
    frames = assert_right(clip, found)
    combed = np.abs(np.diff(frames[20].astype(int), axis=0)).mean()
    progressive = np.abs(np.diff(draw(20, 320, 240).astype(int), axis=0)).mean()
    assert combed < 2 * progressive  # unmerged it is over 4 times


def test_hdr_is_tone_mapped_and_reported(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=3, codec="libx265", look=Look("yuv420p10le", matrix="pq"))
    found = scan(clip.path, LIMITS, workdir=tmp_path)
    assert found.info.hdr
    assert any("HDR (PQ)" in notice for notice in found.info.notices)
    with Decoder(found, LIMITS) as decoder:
        frames = list(decoder.frames(0, 3))
    assert [number(f) for f in frames] == [0, 1, 2]
    # The bars hold PQ code 235/255, thousands of nit, and 20/255, under one: mapped to white and to black.
    assert frames[1][:30, 5:20].min() > 200
    assert frames[1][:30, 60:].max() < 60


def test_gray_tagged_limited_is_stretched(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as out:  # noqa: TID251
        stream = out.add_stream("libx264", rate=30, options={"crf": "10"})
        ctx = stream.codec_context
        ctx.width, ctx.height, ctx.pix_fmt, ctx.color_range = 64, 48, "gray", int(ColorRange.MPEG)
        luma = np.repeat(np.array([[16, 126, 235]], np.uint8), 48, 0).repeat([21, 22, 21], 1)
        frame = av.VideoFrame.from_ndarray(luma, format="gray")
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    seen = inspect(tmp_path / "a.mp4", LIMITS)
    assert not seen.info.full_range
    np.testing.assert_allclose(seen.first[24, [10, 32, 54], 0].astype(int), [0, 128, 255], atol=2)


def test_wrong_extension_with_good_content_works(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4")
    clip.path.rename(tmp_path / "a.avi")
    found = scan(tmp_path / "a.avi", LIMITS, workdir=tmp_path)
    assert len(found) == 30
    assert found.info.format.startswith("mov")


def test_damaged_frames_are_refused_or_counted_and_come_again_in_the_same_order(tmp_path: Path) -> None:
    write_damaged(tmp_path / "a.mp4")
    found = scan(tmp_path / "a.mp4", LIMITS, workdir=tmp_path, allow_damaged=True)
    assert found.damaged > 0
    assert 60 < len(found) <= 90
    assert any("damaged" in notice for notice in found.info.notices)
    with Decoder(found, LIMITS) as decoder:
        frames = list(decoder.frames(0, len(found)))
        late = list(decoder.frames(50, 55))
    np.testing.assert_array_equal(late, frames[50:55])


def test_inspect_gives_the_description_and_the_first_frame(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", first=77, look=Look(rotation=90), sounds=(Sound(language="fra"), Sound()))
    seen = inspect(clip.path, LIMITS)
    assert (seen.info.width, seen.info.height) == (320, 240)
    assert (seen.info.coded_width, seen.info.coded_height) == (240, 320)
    assert seen.first.shape == (240, 320, 3)
    assert number(seen.first) == 77
    assert [s.language for s in seen.info.sounds] == ["fra", ""]


def test_what_is_not_applied_is_reported(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as out:  # noqa: TID251
        stream = out.add_stream("libx264", rate=30)
        ctx = stream.codec_context
        ctx.width, ctx.height, ctx.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_matrix([-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30])  # left and right exchanged
        for packet in [*stream.encode(av.VideoFrame(64, 48, "yuv420p")), *stream.encode(None)]:
            out.mux(packet)
    assert any("mirroring" in notice for notice in inspect(tmp_path / "a.mp4", LIMITS).info.notices)
    alpha = write_clip(tmp_path / "a.mkv", frames=1, codec="ffv1", look=Look("yuva420p"))
    assert any("alpha" in notice for notice in inspect(alpha.path, LIMITS).info.notices)


def test_scan_survives_storing(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", sounds=(Sound(),))
    found = scan(clip.path, LIMITS, workdir=tmp_path)
    again = Scan.from_bytes(found.to_bytes(), clip.path, tmp_path)
    assert again.info == found.info
    assert (again.path, again.source, again.last_duration) == (found.path, found.source, found.last_duration)
    for name in ("pts", "diff", "corr"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))


def test_last_duration_and_progress(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=50, rate=25)
    seen: list[int] = []
    found = scan(clip.path, LIMITS, workdir=tmp_path, progress=seen.append)
    assert found.last_duration == 3600
    assert found.seconds == pytest.approx(2)
    assert seen == sorted(seen)


@pytest.mark.parametrize("clip", ["person_gesture.mkv", "person_walking.mp4", "sintel_10s.mp4"])
def test_real_clips(clip: str, shared: Path, tmp_path: Path) -> None:
    frames, full_range = {"person_gesture.mkv": (89, True), "sintel_10s.mp4": (240, False)}.get(clip, (1394, False))
    found = scan(shared / "clips" / clip, LIMITS, workdir=tmp_path)
    assert len(found) == frames
    assert found.info.full_range == full_range
    with Decoder(found, LIMITS) as decoder:
        order = list(decoder.frames(40, 80))
        np.testing.assert_array_equal(next(decoder.frames(60, 61)), order[20])


def test_times_out_of_order_cost_themselves_alone(tmp_path: Path) -> None:
    """A late start and a variable rate stay; a time that comes twice or too early is put between its neighbours."""
    right = [1500, 1540, 1580, 1700, 1740, 1800, 1900, 2000]
    clip = write_clip(tmp_path / "a.mkv", frames=8, width=64, height=48, codec="ffv1", pts=right, time_base=MS)
    data = clip.path.read_bytes()
    for at, wrong in ((1580, 1540), (1800, 1640)):
        # A block of track 1: the time since its cluster's, which is the first frame's, and no flags.
        before, after = (b"\x81" + (ticks - 1500).to_bytes(2, "big") + b"\x00" for ticks in (at, wrong))
        assert data.count(before) == 1
        data = data.replace(before, after)
    clip.path.write_bytes(data)
    found = scan(clip.path, LIMITS, workdir=tmp_path)
    assert found.pts.tolist() == [1500, 1540, 1620, 1700, 1740, 1820, 1900, 2000]
    assert any("2 of 8 times missing or out of order" in notice for notice in found.info.notices)
    with Decoder(found, LIMITS) as decoder:
        assert [number(frame) for frame in decoder.frames(2, 8)] == list(range(2, 8))


def test_sound_of_an_unknown_codec_is_told_and_left_out_beside_sound_that_is_known(tmp_path: Path) -> None:
    """As phones write it: AAC, and spatial sound that only the maker's own players decode."""
    clip = write_clip(tmp_path / "a.mp4", frames=30, sounds=(Sound(), Sound()))
    head, _, tail = clip.path.read_bytes().rpartition(b"mp4a")
    clip.path.write_bytes(head + b"apac" + tail.replace(b"esds", b"free"))
    found = scan(clip.path, LIMITS, workdir=tmp_path)
    assert [sound.codec for sound in found.info.sounds] == ["aac", UNKNOWN]
    sound = extract_sound(clip.path, tmp_path / "sound.mp4", LIMITS)
    assert sound is not None
    assert [track.codec for track in sound.tracks] == ["aac"]
    clip.path.write_bytes(clip.path.read_bytes().replace(b"mp4a", b"apac").replace(b"esds", b"free"))
    with pytest.raises(MediaError, match="sound of a codec that is not known here; convert its sound to AAC"):
        scan(clip.path, LIMITS, workdir=tmp_path)
