"""Checking a final file against its plan: decoded from start to end, every time equal, sound where it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from actors.video.beat import Beat, nothing, paced
from actors.video.boxes import video_end
from actors.video.own import open_own
from actors.video.sample import Sampler
from actors.video.sound import AAC_DELAY, SoundTrack
from cluster.errors import JobError

#: Frames that decord samples, evenly over the file.
SAMPLES = 8

#: Largest difference of 255 between two decoders' RGB: another library version may round its conversion differently.
LEVELS = 2

#: Seconds by which a track's first packet may move: copied times are only rounded to the file's ticks, encoded ones
#: to samples.
COPIED_OFFSET, ENCODED_OFFSET = 0.002, 0.005

#: Seconds by which a track's end may move: an encoded one is filled up to a whole AAC frame (128 ms at 8 kHz).
COPIED_END = 0.002


@dataclass(frozen=True, slots=True)
class Verification:
    """What was checked and found right, for the ledger.

    Attributes:
        frames: video frames decoded, all with the plan's times.
        seconds: end of the last frame, on the source's clock.
        sampled: frames that decord read equal to PyAV's.
        sounds: sound tracks decoded from start to end.
        worst_offset: seconds, the largest move of a sound track against the pictures.
    """

    frames: int
    seconds: float
    sampled: int
    sounds: int
    worst_offset: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def verify(
    final: Path,
    *,
    pts: NDArray[np.int64],
    time_base: Fraction,
    last_duration: int,
    sounds: Sequence[SoundTrack] = (),
    threads: int = 2,
    beat: Beat = nothing,
) -> Verification:
    """Decode `final` from start to end and compare it with what it must be.

    Args:
        final: a file made by `join`.
        pts: int64 [n], the source's times in ticks of `time_base`.
        last_duration: ticks that the last frame is shown.
        sounds: the sound tracks, as `extract_sound` found them in the source.
        threads: of the decoder.
        beat: called about once a second or more often, but while decord opens the file. What it raises goes on to the
            caller.

    Raises:
        JobError: names the file and the first difference.
    """
    end = (int(pts[-1]) + last_duration) * time_base
    beat = paced(beat)
    try:
        found_end = video_end(final)
        sampled = _check_video(final, pts, time_base, threads, beat)
        worst = _check_sounds(final, sounds, beat)
    except (av.FFmpegError, ValueError) as error:
        raise _wrong(final, f"cannot be decoded: {error}") from error
    if found_end != end:
        raise _wrong(final, f"ends at {float(found_end):.6f} s, the source at {float(end):.6f} s")
    return Verification(len(pts), float(end), sampled, len(sounds), worst)


def _wrong(final: Path, reason: str, place: str = "verification") -> JobError:
    return JobError(final.name, reason, place=place, remedy="rerun with --force")


def _check_video(final: Path, pts: NDArray[np.int64], time_base: Fraction, threads: int, beat: Beat) -> int:
    """Every frame's time, and decord's reading of a few; the number of those."""
    samples = _sampled(final, len(pts), beat)
    index = 0
    with open_own(final) as container:
        stream = container.streams.video[0]
        # A damaged slice is otherwise concealed without a word.
        stream.codec_context.options = {"err_detect": "explode"}
        stream.codec_context.thread_count = threads
        for frame in container.decode(stream):
            beat()
            place = f"frame {index}"
            if index >= len(pts):
                raise _wrong(final, f"has more than the plan's {len(pts)} frames", place)
            if frame.is_corrupt or frame.pts is None or frame.time_base is None:
                raise _wrong(final, "is damaged or has no time", place)
            found, expected = frame.pts * frame.time_base, int(pts[index]) * time_base
            if found != expected:
                raise _wrong(final, f"is shown at {found} s, the source's at {expected} s", place)
            if index in samples:
                difference = np.abs(samples[index].astype(np.int16) - frame.to_ndarray(format="rgb24"))
                if int(difference.max()) > LEVELS:
                    raise _wrong(final, f"decord reads it {int(difference.max())} levels differently", place)
            index += 1
    if index != len(pts):
        raise _wrong(final, f"has {index} frames, the plan {len(pts)}")
    return len(samples)


def _sampled(final: Path, count: int, beat: Beat) -> dict[int, NDArray[np.uint8]]:
    """Frames as decord reads them, by index. At once, with nothing between: decord decodes ahead while it waits, and
    keeps it all, 2 GiB of a quarter of an hour."""
    reader = Sampler(final)
    if len(reader) != count:
        raise _wrong(final, f"decord finds {len(reader)} frames, the plan has {count}")
    samples = {}
    for i in np.linspace(0, count - 1, SAMPLES).round():
        beat()
        samples[int(i)] = reader[int(i)]
    return samples


def _check_sounds(final: Path, sounds: Sequence[SoundTrack], beat: Beat) -> float:
    """Every track: decodable, and its first and last packet where the source has them; the largest move."""
    spans = _spans(final, beat)
    if len(spans) != len(sounds):
        raise _wrong(final, f"has {len(spans)} sound tracks, the source {len(sounds)}")
    worst = 0.0
    for number, ((first, end, rate), track) in enumerate(zip(spans, sounds, strict=True)):
        place = f"sound track {number}"
        # The encoder's first packet holds nothing but its delay.
        delay, offset, longer = (
            (0.0, COPIED_OFFSET, COPIED_END)
            if track.copied
            else (AAC_DELAY / rate, ENCODED_OFFSET, 2 * AAC_DELAY / rate)
        )
        moved = first + delay - track.first
        if abs(moved) > offset:
            raise _wrong(final, f"starts {moved * 1000:+.1f} ms from where the source's does", place)
        if abs(end - track.end) > longer:
            raise _wrong(final, f"ends at {end:.3f} s, the source's at {track.end:.3f} s", place)
        worst = max(worst, abs(moved))
    return worst


def _spans(final: Path, beat: Beat) -> list[tuple[float, float, int]]:
    """For each sound track: seconds of its first packet and of its last one's end, and its sampling rate."""
    with open_own(final) as container:
        streams = container.streams.audio
        if not streams:
            return []
        spans: dict[int, tuple[Fraction, Fraction]] = {}
        for packet in container.demux(*streams):
            beat()
            packet.decode()  # for its errors
            if packet.size and packet.pts is not None:
                start = packet.pts * packet.time_base
                end = start + (packet.duration or 0) * packet.time_base
                known = spans.get(packet.stream_index, (start, end))
                spans[packet.stream_index] = min(start, known[0]), max(end, known[1])
        found = [(spans[s.index], s.codec_context.sample_rate) for s in streams if s.index in spans]
        return [(float(first), float(end), rate) for (first, end), rate in found]
