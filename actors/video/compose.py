"""Setting the figure before its background, in the codec's own planes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

from av import VideoFrame
from av.filter import Graph

from actors.frames import FrameBatch
from actors.video.background import Background
from actors.video.yuv import YuvConverter, tag_709


class Composer:
    """Turns frame batches into `yuv420p` BT.709 limited frames of the output size.

    With a background the frames' alpha is blended over it; without one, or when a batch has no alpha, the frames are
    converted alone. A frame depends on nothing but its own pixels and the background at its time, so any chunking
    gives equal frames.
    """

    def __init__(self, width: int, height: int, background: Background | None) -> None:
        self._convert = YuvConverter(width, height)
        self._background = background
        self._overlay = None if background is None else Overlay(width, height)

    def compose(self, batch: FrameBatch, seconds: Sequence[float]) -> Iterator[VideoFrame]:
        """Composed frames of a batch, in order, each with the batch's pts.

        Args:
            batch: RGB frames of any size, with straight alpha if they are cut out.
            seconds: time of each frame since the video's start, where a moving background is sampled.

        Raises:
            ValueError: the batch has alpha and there is no background to set it before.
        """
        if batch.alpha is not None and self._background is None:
            raise ValueError("frames that are cut out need a background")
        for i in range(len(batch)):
            frame = self._convert.convert(batch.rgb[i], None if batch.alpha is None else batch.alpha[i])
            if batch.alpha is not None and self._background is not None and self._overlay is not None:
                frame = self._overlay.blend(self._background.at(seconds[i]), frame)
            frame.pts = int(batch.pts[i])
            yield frame


class Overlay:
    """libavfilter's overlay in YUV 4:2:0 on straight alpha; at soft edges within 55 dB of a blend in floats.

    The first input decides the range of the output, so the background must be BT.709 limited like the figure.
    """

    def __init__(self, width: int, height: int) -> None:
        source = f"video_size={width}x{height}:time_base=1/1:pixel_aspect=1/1:colorspace=bt709:range=tv"
        # The graph must outlive its contexts: they do not keep it alive.
        self._graph = Graph()
        self._graph.threads = 1
        self._below = self._graph.add("buffer", f"{source}:pix_fmt=yuv420p")
        self._above = self._graph.add("buffer", f"{source}:pix_fmt=yuva420p")
        self._sink = self._graph.add("buffersink")
        overlay = self._graph.add("overlay", "format=yuv420")
        self._below.link_to(overlay, 0, 0)
        self._above.link_to(overlay, 0, 1)
        overlay.link_to(self._sink, 0, 0)
        self._graph.configure()
        self._count = 0

    def blend(self, below: VideoFrame, above: VideoFrame) -> VideoFrame:
        """The `yuva420p` frame over the `yuv420p` one; neither is changed but for its pts."""
        # Always both inputs, with one running time: the filter then holds nothing back and its queues stay empty.
        for frame, pad in ((below, self._below), (above, self._above)):
            frame.pts, frame.time_base = self._count, Fraction(1)
            pad.push(frame)
        self._count += 1
        out = self._sink.pull()
        assert isinstance(out, VideoFrame)
        return tag_709(out)
