"""The process that opens a user's file for its sound: copies what can be copied, encodes the rest, all into one mp4.

Run as `python -m actors.video.sound_child REQUEST` by `actors.video.sound`. Writes dots for progress, one line a second of sound,
then one line of JSON: the tracks, or an error.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av import AudioFrame, AudioResampler, Packet
from av.audio.stream import AudioStream
from av.container import OutputContainer
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

    def feed(self, packet: Packet[AudioStream]) -> Iterator[Packet[Any]]:
        """Packets to write for one that was read."""
        if not packet.size:
            return
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
        self._resample = AudioResampler(
            "fltp", layout, rate, AAC_FRAME, {"async": "1", "min_hard_comp": "0.03"}
        )
        self.first: Fraction | None = None
        self.end = Fraction(0)

    def feed(self, packet: Packet[AudioStream]) -> Iterator[Packet[Any]]:
        """Packets to write for one that was read; the one without data flushes the decoder."""
        for frame in packet.decode():
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


def extract(source: Path, target: Path, limits: Limits) -> list[SoundTrack]:
    """Write the sound of `source` to `target`; an empty list, and no file, when it has none."""
    with open_media(source, limits) as container:
        streams = container.streams.audio
        if not streams:
            return []
        # One timescale in which each track's start is exact.
        timescale = math.lcm(*(stream.codec_context.sample_rate for stream in streams))
        options = {"movie_timescale": str(timescale)} if timescale < 2**31 else {"movie_timescale": "1000000"}
        with create_mp4(target, options) as out:
            tracks: dict[int, Copy | Encode] = {}
            for stream in streams:
                track = (Copy if stream.codec_context.name in COPIED else Encode)(stream, out)
                _describe(stream, track.stream)
                tracks[stream.index] = track
            heard = 0
            for packet in container.demux(*streams):
                track = tracks[packet.stream.index]
                out.mux(track.feed(packet))
                if int(track.end) > heard:
                    heard = int(track.end)
                    print(".", flush=True)
            for track in tracks.values():
                out.mux(track.finish())
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


def main() -> None:
    """Do what the request says, and say how it went."""
    request = json.loads(sys.argv[1])
    limits = Limits.from_json(request["limits"])
    resource.setrlimit(resource.RLIMIT_DATA, (limits.memory_bytes, limits.memory_bytes))
    av.logging.set_level(av.logging.FATAL)
    answer: dict[str, Any]
    try:
        tracks = extract(Path(request["source"]), Path(request["target"]), limits)
        answer = {"tracks": [asdict(track) for track in tracks]}
    except MediaError as error:
        answer = {"error": error.reason, "place": error.place, "remedy": error.remedy}
    except (av.FFmpegError, ValueError) as error:
        answer = {"error": f"cannot be read: {error}", "place": "sound", "remedy": "convert it first"}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
