"""From stored pixels to RGB: matrix, range, HDR, interlace, pixel aspect, rotation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
from av import VideoFrame
from av.filter import Graph
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from actors.video.info import MediaInfo

#: Lines from which untagged video is taken as BT.709; swscale's default would be BT.601 for all (34 of 255 wrong).
HD_LINES = 720

PQ, HLG = 16, 18  # transfer characteristics of ISO 23091-4
_UNSPECIFIED = 2
_FULL = 2  # AVCOL_RANGE_JPEG
_MATRICES = {0: "rgb", 1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
_SWSCALE = {
    "bt601": Colorspace.ITU601,
    "bt709": Colorspace.ITU709,
    "fcc": Colorspace.FCC,
    "smpte240m": Colorspace.SMPTE240M,
    "bt2020": Colorspace.BT2020,
}
_BT2020 = 9
_LIMITED, _GRAY = 1, ("gray", "ya")

# swscale takes every gray picture as full range.
_STRETCH = np.clip(np.round((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)

# Of FFmpeg 8's own scaler; without `intent` everything above 203 nit would clip. Its table takes seconds to make, once.
_TONE_MAP = "scale=out_primaries=bt709:out_transfer=bt709:intent=perceptual,format=gbrp"
_MERGE_FIELDS = "bwdif=mode=send_frame:parity=auto:deint=interlaced"


def matrix_of(frame: VideoFrame) -> str:
    """The matrix to convert with: the tag, or by the number of lines where there is none."""
    if frame.format.is_rgb:
        return "rgb"
    tag = _MATRICES.get(frame.colorspace, "")
    if tag and tag != "rgb":
        return tag
    if frame.color_trc in (PQ, HLG):
        return "bt2020"
    return "bt709" if frame.height >= HD_LINES else "bt601"


def is_full_range(frame: VideoFrame) -> bool:
    """Whether values span 0..255: by the tag, the old `yuvj` formats, or because they are RGB or untagged gray."""
    name = frame.format.name
    if name.startswith("yuvj") or frame.format.is_rgb or (name.startswith(_GRAY) and frame.color_range != _LIMITED):
        return True
    return frame.color_range == _FULL


def has_alpha(frame: VideoFrame) -> bool:
    """Whether the pixel format has an alpha channel."""
    return any(component.is_alpha for component in frame.format.components)


#: Goes through a converter with its frame: index and time, or None for a frame that is only looked at.
Tag = tuple[int, int | None] | None


class Converter:
    """Decoded frames of one input to RGB, one out for each one in, in order.

    Merging fields needs the frames before and after, so there frames come out one later, `flush` gives the last, and a
    seek needs a new converter. Without it one converter serves any frames.
    """

    def __init__(self, info: MediaInfo) -> None:
        self._info = info
        self._reformatter = VideoReformatter()
        self._graph: Graph | None = None
        self._filters = [_MERGE_FIELDS] * info.interlaced + [_TONE_MAP] * info.hdr
        self._waiting: deque[Tag] = deque()

    def push(self, frame: VideoFrame, tag: Tag) -> Iterator[tuple[Tag, NDArray[np.uint8]]]:
        """Pairs of tag and RGB [H,W,3], a view that is valid until the next call."""
        if not self._filters:
            yield tag, self._to_rgb(frame)
            return
        if self._info.hdr and frame.colorspace in (0, _UNSPECIFIED):
            frame.colorspace = _BT2020
        if self._graph is None:
            self._graph = self._build(frame)
        self._waiting.append(tag)
        self._graph.vpush(frame)
        yield from self._pull()

    def flush(self) -> Iterator[tuple[Tag, NDArray[np.uint8]]]:
        """What is still inside."""
        if self._graph is not None:
            self._graph.vpush(None)
            yield from self._pull()

    def _pull(self) -> Iterator[tuple[Tag, NDArray[np.uint8]]]:
        assert self._graph is not None
        while True:
            try:
                frame = self._graph.vpull()
            except (BlockingIOError, EOFError):
                return
            yield self._waiting.popleft(), self._to_rgb(frame)

    def _build(self, frame: VideoFrame) -> Graph:
        graph = Graph()
        graph.threads = 1
        last = graph.add(
            "buffer",
            video_size=f"{frame.width}x{frame.height}",
            pix_fmt=frame.format.name,
            time_base=str(self._info.time_base),
            colorspace=str(int(frame.colorspace)),
            range=str(int(frame.color_range)),
        )
        for text in ",".join(self._filters).split(","):
            name, _, arguments = text.partition("=")
            node = graph.add(name, arguments)
            last.link_to(node)
            last = node
        last.link_to(graph.add("buffersink"))
        graph.configure()
        return graph

    def _to_rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        info = self._info
        turned = info.rotation % 180 == 90
        width, height = (info.height, info.width) if turned else (info.width, info.height)
        full = info.full_range or frame.format.is_rgb
        rgb = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            src_colorspace=None if frame.format.is_rgb else _SWSCALE.get(info.matrix),
            src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,
            interpolation=Interpolation.BILINEAR if width == frame.width else Interpolation.BICUBIC,
            threads=1,
        )
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        picture = rows[:, : width * 3].reshape(height, width, 3)
        if not full and info.pix_fmt.startswith(_GRAY):
            picture = _STRETCH[picture]
        return np.rot90(picture, info.rotation // 90) if info.rotation else picture
