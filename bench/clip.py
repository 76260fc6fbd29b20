"""The clip that is measured: a moving figure on an unevenly lit green screen, with noise and sound, drawn here."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from math import pi, sin
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc
from numpy.typing import NDArray

from actors.video.background import crop_to_cover
from actors.video.limits import Limits
from actors.video.open import open_media
from actors.video.own import create_mp4
from actors.video.yuv import MATRIX_BT709, YuvConverter

RATE = 30
#: Longer clips repeat these frames: 8 s are 240 frames and exactly 375 packets of AAC, so both repeat without a seam.
PERIOD = 240
_TICKS = 90_000
_SAMPLES = 48_000
_AAC_FRAME = 1024

RGB = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Stored:
    """An encoded packet that can be written many times; times in the stream's own ticks."""

    data: bytes
    pts: int
    dts: int
    key: bool


def write_clip(path: Path, frames: int, size: tuple[int, int], source: Path | None = None) -> int:
    """Writes a clip of `size` at 30 frames a second, with sound.

    Args:
        frames: how many; more than `PERIOD`, or than `source` has, are whole repetitions of what there is.
        source: a video whose first frames are used instead of the drawn ones, scaled to cover.

    Returns:
        Frames written.
    """
    pictures = drawn(size) if source is None else _taken(source, size)
    with create_mp4(path, {"video_track_timescale": str(_TICKS)}) as out:
        picture_stream, sound_stream = _video_stream(out, size), _sound_stream(out)
        video = _pictures(picture_stream, islice(pictures, min(frames, PERIOD)), size)
        length = len(video)
        rounds = -(-frames // length)
        samples = length * _SAMPLES // RATE
        sound = _sound(sound_stream, samples)
        if rounds > 1:
            sound = sound[: samples // _AAC_FRAME]
        out.start_encoding()
        tracks = (
            _repeated(video, picture_stream, rounds, length * _TICKS // RATE),
            _repeated(sound, sound_stream, rounds, samples),
        )
        for packet in heapq.merge(*tracks, key=lambda packet: packet.dts * packet.time_base):
            out.mux(packet)
    return length * rounds


def drawn(size: tuple[int, int]) -> Iterator[RGB]:
    """Frames [H,W,3] without end; the motion repeats every `PERIOD`."""
    width, height = size
    generator = np.random.default_rng(7)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    light = 0.8 + 0.25 * x / width + 0.1 * y / height
    screen = np.clip(light[..., None] * np.array((10, 165, 70), np.float32), 0, 255).astype(np.uint8)
    # One grain, shifted from frame to frame: as costly to encode as fresh noise, and drawn in a moment.
    grain = generator.normal(0, 3, (height, width, 3)).astype(np.int16)
    index = 0
    while True:
        rgb = screen.copy()
        _figure(rgb, index / PERIOD * 2 * pi)
        shift = generator.integers(0, (height, width))
        yield cv2.add(rgb, np.roll(grain, tuple(shift), (0, 1)), dtype=cv2.CV_8U)
        index += 1


def write_backdrop(path: Path, size: tuple[int, int]) -> Path:
    """A still to set the figure before: a coloured sky and ground, as PNG."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    wave = 12 * np.sin(x / width * 9) + 12 * np.sin(y / height * 7)
    rgb = np.stack([60 + 90 * y / height + wave, 90 + 60 * x / width, 150 - 70 * y / height + wave], -1)
    cv2.imwrite(str(path), np.clip(rgb, 0, 255).astype(np.uint8)[..., ::-1])
    return path


def _figure(rgb: RGB, phase: float) -> None:
    """A dancer of ellipses and limbs; `phase` runs from 0 to 2 pi over a period."""
    height, width = rgb.shape[:2]

    def at(x: float, y: float) -> tuple[int, int]:
        return round(x * width), round(y * height)

    sway = 0.5 + 0.16 * sin(4 * phase)
    hip, shoulder = 0.62, 0.36 + 0.01 * sin(16 * phase)
    thick = max(2, height // 16)
    for side in (-1, 1):
        swing = side * sin(8 * phase)
        hand = at(sway + side * 0.2, shoulder - 0.12 * swing)
        cv2.line(rgb, at(sway + side * 0.05, shoulder), hand, (206, 150, 120), thick, cv2.LINE_AA)
        foot = at(sway + side * 0.08 + 0.05 * swing, 0.96)
        cv2.line(rgb, at(sway + side * 0.04, hip), foot, (40, 45, 90), thick + 2, cv2.LINE_AA)
    cv2.ellipse(rgb, at(sway, 0.48), at(0.085, 0.17), 0, 0, 360, (190, 40, 60), -1, cv2.LINE_AA)
    for stripe in range(3):
        level = 0.4 + 0.07 * stripe
        cv2.line(rgb, at(sway - 0.06, level), at(sway + 0.06, level), (235, 200, 90), max(1, height // 90), cv2.LINE_AA)
    cv2.circle(rgb, at(sway, 0.22), height // 14, (222, 175, 145), -1, cv2.LINE_AA)
    cv2.ellipse(rgb, at(sway, 0.19), at(0.05, 0.045), 0, 180, 360, (45, 30, 25), -1, cv2.LINE_AA)


def _taken(source: Path, size: tuple[int, int]) -> Iterator[RGB]:
    width, height = size
    with open_media(source, Limits()) as container:
        for frame in container.decode(video=0):
            rgb: Any = frame.to_ndarray(format="rgb24")
            yield cv2.resize(crop_to_cover(rgb, width, height), size, interpolation=cv2.INTER_AREA)


def _pictures(stream: Any, pictures: Iterator[RGB], size: tuple[int, int]) -> list[_Stored]:
    convert = YuvConverter(*size)
    packets = []
    for index, rgb in enumerate(pictures):
        frame = convert.convert(rgb)
        frame.pts, frame.time_base = index * _TICKS // RATE, Fraction(1, _TICKS)
        packets += stream.encode(frame)
    return [_stored(packet) for packet in (*packets, *stream.encode(None))]


def _sound(stream: Any, samples: int) -> list[_Stored]:
    """AAC packets of a tone with a click each second; the first holds the encoder's delay."""
    t = np.arange(samples) / _SAMPLES
    wave = (0.1 * np.sin(2 * pi * 440 * t) + 0.8 * (t % 1 < 0.004)).astype(np.float32)
    packets = []
    for first in range(0, samples, _AAC_FRAME):
        part = np.ascontiguousarray(np.tile(wave[first : first + _AAC_FRAME], (2, 1)))
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = _SAMPLES, first, Fraction(1, _SAMPLES)
        packets += stream.encode(frame)
    return [_stored(packet) for packet in (*packets, *stream.encode(None))]


def _stored(packet: Any) -> _Stored:
    return _Stored(bytes(packet), packet.pts, packet.dts, packet.is_keyframe)


def _repeated(packets: Sequence[_Stored], stream: Any, rounds: int, ticks: int) -> Iterator[Any]:
    for number in range(rounds):
        for stored in packets:
            packet = av.Packet(stored.data)
            packet.stream, packet.time_base, packet.is_keyframe = stream, stream.codec_context.time_base, stored.key
            packet.pts, packet.dts = stored.pts + number * ticks, stored.dts + number * ticks
            yield packet


def _video_stream(out: Any, size: tuple[int, int]) -> Any:
    options = {"preset": "veryfast", "crf": "18", "g": str(2 * RATE), "bf": "2", "x264-params": "open-gop=0"}
    stream = out.add_stream("libx264", rate=RATE, options=options)
    context = stream.codec_context
    context.width, context.height, context.pix_fmt = *size, "yuv420p"
    context.time_base = stream.time_base = Fraction(1, _TICKS)
    context.colorspace, context.color_range = MATRIX_BT709, ColorRange.MPEG
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream


def _sound_stream(out: Any) -> Any:
    stream = out.add_stream("aac", rate=_SAMPLES)
    stream.codec_context.layout = "stereo"
    stream.codec_context.time_base = stream.time_base = Fraction(1, _SAMPLES)
    return stream
