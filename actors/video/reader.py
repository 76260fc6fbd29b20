"""Frames of an open input in display order, from the start or from a time; runs in the decoding process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import av
from av import Packet, VideoFrame
from av.container import InputContainer
from av.video.stream import VideoStream

from actors.video.limits import Limits

#: Unreadable packets in a row after which the rest of a damaged file is given up.
_MOST_ERRORS = 64


class Reader:
    """Decodes one video stream, going on after damage, which whoever reads has to judge.

    Attributes:
        errors: packets that could not be read or decoded so far.
        guessed: some packet has no time of its own, or one that libavformat made up (AVI stores none).
    """

    def __init__(self, container: InputContainer, stream: VideoStream, limits: Limits) -> None:
        self.container, self.stream = container, stream
        self.errors = 0
        self.guessed = False
        self._is_avi = container.format.name == "avi"
        stream.codec_context.thread_count = limits.decode_threads
        stream.codec_context.thread_type = "AUTO"

    def frames(self, on_packet: Callable[[Packet[Any]], None] | None = None) -> Iterator[VideoFrame]:
        """Frames from where the container stands.

        Args:
            on_packet: called with every packet of every stream before it is decoded; without it only the
                video's packets are read. Streams of unknown codecs (phones add such sound) would look like damage.
        """
        known = [stream for stream in self.container.streams if stream.codec_context is not None]
        for packet in self._packets(known if on_packet else [self.stream]):
            ends = packet.size == 0 and packet.dts is None  # one at the end flushes the decoder
            if not ends and on_packet is not None:
                on_packet(packet)
            if packet.stream_index != self.stream.index or (packet.size == 0 and not ends):
                continue
            if not ends:
                self.guessed |= packet.pts is None or (self._is_avi and packet.pts != packet.dts)
            try:
                yield from packet.decode()
            except av.error.FFmpegError as error:
                self._damage(error)

    def seek(self, pts: int) -> bool:
        """Go to the keyframe before the last one that is <= pts; False where only the start of the file will do.

        One keyframe early, because the frames around an open GOP's keyframe need the GOP before it: seeking to the
        nearest one gave 4 and 8 wrong frames of 100, silently.
        """
        try:
            self.container.seek(pts, stream=self.stream, backward=True)
            packets = self.container.demux(self.stream)
            nearest = next((p for p in packets if p.dts is not None or p.pts is not None), None)
            times = [] if nearest is None else [t for t in (nearest.pts, nearest.dts, pts) if t is not None]
            if not times or min(times) - 1 <= (self.stream.start_time or 0):
                return False
            self.container.seek(min(times) - 1, stream=self.stream, backward=True)
        except av.error.FFmpegError:  # a file without an index, as live recordings are
            return False
        return True

    def _packets(self, streams: list[Any]) -> Iterator[Packet[Any]]:
        in_a_row = 0
        packets = self.container.demux(streams)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError as error:
                self._damage(error)
                in_a_row += 1
                if in_a_row > _MOST_ERRORS:
                    return
                packets = self.container.demux(streams)
                continue
            in_a_row = 0
            yield packet

    def _damage(self, error: Exception) -> None:
        if isinstance(error, MemoryError):
            raise error
        self.errors += 1
