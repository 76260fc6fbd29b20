"""Taking the sound out of a user's file: copies what can be copied, encodes the rest, all into one mp4.

Runs in the decoding process (`actors.video.child`) only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av import AudioFrame, AudioResampler, Packet
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.stream import Disposition

from actors.video.limits import Limits
from actors.video.open import open_media
from actors.video.own import create_mp4
from actors.video.sound import COPIED, SoundTrack
from cluster.errors import MediaError

#: Sampling rates of AAC (ISO 14496-3, table 1.18); other rates become 48 kHz.
AAC_RATES = frozenset({96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350})

#: Layouts by channel count, in AAC's own configurations; PCM from AVI says only how many channels it has.
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}

AAC_FRAME = 1024
BITS_PER_CHANNEL = 96_000


class Copy:
    """A track whose packets are passed on with their own times."""

    copied = True

    def __init__(self, source: AudioStream, out: OutputContainer) -> None:
        self.source = source
        self.stream = out.add_stream_from_template(source, opaque=True)
        self.first: Fraction | None = None
        self.end = Fraction(0)

    def feed(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        """Packets to write for one that was read.

        Raises:
            FFmpegError: it cannot be decoded, which the final file would be found to have in it.
        """
        if not packet.size:
            return
        self.source.codec_context.decode(packet)  # for its errors: here, where a stranger's bytes may do no harm
        if packet.pts is None:
            packet.pts = packet.dts  # equal for sound; AVI has only one of them
        if packet.pts is None or packet.time_base is None:
            raise ValueError("a packet has no time")
        packet.dts = packet.pts
        start = packet.pts * packet.time_base
        self.first = start if self.first is None else self.first
        self.end = max(self.end, start + (packet.duration or 0) * packet.time_base)
        packet.stream = self.stream
        yield packet

    def finish(self) -> Iterator[Packet[Any]]:
        """What is left at the end."""
        yield from ()


class Encode:
    """A track that is decoded and encoded to AAC with its times passed on; gaps in it become silence."""

    copied = False

    def __init__(self, source: AudioStream, out: OutputContainer) -> None:
        self.source = source
        context = source.codec_context
        rate = context.sample_rate if context.sample_rate in AAC_RATES else 48000
        layout = LAYOUTS.get(context.channels, "stereo")
        self.stream = out.add_stream("aac", rate=rate)
        self.stream.codec_context.layout = layout
        self.stream.codec_context.bit_rate = BITS_PER_CHANNEL * self.stream.codec_context.channels
        self.stream.codec_context.time_base = Fraction(1, rate)
        # async=1 fills gaps and trims overlaps, beyond 30 ms so that times rounded to milliseconds pass as they are.
        self._resample = AudioResampler("fltp", layout, rate, AAC_FRAME, {"async": "1", "min_hard_comp": "0.03"})
        self.first: Fraction | None = None
        self.end = Fraction(0)

    def feed(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        """Packets to write for one that was read; the one without data flushes the decoder."""
        for frame in self.source.codec_context.decode(packet):
            if frame.pts is not None and frame.time_base is not None:
                start = frame.pts * frame.time_base
            elif self.first is None:
                raise ValueError("the first samples have no time")
            else:
                start = self.end
                frame.time_base = Fraction(1, frame.sample_rate)
                frame.pts = round(start * frame.sample_rate)
            self.first = start if self.first is None else self.first
            self.end = start + Fraction(frame.samples, frame.sample_rate)
            yield from self._encode(self._resample.resample(frame))

    def finish(self) -> Iterator[Packet[Any]]:
        """What is left at the end."""
        if self.first is not None:
            yield from self._encode([*self._resample.resample(None), None])

    def _encode(self, frames: Iterable[AudioFrame | None]) -> Iterator[Packet[Any]]:
        for frame in frames:
            yield from self.stream.encode(frame)


def extract(source: Path, target: Path, limits: Limits, progress: Callable[[float], None]) -> list[SoundTrack]:
    """Write the sound of `source` to `target`; an empty list when it has none.

    Args:
        progress: called with the seconds heard so far, at least once a second of sound.

    Raises:
        MediaError: the source is refused or its sound cannot be read.
    """
    with open_media(source, limits) as container:
        try:
            return _extract(container, target, progress)
        except (av.FFmpegError, ValueError) as error:
            reason = f"its sound cannot be read: {error}"
            raise MediaError(source.name, reason, remedy="convert the sound to AAC first") from error


def _extract(container: InputContainer, target: Path, progress: Callable[[float], None]) -> list[SoundTrack]:
    # The survey has told of those that nothing here decodes (phones add spatial sound beside AAC).
    streams = [stream for stream in container.streams.audio if stream.codec_context is not None]
    if not streams:
        return []
    # One timescale in which each track's start is exact.
    timescale = math.lcm(*(stream.codec_context.sample_rate for stream in streams))
    options = {"movie_timescale": str(timescale if timescale < 2**31 else 1_000_000)}
    tracks: dict[int, Copy | Encode] = {}
    with create_mp4(target, options) as out:
        for stream in streams:
            kind = Copy if stream.codec_context.name in COPIED else Encode
            tracks[stream.index] = kind(stream, out)
            _describe(stream, tracks[stream.index].stream)
        heard = 0
        # With the video, whose packets may go on long after the sound: signs of life for who waits.
        for packet in container.demux(*streams, *container.streams.video):
            track = tracks.get(packet.stream.index)
            if track is None:
                progress(heard)
                continue
            for ready in track.feed(packet):
                out.mux_one(ready)
            if track.end >= heard:
                heard = int(track.end) + 1
                progress(float(track.end))
        for track in tracks.values():
            for ready in track.finish():
                out.mux_one(ready)
    return [_report(track) for track in tracks.values() if track.first is not None]


def _describe(source: AudioStream, stream: AudioStream) -> None:
    title = source.metadata.get("title", "")
    language = source.metadata.get("language", "")
    # Players read a track's name from its handler.
    described = {"language": language, "title": title, "handler_name": title}
    stream.metadata.update({key: value for key, value in described.items() if value})
    stream.disposition = source.disposition & ~Disposition.attached_pic


def _report(track: Copy | Encode) -> SoundTrack:
    metadata = track.source.metadata
    assert track.first is not None
    return SoundTrack(
        stream=track.stream.index,
        index=track.source.index,
        codec=track.source.codec_context.name,
        copied=track.copied,
        language=metadata.get("language", ""),
        title=metadata.get("title", ""),
        first=float(track.first),
        end=float(track.end),
    )
