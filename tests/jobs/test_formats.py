"""Whatever goes in: times, order, size, colour and sound come out as they went in, seen by another reader."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.jobs.inprocess import restage
from tests.media import Look, Sound, click_times, has_flash, number, write_clip

SIZE = 160, 120
SYNC_SECONDS = 0.005


@dataclass(frozen=True)
class Case:
    """How a clip is written, and what must be said of its result."""

    name: str
    clip: dict[str, Any] = field(default_factory=dict)
    sounds: tuple[Sound, ...] = (Sound(),)
    notice: str = ""
    size: tuple[int, int] = SIZE


def variable_times() -> list[int]:
    """Intervals of 25 to 125 ms in milliseconds, with frames at whole seconds."""
    second = [0, 25, 75, 175, 300, 325, 350, 475, 600, 700, 800, 925]
    return [1000 * s + t for s in range(3) for t in second]


X265_OPEN = {"preset": "veryfast", "x265-params": "log-level=none:open-gop=1:bframes=3:pools=1:keyint=20"}
CASES = (
    Case("aac.mp4"),
    Case("sound_400_ms_early.mp4", sounds=(Sound(skew=-0.4),)),
    Case("sound_400_ms_late.mp4", sounds=(Sound(start=0.4, skew=0.4),)),
    Case("opus.mkv", sounds=(Sound("libopus"),), notice="became AAC"),
    Case("pcm.avi", {"options": {"bf": "0"}}, (Sound("pcm_s16le"),), notice="became AAC"),
    Case("b_frames_without_times.avi", sounds=(Sound("pcm_s16le"),), notice="index"),
    Case("two_tracks.mkv", sounds=(Sound(language="eng"), Sound("ac3", language="deu", tone=660))),
    Case("silent.mp4", sounds=()),
    Case("variable_rate.mp4", {"pts": variable_times(), "time_base": Fraction(1, 1000)}),
    Case("variable_rate.mkv", {"pts": variable_times(), "time_base": Fraction(1, 1000)}),
    Case("ntsc.mp4", {"rate": Fraction(30000, 1001)}),
    Case("edit_list.mp4", {"trim": 13, "frames": 80}),
    Case("start_offset.mp4", {"start": 1.5}),
    Case("turned_90.mp4", {"look": Look(rotation=90), "width": 120, "height": 160}, size=(120, 160)),
    Case("turned_180.mp4", {"look": Look(rotation=180)}),
    Case("turned_270.mp4", {"look": Look(rotation=270), "width": 120, "height": 160}, size=(120, 160)),
    Case("ten_bit.mp4", {"look": Look("yuv420p10le")}),
    Case("full_range.mp4", {"look": Look(full_range=True)}),
    Case("bt601.mp4", {"look": Look(matrix="bt601")}),
    Case("bt709.mp4", {"look": Look(matrix="bt709")}),
    Case("odd_size.mp4", {"look": Look("yuv444p"), "width": 161, "height": 121}, size=(162, 122)),
    Case("open_gop.mp4", {"gop": 20, "options": {"bf": "3", "x264-params": "open-gop=1"}}),
    Case("open_gop_hevc.mp4", {"codec": "libx265", "gop": 20, "options": X265_OPEN}),
    Case("transport_stream.ts", notice="MPEG-TS"),
    Case("interlaced.mp4", {"look": Look(interlaced=True)}, notice="interlaced"),
    Case(
        "vp9.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}, (Sound("libopus"),)
    ),
    Case("hevc.mkv", {"codec": "libx265"}),
)


@dataclass(frozen=True)
class Seen:
    """A file as a plain reader sees it, turned as a player would."""

    times: list[Fraction]
    frames: list[NDArray[np.uint8]]

    @property
    def flashes(self) -> list[float]:
        return [float(t) for t, rgb in zip(self.times, self.frames, strict=True) if has_flash(rgb)]


def look_at(path: Path) -> Seen:
    """Times and pictures by the library alone; an AVI stores none but its rate."""
    times: list[Fraction] = []
    frames = []
    with av.open(str(path)) as container:  # noqa: TID251
        stream = container.streams.video[0]
        for frame in container.decode(stream):
            frames.append(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
            times.append(frame.pts * frame.time_base)
        if path.suffix == ".avi":
            times = [i / Fraction(stream.average_rate) for i in range(len(times))]
    return Seen(times, frames)


def sync(path: Path, flashes: list[float], track: int) -> list[float]:
    """For each flash, seconds from it to the click that belongs to it."""
    clicks = click_times(path, track)
    return [min((click - flash for click in clicks), key=abs) for flash in flashes]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_times_order_size_colour_and_sound_survive(case: Case, tmp_path: Path) -> None:
    written = {"frames": 66, "width": SIZE[0], "height": SIZE[1], "sounds": case.sounds, **case.clip}
    clip = write_clip(tmp_path / case.name, **written)
    source = look_at(clip.path)
    _, row = restage(clip.path, tmp_path / "out")
    result = look_at(Path(row["output"]))

    assert result.times == source.times
    assert [number(rgb) for rgb in result.frames] == clip.numbers
    assert result.frames[0].shape[1::-1] == case.size
    if clip.path.suffix == ".mp4":
        assert result.times == clip.seconds
    assert len(source.flashes) >= 1
    assert result.flashes == source.flashes
    for track in range(len(case.sounds)):
        before, after = (sync(path, source.flashes, track) for path in (clip.path, Path(row["output"])))
        np.testing.assert_allclose(after, before, rtol=0, atol=SYNC_SECONDS)
    assert_ours(Path(row["output"]), len(case.sounds), [sound.language for sound in case.sounds])
    assert case.notice in " ".join(row["notices"])
    # Both files through the same reader, which honours their tags: the colours are the source's.
    drift = [np.mean(b, (0, 1)) - np.mean(a, (0, 1)) for a, b in zip(source.frames, result.frames, strict=True)]
    assert np.abs(drift).max() < 2


def assert_ours(path: Path, sounds: int, languages: list[str]) -> None:
    """What every result is, whatever it was made of."""
    with av.open(str(path)) as container:  # noqa: TID251
        video = container.streams.video[0]
        ctx = video.codec_context
        frame = next(container.decode(video))
        assert (ctx.name, ctx.pix_fmt, frame.rotation) == ("h264", "yuv420p", 0)
        assert (int(ctx.colorspace), int(ctx.color_range), int(ctx.color_primaries), int(ctx.color_trc)) == (1, 1, 1, 1)
        assert video.sample_aspect_ratio in (None, 1)
        assert len(container.streams.audio) == sounds
        found = [stream.language or "" for stream in container.streams.audio]
        assert [language if wanted else "" for language, wanted in zip(found, languages, strict=True)] == languages
        assert {stream.codec_context.name for stream in container.streams.audio} <= {"aac", "ac3"}
