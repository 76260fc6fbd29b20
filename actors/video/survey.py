"""The scan itself, as it runs in the decoding process."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from av import Packet, VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from numpy.typing import NDArray

from actors.video.info import UNKNOWN, MediaInfo
from actors.video.limits import Limits, check_size
from actors.video.open import check_seconds, open_media, video_stream
from actors.video.probe import describe, sounds_of
from actors.video.reader import Reader
from actors.video.remux import remux, remuxed_path
from actors.video.structure import inspect_structure
from cluster.errors import MediaError

SMALL_WIDTH, SMALL_HEIGHT = 64, 36  # at which neighbouring frames are compared
_FLAT = 0.5  # standard deviation of luma under which there is nothing to correlate
_INEXACT_HEADER = 1.0  # seconds by which header durations differ from the truth in valid files

Progress = Callable[[int], None]


def survey(
    path: Path, limits: Limits, *, allow_damaged: bool, workdir: Path, partial: Path, beat: Progress
) -> tuple[dict[str, Any], bytes]:
    """Decode `path` from start to end.

    Args:
        workdir: where a remuxed copy is kept.
        partial: what that is written to before it is whole.
        beat: called often, with the number of frames so far: the parent's sign of life.

    Returns:
        JSON values and an npz of `pts`, `diff`, `corr`, the fields of `Scan`.

    Raises:
        MediaError: the file is refused.
    """
    with ExitStack() as stack:
        container = stack.enter_context(open_media(path, limits))
        source, sounds, notices = path, sounds_of(container), []
        if sounds and all(sound.codec == UNKNOWN for sound in sounds):
            raise MediaError(
                path.name, "has sound of a codec that is not known here", remedy="convert its sound to AAC"
            )
        if container.format.name == "mpegts":
            source = remuxed_path(path, workdir)
            if not source.exists():
                remux(container, source, partial, path.name, lambda: beat(0))
            container = stack.enter_context(open_media(source, limits))
            notices.append("MPEG-TS: remuxed to mp4 before decoding")
        stream = video_stream(container, path.name)
        reader = Reader(container, stream, limits)
        tally = _Tally(path.name, limits, beat)
        for frame in reader.frames(tally.packet):
            if tally.info is None:
                tally.info = describe(container, stream, frame, path.name, limits)
            tally.add(frame, reader.errors)
        info = tally.finish(reader, container.duration, inspect_structure(source).complete, allow_damaged)
    info = replace(info, sounds=sounds).with_notice(*notices)
    if tally.damaged:
        info = info.with_notice(f"{tally.damaged} damaged frames, allowed")
    arrays = io.BytesIO()
    np.savez(arrays, pts=tally.pts, diff=np.array(tally.diff, np.float32), corr=np.array(tally.corr, np.float32))
    head = {
        "source": str(source),
        "info": info.to_json(),
        "last_duration": tally.last_duration,
        "damaged": tally.damaged,
    }
    return head, arrays.getvalue()


class _Tally:
    """What is gathered while frames go by."""

    def __init__(self, name: str, limits: Limits, beat: Progress) -> None:
        self.info: MediaInfo | None = None
        self.pts: NDArray[np.int64] = np.empty(0, np.int64)
        self.diff: list[float] = []
        self.corr: list[float] = []
        self.damaged = 0
        self.last_duration = 0
        self._name, self._limits, self._beat = name, limits, beat
        self._times: list[int | None] = []
        self._durations: list[int] = [0]
        self._corrupt, self._first_damaged = 0, -1
        self._interlaced = False
        self._reformatter = VideoReformatter()
        self._before: NDArray[np.float32] | None = None
        self._begin, self._end = 0.0, 0.0

    def packet(self, packet: Packet[Any]) -> None:
        """Keep the span of time that all streams cover."""
        self._beat(len(self._times))
        at = packet.pts if packet.pts is not None else packet.dts
        if at is not None and packet.time_base:
            self._begin = min(self._begin, float(at * packet.time_base))
            self._end = max(self._end, float((at + (packet.duration or 0)) * packet.time_base))

    def add(self, frame: VideoFrame, errors: int) -> None:
        """Count and compare one frame, before which `errors` packets in all were lost."""
        assert self.info is not None
        index = len(self._times)
        if (frame.width, frame.height) != (self.info.coded_width, self.info.coded_height):
            raise MediaError(
                self._name,
                f"changes its size from {self.info.coded_width}x{self.info.coded_height} to "
                f"{frame.width}x{frame.height}",
                place=f"frame {index}",
                remedy="cut it there and restage the parts",
            )
        if frame.format.name != self.info.pix_fmt:
            raise MediaError(
                self._name,
                f"changes its pixel format from {self.info.pix_fmt} to {frame.format.name}",
                place=f"frame {index}",
                remedy="convert it to one format first",
            )
        if index >= self._limits.max_frames:
            raise MediaError(
                self._name,
                f"is over the frame limit: more than {self._limits.max_frames} frames",
                remedy="cut it, or raise limits.max_frames",
            )
        self._corrupt += frame.is_corrupt
        if (self._corrupt or errors) and self._first_damaged < 0:
            self._first_damaged = index
        self._interlaced |= frame.interlaced_frame
        self._times.append(frame.pts)
        self._durations[0] = frame.duration or 0
        self._compare(frame)
        self._beat(index + 1)

    def finish(self, reader: Reader, header_duration: int | None, complete: bool, allow_damaged: bool) -> MediaInfo:
        """Judge the whole; the final description."""
        if self.info is None:
            raise MediaError(self._name, "has no frames: nothing in its video stream could be decoded")
        self.damaged = self._corrupt + reader.errors
        if self.damaged and not allow_damaged:
            first = self._first_damaged if self._first_damaged >= 0 else len(self._times)
            raise MediaError(
                self._name,
                f"is damaged: {self._corrupt} of {len(self._times)} frames are corrupt and {reader.errors} more were "
                f"lost, the first at frame {first}",
                remedy="repair it, or pass --allow-damaged to go on with what there is",
            )
        span = self._end - self._begin
        promised = (header_duration or 0) / av.time_base
        if not complete and promised - span > _INEXACT_HEADER:
            raise MediaError(
                self._name,
                f"is cut off: {span:.2f} of {promised:.2f} s are there",
                remedy="copy, download or record it again",
            )
        info = self._set_times(reader.guessed).with_fields_merged(self._interlaced)
        check_size(info.width, info.height, self._name, self._limits)
        ticks = int(self.pts[-1]) + self.last_duration - int(self.pts[0])
        check_seconds(float(ticks * info.time_base), self._name, self._limits)
        return info

    def _set_times(self, guessed: bool) -> MediaInfo:
        info = self.info
        assert info is not None
        frame_ticks = 1 / info.rate / info.time_base
        known = _increasing(self._times)
        pts = np.array(list(known.values()), np.int64)
        if guessed or 2 * len(known) < len(self._times):
            info = replace(info, index_times=True).with_notice("times missing or out of order: made from index / rate")
            pts = np.array([round(i * frame_ticks) for i in range(len(self._times))], np.int64)
            self.last_duration = max(1, round(frame_ticks))
        elif len(known) < len(self._times):
            wrong = len(self._times) - len(known)
            info = replace(info, index_times=True).with_notice(
                f"{wrong} of {len(self._times)} times missing or out of order: put between their neighbours"
            )
            pts = _between(known, len(self._times), float(frame_ticks))
            self.last_duration = max(1, round(frame_ticks))
        elif self._durations[0] > 0:
            self.last_duration = self._durations[0]
        elif len(pts) > 1:
            self.last_duration = int(pts[-1] - pts[-2])
        else:
            self.last_duration = max(1, round(frame_ticks))
        self.pts = pts
        return info

    def _compare(self, frame: VideoFrame) -> None:
        assert self.info is not None
        full = self.info.full_range
        small = self._reformatter.reformat(
            frame,
            width=SMALL_WIDTH,
            height=SMALL_HEIGHT,
            format="yuv444p",
            src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,  # one scale for all inputs: the thresholds are of 255
            interpolation=Interpolation.AREA,
            threads=1,
        )
        planes = small.to_ndarray().astype(np.float32)  # [3, 36, 64]
        if self._before is None:
            self.diff.append(0.0)
            self.corr.append(1.0)
        else:
            self.diff.append(float(np.abs(planes - self._before).mean()))
            self.corr.append(_correlation(planes[0], self._before[0]))
        self._before = planes


def _increasing(times: Sequence[int | None]) -> dict[int, int]:
    """Times by index, without those that are missing or do not come after the one before."""
    known: dict[int, int] = {}
    last: int | None = None
    for index, at in enumerate(times):
        if at is not None and (last is None or at > last):
            known[index] = last = at
    return known


def _between(known: Mapping[int, int], count: int, frame_ticks: float) -> NDArray[np.int64]:
    """All times: known ones, others evenly between their neighbours or a frame apart at the ends; int64 [count].

    Where neighbours leave no room, later times move on by as little as it takes.
    """
    at = np.interp(np.arange(count), list(known), list(known.values()))
    first, last = min(known), max(known)
    at[:first] = known[first] - frame_ticks * np.arange(first, 0, -1)
    at[last + 1 :] = known[last] + frame_ticks * np.arange(1, count - last)
    ticks = np.round(at).astype(np.int64)
    steps = np.arange(count)
    return np.asarray(np.maximum.accumulate(ticks - steps) + steps, dtype=np.int64)


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Pearson's; 0 where one picture is flat, which then decides nothing against a cut."""
    a, b = a - a.mean(), b - b.mean()
    deviations = float(np.sqrt((a * a).mean()) * np.sqrt((b * b).mean()))
    return float((a * b).mean()) / deviations if deviations > _FLAT**2 else 0.0


def first_frame(path: Path, limits: Limits) -> tuple[MediaInfo, VideoFrame]:
    """The description and the first frame that can be decoded."""
    with open_media(path, limits) as container:
        stream = video_stream(container, path.name)
        reader = Reader(container, stream, limits)
        for frame in reader.frames():
            return describe(container, stream, frame, path.name, limits), frame
    raise MediaError(path.name, "has no frames: nothing in its video stream could be decoded")
