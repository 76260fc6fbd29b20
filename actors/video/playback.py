"""RGB frames of a scanned input from any frame on, as it runs in the decoding process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from av import VideoFrame
from numpy.typing import NDArray

from actors.video.colour import Converter, Tag
from actors.video.info import MediaInfo
from actors.video.limits import Limits
from actors.video.open import open_media, video_stream
from actors.video.reader import Reader
from cluster.errors import MediaError

#: Frame index, its time (None where times are made from the index), RGB [H,W,3] that is valid until the next frame.
Shown = tuple[int, int | None, NDArray[np.uint8]]


class Playback:
    """One input, opened as often as it must be read from its start.

    Args:
        source: the file to decode.
        info: the scan's description of it.
        damaged: whether the scan allowed damage. Then, and where times are made from the index, frames are only
            known by counting from the start: every jump reads the file from there.
        beat: called for every frame that is skipped on the way to the one asked for.
    """

    def __init__(
        self, source: Path, info: MediaInfo, limits: Limits, *, damaged: bool, beat: Callable[[], None]
    ) -> None:
        self._source, self._info, self._limits = source, info, limits
        self._damaged, self._beat = damaged, beat
        self._open = ExitStack()
        self._reader: Reader | None = None
        self._converter = Converter(info)

    def close(self) -> None:
        """Close the file."""
        self._open.close()

    def play(self, index: int, pts: int) -> Iterator[Shown]:
        """Frames from `index`, whose time is `pts`, to the end.

        Raises:
            MediaError: there is no such frame, or the file turned out broken.
        """
        if self._damaged or self._info.index_times:
            yield from self._convert(self._counted(index), index)
            return
        for early in (True, False):
            frames = self._timed(pts, early=early)
            lead = self._until(frames, pts)
            if lead is not None:
                yield from self._convert((*lead, frames), index)
                return
        raise MediaError(
            self._source.name,
            "does not yield the same frames again",
            place=f"frame {index}",
            remedy="it may have been changed while it was worked on: start again",
        )

    def _timed(self, pts: int, *, early: bool) -> Iterator[VideoFrame]:
        reader = self._reader or self._reopen()
        if not (early and reader.seek(pts)):
            reader = self._reopen()
        return reader.frames()

    def _counted(self, index: int) -> tuple[VideoFrame | None, VideoFrame | None, Iterator[VideoFrame]]:
        frames = self._reopen().frames()
        before = None
        for _ in range(index):
            before = next(frames, None)
            self._beat()
        return before, next(frames, None), frames

    def _convert(
        self, run: tuple[VideoFrame | None, VideoFrame | None, Iterator[VideoFrame]], index: int
    ) -> Iterator[Shown]:
        before, first, frames = run
        if self._info.interlaced:
            self._converter = Converter(self._info)
        converter = self._converter
        if before is not None and self._info.interlaced:  # its fields are needed by the first
            for _ in converter.push(before, None):
                pass
        if first is None:
            return
        for frame in _chain(first, frames):
            if not self._damaged and (frame.is_corrupt or (self._reader is not None and self._reader.errors)):
                reason = "is damaged, which did not show when the file was first looked at"
                raise MediaError(self._source.name, reason, place=f"frame {index}", remedy="repair it")
            if (frame.width, frame.height) != (self._info.coded_width, self._info.coded_height):
                raise MediaError(self._source.name, "changes its size", place=f"frame {index}")
            yield from _shown(converter.push(frame, (index, None if self._info.index_times else frame.pts)))
            index += 1
        if self._info.interlaced:
            yield from _shown(converter.flush())

    def _until(self, frames: Iterator[VideoFrame], pts: int) -> tuple[VideoFrame | None, VideoFrame] | None:
        """The frame before the one at `pts`, and that one; None when the frames pass it by."""
        before = None
        for frame in frames:
            if frame.pts == pts:
                return None if frame.is_corrupt else (before, frame)
            if frame.pts is not None and frame.pts > pts:
                return None
            before = frame
            self._beat()
        return None

    def _reopen(self) -> Reader:
        self._open.close()
        container = self._open.enter_context(open_media(self._source, self._limits))
        stream = video_stream(container, self._source.name)
        self._reader = Reader(container, stream, self._limits)
        return self._reader


def _chain(first: VideoFrame, rest: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    yield first
    yield from rest


def _shown(pairs: Iterator[tuple[Tag, NDArray[np.uint8]]]) -> Iterator[Shown]:
    for tag, rgb in pairs:
        if tag is not None:
            yield *tag, rgb
