"""The demo's clip: the dancer before an unevenly lit green screen, with a tune and a click on every beat."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc
from av.video.stream import VideoStream
from numpy.typing import NDArray

from actors.video.own import create_mp4
from actors.video.yuv import MATRIX_BT709, YuvConverter, tag_709
from cli.demo.canvas import Canvas
from cli.demo.dancer import BEATS, BEATS_PER_SECOND, draw
from cluster.files import written_whole

WIDTH, HEIGHT, RATE = 480, 854, 25
FRAMES = round(1.05 * BEATS / BEATS_PER_SECOND * RATE)  # not a whole dance, so that a contact sheet shows it all
_FIGURE, _FLOOR = 548.0, np.array([240.0, 772.0])
_GREEN = (52.0, 186.0, 84.0)
#: One exposure is the mean of so many drawings, over this part of the frame's time: fast limbs are blurred.
_EXPOSURES, _SHUTTER = 3, 0.3
_GRAIN = 2.5
_SAMPLES = 48000


def write_clip(target: Path, *, frames: int = FRAMES) -> None:
    """Draws the clip and encodes it as a camera would: H.264 in 4:2:0 with AAC sound."""
    with written_whole(target) as partial, create_mp4(partial, {"movflags": "+faststart"}) as out:
        video = out.add_stream("libx264", rate=RATE, options={"crf": "20", "preset": "fast", "threads": "2"})
        assert isinstance(video, VideoStream)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.time_base = video.codec_context.time_base = Fraction(1, RATE)
        context = video.codec_context
        context.colorspace, context.color_range = MATRIX_BT709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        sound = out.add_stream("aac", rate=_SAMPLES, layout="stereo")
        convert = YuvConverter(WIDTH, HEIGHT)
        packets: list[av.Packet[Any]] = []
        for index, rgb in enumerate(_pictures(frames)):
            frame = tag_709(convert.convert(rgb))
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            packets += video.encode(frame)
        packets += [*video.encode(None), *_sound_packets(sound, frames / RATE)]
        for packet in sorted(packets, key=_decode_time):
            out.mux(packet)


def _decode_time(packet: av.Packet[Any]) -> Fraction:
    assert packet.dts is not None and packet.time_base is not None
    return packet.dts * packet.time_base


def _pictures(frames: int) -> Iterator[NDArray[np.uint8]]:
    screen = _screen()
    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(lambda index: _picture(index, screen), range(frames))


def _picture(index: int, screen: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Frame `index`, uint8 [H,W,3]."""
    colours, cover = np.zeros((3, HEIGHT, WIDTH), np.float32), np.zeros((HEIGHT, WIDTH), np.float32)
    for step in range(_EXPOSURES):
        canvas = Canvas(WIDTH, HEIGHT)
        draw(canvas, (index + _SHUTTER * step / _EXPOSURES) / RATE, _FLOOR, _FIGURE)
        colours += canvas.colours / _EXPOSURES
        cover += canvas.cover / _EXPOSURES
    grain = np.random.default_rng(index).normal(0, _GRAIN, (HEIGHT, WIDTH, 1)).astype(np.float32)
    picture = cv2.merge(list(colours + screen * (1 - cover))) + grain
    return np.asarray(np.clip(picture, 0, 255), np.uint8)


def _screen() -> NDArray[np.float32]:
    """The empty studio [3,H,W]: light falls off to the right and below, the figure's shadow lies on the floor."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    light = 1.10 - 0.24 * x / WIDTH - 0.22 * (y / HEIGHT - 0.35) ** 2
    light -= 0.05 / (1 + np.exp(-(y - 700) / 12))  # wall and floor meet in a soft bend
    shadow = ((x - _FLOOR[0]) / 150) ** 2 + ((y - _FLOOR[1] - 2) / 22) ** 2
    light *= 1 - 0.22 * np.exp(-shadow).astype(np.float32)
    return np.stack([light * np.float32(channel) for channel in _GREEN])


def _sound_packets(stream: Any, seconds: float) -> list[Any]:
    wave = tune(seconds)
    packets = []
    resampler = av.AudioResampler("fltp", "stereo", _SAMPLES, frame_size=stream.codec_context.frame_size or 1024)
    source = av.AudioFrame.from_ndarray(wave, format="fltp", layout="stereo")
    source.sample_rate, source.pts, source.time_base = _SAMPLES, 0, Fraction(1, _SAMPLES)
    for frame in [*resampler.resample(source), *resampler.resample(None)]:
        packets += stream.encode(frame)
    return [*packets, *stream.encode(None)]


def tune(seconds: float) -> NDArray[np.float32]:
    """Stereo samples float32 [2,n]: a plucked broken chord, and a click at every beat."""
    t = np.arange(round(seconds * _SAMPLES)) / _SAMPLES
    beat = t * BEATS_PER_SECOND
    # Two notes a beat; A minor, F, C, G, each for four beats, as half tones above A3.
    chords = np.array([[0, 3, 7, 12], [-4, 0, 3, 8], [3, 7, 10, 15], [-2, 2, 5, 10]])
    step = (beat * 2).astype(int)
    note = chords[(step // 8) % 4, np.array([0, 2, 3, 2, 1, 2, 3, 2])[step % 8]]
    since = (beat * 2 - step) / (2 * BEATS_PER_SECOND)
    pitch = 220 * 2 ** (note / 12)
    pluck = 0.22 * np.exp(-7 * since) * (np.sin(2 * np.pi * pitch * since) + 0.4 * np.sin(4 * np.pi * pitch * since))
    bass = 0.16 * np.sin(2 * np.pi * 55 * 2 ** (chords[(step // 8) % 4, 0] / 12) * since) * np.exp(-3 * since)
    click = 0.5 * np.exp(-900 * (beat % 1) / BEATS_PER_SECOND) * np.sin(2 * np.pi * 1800 * t)
    left, right = pluck + bass + click, 0.8 * pluck + bass + click
    return np.stack([left, right]).astype(np.float32)
