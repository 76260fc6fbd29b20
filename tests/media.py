"""Synthetic clips for tests: every frame says its number in its pixels, flashes and clicks mark whole seconds.

    clip = write_clip(folder / "a.mp4", frames=60, sounds=(Sound(),))
    number(rgb)                  # which frame these pixels are
    flash_times(path), click_times(path)

Pictures are drawn as they are to be seen; rotation, range and matrix are undone by whoever decodes rightly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

RGB = NDArray[np.uint8]

BITS = 12  # frame numbers in the bars: 0..4095
GREEN = (0, 177, 64)
_MATRICES = {
    # name: (swscale matrix, colour space, transfer and primaries tags of ISO 23091-4)
    "bt601": (Colorspace.ITU601, 6, 6, 6),
    "bt709": (Colorspace.ITU709, 1, 1, 1),
    "pq": (Colorspace.BT2020, 9, 16, 9),
    "hlg": (Colorspace.BT2020, 9, 18, 9),
}


def draw(
    index: int,
    width: int,
    height: int,
    screen: tuple[int, int, int] | None = None,
    flash: bool = False,
    bars: bool = True,
) -> RGB:
    """Frame `index`, uint8 [H,W,3].

    Number bars above, a moving figure on a gradient (or on a `screen` colour), a flash strip below.
    """
    y, x = np.mgrid[0:height, 0:width]
    if screen is None:
        rgb = np.stack([x * 200 // max(width - 1, 1) + 30, y * 160 // max(height - 1, 1) + 40, 110 + 0 * x], -1)
    else:
        rgb = np.broadcast_to(np.array(screen), (height, width, 3)).copy()
    centre = width * (0.5 + 0.25 * np.sin(index * 0.15))
    body = ((x - centre) / (width * 0.12)) ** 2 + ((y - height * 0.62) / (height * 0.2)) ** 2 < 1
    head = (x - centre) ** 2 + (y - height * 0.36) ** 2 < (height * 0.07) ** 2
    rgb[body] = (200, 40, 60)
    rgb[head] = (225, 180, 150)
    if not bars:
        return rgb.astype(np.uint8)
    for bit, (left, right) in enumerate(_cells(width)):
        rgb[: height // 5, left:right] = 235 if index >> bit & 1 else 20
    rgb[height - height // 10 :] = 240 if flash else 16
    return rgb.astype(np.uint8)


def _cells(width: int) -> Iterator[tuple[int, int]]:
    for bit in range(BITS):
        yield width * bit // BITS, width * (bit + 1) // BITS


def number(rgb: NDArray[Any]) -> int:
    """The frame number in the pixels of [H,W,3]."""
    height, width = rgb.shape[:2]
    rows = rgb[height // 20 : max(height * 3 // 20, height // 20 + 1)]
    value = 0
    for bit, (left, right) in enumerate(_cells(width)):
        third = (right - left) // 3
        value |= int(rows[:, left + third : right - third].mean() > 127) << bit
    return value


def has_flash(rgb: NDArray[Any]) -> bool:
    """Whether the strip at the foot is lit."""
    height = rgb.shape[0]
    return bool(rgb[height - height // 20 :].mean() > 127)


@dataclass(frozen=True)
class Sound:
    """A sound track: a quiet tone with a loud click at each whole second from 1.

    Attributes:
        start: time of the first sample; the clicks stay at whole seconds.
        skew: seconds by which the clicks come after (or before) the flashes.
        seconds: length, by default that of the video.
    """

    codec: str = "aac"
    rate: int = 48000
    layout: str = "stereo"
    start: float = 0.0
    skew: float = 0.0
    seconds: float | None = None
    language: str = ""
    tone: float = 440.0

    def wave(self, seconds: float) -> NDArray[np.float32]:
        """float32 [channels, samples]."""
        t = np.arange(round((self.seconds or seconds) * self.rate)) / self.rate + self.start
        wave = 0.05 * np.sin(2 * np.pi * self.tone * t)
        since = (t - self.skew) % 1.0
        wave[(since < 0.004) & (t - self.skew >= 0.5)] = 0.9
        return np.tile(wave.astype(np.float32), (1 if self.layout == "mono" else 2, 1))


@dataclass(frozen=True)
class Clip:
    """What was written: `pts` of the frames to be seen (in `time_base`), and the number in the first of them."""

    path: Path
    frames: int
    pts: list[int]
    time_base: Fraction
    first_number: int = 0
    width: int = 0
    height: int = 0

    @property
    def seconds(self) -> list[Fraction]:
        """Times of the frames."""
        return [p * self.time_base for p in self.pts]

    @property
    def numbers(self) -> list[int]:
        """Numbers that the frames show, in order."""
        return list(range(self.first_number, self.first_number + self.frames))


@dataclass(frozen=True)
class Look:
    """How pixels are stored.

    Attributes:
        matrix: a key of `_MATRICES`.
        tagged: whether the stream says so.
        rotation: degrees counter-clockwise that a player has to turn the stored picture.
        aspect: width / height of a stored pixel; the stored width is reduced accordingly.
        screen: what the figure is before, instead of a gradient.
        bars: number and flash strip; a keyer wants the screen alone.
    """

    pix_fmt: str = "yuv420p"
    matrix: str = "bt709"
    tagged: bool = True
    full_range: bool = False
    rotation: int = 0
    aspect: Fraction = Fraction(1)
    interlaced: bool = False
    screen: tuple[int, int, int] | None = None
    bars: bool = True


def write_clip(
    path: Path,
    *,
    frames: int = 30,
    width: int = 320,
    height: int = 240,
    rate: Fraction | int = 30,
    codec: str = "libx264",
    look: Look | None = None,
    gop: int = 12,
    options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    start: Fraction | float = 0,
    trim: int = 0,
    sounds: Sequence[Sound] = (),
    format: str | None = None,
    container_options: dict[str, str] | None = None,
    first: int = 0,
) -> Clip:
    """Write a clip and return what a right decoder makes of it.

    Args:
        width, height: as displayed.
        options: codec options, over a fast default for x264.
        pts: times in `time_base` for a variable rate; by default index / rate.
        start: seconds added to all times.
        trim: leading frames that an mp4 edit list hides.
        first: number of the first frame written.
    """
    look = look or Look()
    rate = Fraction(rate)
    base = time_base or (
        1 / rate if path.suffix == ".avi" else Fraction(1, 30000 if rate.denominator == 1001 else 90000)
    )
    ticks = list(pts) if pts is not None else [round(i / rate / base) for i in range(frames)]
    shift = round(Fraction(start) / base) - (ticks[trim] if trim else 0)
    ticks = [t + shift for t in ticks]
    extra = dict(container_options or {})
    if path.suffix in (".mp4", ".mov") and base.numerator == 1:
        extra.setdefault("video_track_timescale", str(base.denominator))
    with av.open(str(path), "w", format=format, container_options=extra) as out:  # noqa: TID251
        packets = [*_video_packets(out, codec, look, width, height, rate, base, ticks, gop, options or {}, first)]
        seconds = float((ticks[-1] + 1 / rate / base) * base)
        tracks = [_sound_stream(out, sound) for sound in sounds]
        out.start_encoding()
        for sound, stream in zip(sounds, tracks, strict=True):
            packets += _sound_packets(stream, sound, seconds)
        for packet in sorted(packets, key=lambda p: float(p.dts * p.time_base)):
            out.mux(packet)
    seen = ticks[trim:]
    return Clip(path, len(seen), seen, base, first + trim, width, height)


def _video_packets(
    out: Any,
    codec: str,
    look: Look,
    width: int,
    height: int,
    rate: Fraction,
    base: Fraction,
    ticks: Sequence[int],
    gop: int,
    options: dict[str, str],
    first: int,
) -> Iterator[Any]:
    turned = look.rotation % 180 == 90
    stored_w, stored_h = (height, width) if turned else (width, height)
    stored_w = round(stored_w / look.aspect)
    stream = out.add_stream(codec, rate=rate)
    ctx = stream.codec_context
    ctx.width, ctx.height, ctx.pix_fmt, ctx.time_base, ctx.gop_size = stored_w, stored_h, look.pix_fmt, base, gop
    stream.time_base = base
    matrix, space, transfer, primaries = _MATRICES[look.matrix]
    full = ColorRange.JPEG if look.full_range else ColorRange.MPEG
    if look.tagged:
        ctx.colorspace, ctx.color_trc, ctx.color_primaries = space, transfer, primaries
        ctx.color_range = int(full)
    if look.aspect != 1:
        ctx.sample_aspect_ratio = look.aspect
    if codec == "libx264":
        options = {"preset": "veryfast", "crf": "18", "bf": "2", "threads": "1", **options}
    elif codec == "libx265":
        options = {"preset": "ultrafast", "crf": "18", "x265-params": "log-level=none:pools=1", **options}
    if look.interlaced:
        options = {"flags": "+ildct+ilme", **options}
        if codec == "libx264":
            options = {"x264-params": "tff=1", **options}
    ctx.options = options
    if look.rotation:
        stream.set_display_rotation(look.rotation)
    convert = VideoReformatter()
    for index, tick in enumerate(ticks):
        flash = _flashes(tick * base, rate)
        rgb = draw(first + index, width, height, look.screen, flash, look.bars)
        if look.interlaced:  # the second field is half a frame later
            rgb[1::2] = draw(first + index, width, height, look.screen, flash)[1::2]
            rgb[height // 5 :][1::2] = np.roll(rgb[height // 5 :][1::2], 3, axis=1)
        rgb = np.ascontiguousarray(np.rot90(rgb, -(look.rotation // 90)))
        frame = convert.reformat(
            av.VideoFrame.from_ndarray(rgb, format="rgb24"),
            width=stored_w,
            height=stored_h,
            format=look.pix_fmt,
            dst_colorspace=matrix,
            dst_color_range=full,
            interpolation=Interpolation.AREA if look.aspect == 1 else Interpolation.BICUBIC,
            threads=1,
        )
        frame.pts, frame.time_base = tick, base
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _flashes(time: Fraction, rate: Fraction) -> bool:
    """Whether a whole second (from 1) falls in the frame that starts at `time`."""
    nearest = round(time)
    return nearest >= 1 and abs(time - nearest) < Fraction(1, 2) / rate


def _sound_stream(out: Any, sound: Sound) -> Any:
    stream = out.add_stream(sound.codec, rate=sound.rate)
    stream.codec_context.layout = sound.layout
    stream.codec_context.time_base = Fraction(1, sound.rate)
    if sound.language:
        stream.metadata["language"] = sound.language
    return stream


def _sound_packets(stream: Any, sound: Sound, seconds: float) -> list[Any]:
    wave = sound.wave(seconds)
    ctx = stream.codec_context
    source = av.AudioFrame.from_ndarray(wave, format="fltp", layout=sound.layout)
    source.sample_rate, source.time_base = sound.rate, Fraction(1, sound.rate)
    source.pts = 0
    resampler = av.AudioResampler(ctx.format, sound.layout, sound.rate, frame_size=ctx.frame_size or 1024)
    offset = round(sound.start * sound.rate)
    packets = []
    for frame in [*resampler.resample(source), *resampler.resample(None)]:
        frame.pts += offset
        packets += stream.encode(frame)
    return packets + list(stream.encode(None))


def flash_times(path: Path) -> list[float]:
    """Times of the flashes in a file that a test trusts."""
    with av.open(str(path)) as src:  # noqa: TID251
        return [float(f.pts * f.time_base) for f in src.decode(video=0) if has_flash(f.to_ndarray(format="rgb24"))]


def click_times(path: Path, track: int = 0) -> list[float]:
    """Times of the clicks' onsets in sound track `track` of a file that a test trusts."""
    clicks: list[float] = []
    with av.open(str(path)) as src:  # noqa: TID251
        for frame in src.decode(audio=track):
            wave = frame.to_ndarray()
            if np.issubdtype(wave.dtype, np.integer):
                wave = wave / np.iinfo(wave.dtype).max
            if not frame.format.is_planar:
                wave = wave.reshape(-1, frame.layout.nb_channels or 1).T
            begin = float(frame.pts * frame.time_base)
            for sample in np.flatnonzero(np.abs(wave).max(0) > 0.45):
                at = begin + sample / frame.sample_rate
                if not clicks or at - clicks[-1] > 0.1:
                    clicks.append(at)
    return clicks


def read_rgb(path: Path) -> list[RGB]:
    """All frames of a file that a test trusts, as the library's default makes them."""
    with av.open(str(path)) as src:  # noqa: TID251
        return [f.to_ndarray(format="rgb24") for f in src.decode(video=0)]


def write_green_screen(path: Path, *, frames: int = 60, width: int = 320, height: int = 240, **more: Any) -> Clip:
    """A figure on a flat green screen, with sound."""
    look = replace(more.pop("look", Look()), screen=GREEN)
    return write_clip(path, frames=frames, width=width, height=height, look=look, sounds=(Sound(),), **more)
