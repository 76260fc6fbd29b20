"""Joining segments into the final mp4 without re-encoding, with the sound of the source."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av import Packet
from av.container import InputContainer, OutputContainer
from av.stream import Stream
from numpy.typing import NDArray

from actors.video.beat import Beat, nothing, paced
from actors.video.own import create_mp4, mp4_timescale, open_own
from actors.video.sound import Sound, SoundTrack
from cluster.errors import JobError
from cluster.files import sha256_of, written_whole

#: What a player shows of a sound track.
_DESCRIPTION = ("language", "title", "handler_name")


@dataclass(frozen=True, slots=True)
class Joined:
    """The final file: frames and bytes in it, its hash, and what became of each sound track."""

    frames: int
    nbytes: int
    sha256: str
    sounds: tuple[SoundTrack, ...]


def join(
    segments: Sequence[Path],
    target: Path,
    *,
    pts: NDArray[np.int64],
    time_base: Fraction,
    last_duration: int,
    sound: Sound | None,
    beat: Beat = nothing,
) -> Joined:
    """Copy the packets of all segments, in order, and those of the sound into `target`.

    Equal arguments give an equal file. Memory does not grow with the length but for some 40 bytes a frame.

    Args:
        segments: files of `SegmentWriter`, which together hold one frame for each of `pts`.
        target: the final mp4; published whole.
        pts: int64 [n], the source's times in ticks of `time_base`.
        last_duration: ticks that the last frame is shown.
        sound: what `extract_sound` made of the source, or None for none.
        beat: called about once a second or more often, but while the header is moved to the front of a large file. What
            it raises goes on to the caller, when no file is left.

    Raises:
        JobError: a segment does not fit: other headers, other times, too few or too many frames.
    """
    beat = paced(beat)
    timescale = mp4_timescale(time_base)
    scale = int(time_base * timescale)
    times = np.asarray(pts, np.int64) * scale
    if times[0] < 0:
        raise JobError(target.name, f"its first frame is shown at {float(times[0] / timescale):.3f} s: mp4 starts at 0")
    order = _decode_order(segments, times, target.name, beat)
    dts = decode_times(order, times)
    durations = np.diff(times, append=times[-1] + last_duration * scale)
    # Start offsets are stored in the movie's timescale: a multiple of the video's keeps it exact, 10 kHz keeps sound
    # to 0.05 ms.
    movie_timescale = timescale * math.ceil(10_000 / timescale)
    options = {
        "movflags": "+faststart",
        "video_track_timescale": str(timescale),
        "movie_timescale": str(movie_timescale),
    }
    with written_whole(target) as partial:
        with ExitStack() as stack:
            heard = None if sound is None else stack.enter_context(open_own(sound.path))
            out = stack.enter_context(create_mp4(partial, options))
            video = _add_video(out, segments[0], timescale)
            video_packets = _video_packets(segments, video, times[order], dts, durations[order], Fraction(1, timescale))
            sound_packets = _sound_packets(heard, sound, out) if heard is not None and sound is not None else iter(())
            for packet in heapq.merge(video_packets, sound_packets, key=_when):
                beat()
                out.mux_one(packet)
        size, digest = partial.stat().st_size, sha256_of(partial, beat)
    return Joined(len(times), size, digest, sound.tracks if sound is not None else ())


def decode_times(order: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.int64]:
    """dts for each packet, in decode order: strictly increasing, never after its pts.

    The segments' own dts overlap at the joints (each starts before its first pts), so they are made anew: the sorted
    pts, delayed by as many frames as the deepest reordering needs; the first ones count down below the first pts.

    Args:
        order: int64 [n], for each packet in decode order the rank of its pts.
        times: int64 [n], sorted pts.
    """
    n = len(order)
    delay = int(np.max(np.arange(n) - order))
    first = times[0] - np.arange(delay, 0, -1)
    return np.concatenate([first, times])[:n]


def _decode_order(segments: Sequence[Path], times: NDArray[np.int64], name: str, beat: Beat) -> NDArray[np.int64]:
    """The rank of each packet's pts, in decode order; the segments must be one video with exactly these times."""
    order: list[NDArray[np.int64]] = []
    first_headers: bytes | None = None
    done = 0
    for path in segments:
        with open_own(path) as container:
            stream = container.streams.video[0]
            headers = bytes(stream.codec_context.extradata or b"")
            packets = []
            for packet in _packets(container):
                beat()
                packets.append(_pts(packet))
        if first_headers is None:
            first_headers = headers
        if headers != first_headers:
            raise JobError(
                name, "its stream headers differ from the first segment's", place=path.name, remedy="rerun with --force"
            )
        own = np.array(packets, np.int64)
        ranks = np.empty(len(own), np.int64)
        ranks[np.argsort(own, kind="stable")] = np.arange(len(own))
        expected = times[done : done + len(own)]
        if len(own) == 0 or len(expected) != len(own) or not np.array_equal(np.sort(own), expected - expected[0]):
            raise JobError(
                name,
                f"its {len(own)} frames do not have the plan's times",
                place=path.name,
                remedy="rerun with --force",
            )
        order.append(ranks + done)
        done += len(own)
    if done == 0 or done != len(times):
        raise JobError(name, f"the segments hold {done} frames, the plan {len(times)}", remedy="rerun with --force")
    return np.concatenate(order)


def _packets(container: InputContainer) -> Iterator[Packet[Any]]:
    """The video's packets, without the empty one that ends them."""
    return (packet for packet in container.demux(container.streams.video[0]) if packet.size)


def _pts(packet: Packet[Any]) -> int:
    if packet.pts is None:
        raise JobError("segment", "a packet has no time")
    return packet.pts


def _add_video(out: OutputContainer, segment: Path, timescale: int) -> Stream:
    with open_own(segment) as container:
        stream = out.add_stream_from_template(container.streams.video[0], opaque=True)
    stream.time_base = Fraction(1, timescale)
    return stream


def _video_packets(
    segments: Sequence[Path],
    video: Stream,
    pts: NDArray[np.int64],
    dts: NDArray[np.int64],
    durations: NDArray[np.int64],
    tick: Fraction,
) -> Iterator[Packet[Any]]:
    """All segments' packets with their new times, in decode order."""
    index = 0
    for path in segments:
        with open_own(path) as container:
            for packet in _packets(container):
                packet.stream = video
                packet.time_base = tick
                packet.pts, packet.dts = int(pts[index]), int(dts[index])
                packet.duration = int(durations[index])
                index += 1
                yield packet


def _sound_packets(container: InputContainer, sound: Sound, out: OutputContainer) -> Iterator[Packet[Any]]:
    """Adds the sound's streams to `out` now; the packets, times untouched, come as they are asked for."""
    streams: dict[int, Stream] = {}
    for track in sound.tracks:
        template: Stream = container.streams[track.stream]
        stream: Stream = out.add_stream_from_template(template, opaque=True)
        stream.metadata.update({key: template.metadata[key] for key in _DESCRIPTION if key in template.metadata})
        stream.disposition = template.disposition
        streams[template.index] = stream
    return _restreamed(container, streams)


def _restreamed(container: InputContainer, streams: dict[int, Stream]) -> Iterator[Packet[Any]]:
    for packet in container.demux(list(streams)):
        if packet.size:
            packet.stream = streams[packet.stream_index]
            yield packet


def _when(packet: Packet[Any]) -> float:
    """Seconds by which packets of different streams are put in order."""
    ticks = packet.dts if packet.dts is not None else packet.pts
    if ticks is None or packet.time_base is None:
        raise av.error.InvalidDataError(0, "a packet has no time")
    return float(ticks * packet.time_base)
