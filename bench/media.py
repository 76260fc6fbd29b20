"""Decoding and encoding for the alternatives that a job is compared with: with its libraries and options, no more."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

from av import VideoFrame
from av.container import InputContainer, OutputContainer
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc

from actors.video.encode import EncoderSettings, KeyframeClock, encoder_options
from actors.video.limits import Limits
from actors.video.open import open_media
from actors.video.own import create_mp4
from actors.video.yuv import MATRIX_BT709
from bench.clip import RATE


def decoded(path: Path, threads: int) -> Iterator[VideoFrame]:
    """Frames of a clip in order, with as many decoder threads as a lane has."""
    with open_media(path, Limits()) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = threads
        stream.codec_context.thread_type = "AUTO"
        yield from container.decode(stream)


class X264File:
    """An mp4 at the clip's rate, encoded with a job's options; with `sound`, that file's sound is copied beside it."""

    def __init__(self, path: Path, size: tuple[int, int], settings: EncoderSettings, sound: Path | None = None) -> None:
        codec, options = encoder_options(settings, KeyframeClock(settings.gop_seconds, Fraction(RATE)).interval)
        self._stack = ExitStack()
        self._out = self._stack.enter_context(create_mp4(path, {}))
        self._stream: Any = self._out.add_stream(codec, rate=RATE, options=options)
        context: Any = self._stream.codec_context
        context.width, context.height, context.pix_fmt = *size, "yuv420p"
        context.thread_count = settings.threads
        context.colorspace, context.color_range = MATRIX_BT709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        self._tick = context.time_base = Fraction(1, RATE)
        self._sound = deque[Any]()
        if sound is not None:
            self._sound = _sound_packets(self._out, self._stack.enter_context(open_media(sound, Limits())))
        self._count = 0

    def write(self, frame: VideoFrame) -> None:
        """The next frame, `yuv420p`."""
        frame.pts, frame.time_base = self._count, self._tick
        self._out.mux(self._stream.encode(frame))
        self._count += 1
        self._mux_sound(self._count * self._tick)

    def _mux_sound(self, until: Fraction | None) -> None:
        while self._sound and (until is None or self._sound[0].dts * self._sound[0].time_base <= until):
            self._out.mux(self._sound.popleft())

    def __enter__(self) -> X264File:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is None:
                self._out.mux(self._stream.encode(None))
                self._mux_sound(None)


def _sound_packets(out: OutputContainer, source: InputContainer) -> deque[Any]:
    """Packets of the first sound track, as a new stream of `out`; a clip's are small enough to hold."""
    stream = source.streams.audio[0]
    copy = out.add_stream_from_template(stream, opaque=True)
    packets = deque(packet for packet in source.demux(stream) if packet.size)
    for packet in packets:
        packet.stream = copy
    return packets
