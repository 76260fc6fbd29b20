"""RGB frames to BT.709 limited YUV 4:2:0, with or without alpha, scaled to the output size in the same pass.

Every conversion names matrix, range and kernel: the library's defaults are BT.601 and a chroma reduction that is 16
dB worse at coloured edges, and tagging a frame does not convert it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from av import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from numpy.typing import NDArray

#: AVCOL_SPC_BT709, the value that frames and codec contexts carry (swscale's own constant happens to be equal).
MATRIX_BT709 = 1

# Full chroma input is right and, at equal size, also twice as fast; BITEXACT costs nothing and takes the same path on
# all CPUs.
_EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP | Interpolation.BITEXACT


class YuvConverter:
    """Converts RGB frames of any size to `yuv420p`, or `yuva420p` with straight alpha, of one output size.

    Enlarging uses Lanczos for the colours and bicubic for the alpha (Lanczos' second lobe would draw a faint outline
    around the figure); reducing, and chroma at equal size, uses area averages. Alpha has no range: 0 and 255 stay 0
    and 255. One converter serves one stream; it is not thread-safe.
    """

    def __init__(self, width: int, height: int) -> None:
        if width < 2 or height < 2 or width % 2 or height % 2:
            raise ValueError(f"4:2:0 needs even sizes of at least 2, not {width}x{height}")
        self.width = width
        self.height = height
        # One reformatter per conversion: each keeps its scaling context as long as its arguments stay the same.
        self._colour = VideoReformatter()
        self._alpha = VideoReformatter()

    def convert(self, rgb: NDArray[np.uint8], alpha: NDArray[np.uint8] | None = None) -> VideoFrame:
        """One frame.

        Args:
            rgb: uint8 [H,W,3], full range; may be read-only.
            alpha: uint8 [H,W], straight, or None.

        Returns:
            A tagged frame of the output size: `yuv420p`, or `yuva420p` when alpha is given.
        """
        source = VideoFrame.from_numpy_buffer(np.ascontiguousarray(rgb), format="rgb24")
        frame = self._colour.reformat(
            source,
            width=self.width,
            height=self.height,
            format="yuv420p" if alpha is None else "yuva420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=self._kernel(source, Interpolation.LANCZOS) | _EXACT,
            threads=1,
        )
        if alpha is not None:
            if alpha.shape != rgb.shape[:2]:
                raise ValueError(f"alpha is {alpha.shape}, the frame {rgb.shape[:2]}")
            # The conversion filled the plane with 255; it is overwritten in place.
            plane(frame, 3)[:] = self._scaled_alpha(alpha)
        return tag_709(frame)

    def _scaled_alpha(self, alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if alpha.shape == (self.height, self.width):
            return alpha
        source = VideoFrame.from_numpy_buffer(np.ascontiguousarray(alpha), format="gray")
        scaled = self._alpha.reformat(
            source,
            width=self.width,
            height=self.height,
            format="gray",
            interpolation=self._kernel(source, Interpolation.BICUBIC) | _EXACT,
            threads=1,
        )
        return plane(scaled, 0)

    def _kernel(self, source: VideoFrame, enlarging: Interpolation) -> Interpolation:
        return enlarging if self.width > source.width or self.height > source.height else Interpolation.AREA


def tag_709(frame: VideoFrame) -> VideoFrame:
    """Set the tags that say BT.709 limited; the pixels must already be so."""
    frame.colorspace = MATRIX_BT709
    frame.color_range = ColorRange.MPEG
    frame.color_primaries = ColorPrimaries.BT709
    frame.color_trc = ColorTrc.BT709
    return frame


def plane(frame: VideoFrame, index: int) -> NDArray[np.uint8]:
    """A view, uint8 [h,w], of one plane without its padding; writing to it writes to the frame."""
    data: Any = frame.planes[index]
    return np.frombuffer(data, np.uint8).reshape(-1, data.line_size)[: data.height, : data.width]
