"""What the figure is set before: a colour, a still image, or a video that is looped by time."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType

import numpy as np
from av import VideoFrame
from numpy.typing import NDArray

from actors.video import image
from actors.video.decode import Decoder
from actors.video.limits import Limits
from actors.video.scan import Scan, scan
from actors.video.yuv import YuvConverter
from cluster.errors import UsageError

COLOURS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "gray": (128, 128, 128),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
}

#: A looped video is kept in memory when all its frames together are no larger; otherwise it is decoded as it is needed.
CACHE_BYTES = 256 * 2**20

#: Frames that are decoded for nothing rather than sought over.
SKIP = 8


class Background(ABC):
    """Frames of one output size, `yuv420p` BT.709 limited, that fill it (scaled to cover, centred)."""

    @abstractmethod
    def at(self, seconds: float) -> VideoFrame:
        """The frame at a time since the video's start (not negative). It is shared: only its pts may be changed."""

    def close(self) -> None:  # noqa: B027 - most backgrounds hold nothing
        """End what decodes it, if anything does."""

    def __enter__(self) -> Background:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Still(Background):
    """One frame for all times."""

    def __init__(self, rgb: NDArray[np.uint8], width: int, height: int) -> None:
        self._frame = YuvConverter(width, height).convert(crop_to_cover(rgb, width, height))

    def at(self, seconds: float) -> VideoFrame:  # noqa: ARG002
        return self._frame


class Looped(Background):
    """A video repeated without end: at any time, the frame that is shown at that time modulo its duration.

    Going forward decodes each frame once a round; wrapping, or any other jump, seeks.
    """

    def __init__(
        self, found: Scan, decoder: Decoder, width: int, height: int, *, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._decoder = decoder
        self._convert = YuvConverter(width, height)
        self._starts = (found.pts - found.pts[0]).astype(np.float64) * float(found.info.time_base)
        self._duration = found.seconds
        self._count = len(found)
        self._cache: list[VideoFrame] = []
        self._keep = self._count * width * height * 3 // 2 <= cache_bytes
        self._next = 0  # index after the frame that was decoded last
        self._current: tuple[int, VideoFrame] | None = None

    def at(self, seconds: float) -> VideoFrame:
        # Half a microsecond forward: a time equal to a frame's start, but for rounding, shows that frame.
        when = (max(seconds, 0.0) + 5e-7) % self._duration
        index = max(0, int(np.searchsorted(self._starts, when, side="right")) - 1)
        if self._keep:
            while len(self._cache) <= index:
                self._cache.append(self._decoded(len(self._cache)))
            return self._cache[index]
        if self._current is None or self._current[0] != index:
            self._current = (index, self._decoded(index))
        return self._current[1]

    def _decoded(self, index: int) -> VideoFrame:
        # A short skip (the background has the higher frame rate) is cheaper decoded through than sought.
        first = self._next if 0 <= index - self._next <= SKIP else index
        for rgb in self._decoder.frames(first, index + 1):
            last = rgb
        self._next = index + 1
        return self._convert.convert(crop_to_cover(last, self._convert.width, self._convert.height))

    def close(self) -> None:
        self._decoder.close()


def open_background(
    spec: str | Path, width: int, height: int, limits: Limits, *, workdir: Path, scanned: Scan | None = None
) -> Background:
    """A background of the output size. The sound of a video is never used.

    Args:
        spec: `#rrggbb`, a colour's name, or the path of an image or a video.
        width, height: even output size.
        limits: bounds on the file.
        workdir: where a copy that can be decoded is kept, if the file needs one.
        scanned: the video's scan where it is known already; otherwise it is scanned here, one decode from start to end.

    Raises:
        UsageError: neither a colour nor a file.
        MediaError: the file is refused or broken.
    """
    colour = parse_colour(str(spec))
    if colour is not None:
        return Still(np.full((2, 2, 3), colour, np.uint8), width, height)
    path = Path(spec)
    if not path.is_file():
        raise UsageError(
            f"background {str(spec)!r}",
            "is neither a colour nor a file",
            remedy=f"give #rrggbb, one of {', '.join(COLOURS)}, or the path of an image or a video",
        )
    if path.suffix.lower() in image.SUFFIXES:
        return Still(image.read_image(path, limits), width, height)
    found = scanned or scan(path, limits, workdir=workdir)
    return Looped(found, Decoder(found, limits), width, height)


def parse_colour(spec: str) -> tuple[int, int, int] | None:
    """Red, green and blue of `#rrggbb` or a name; None when it is neither."""
    if re.fullmatch(r"#[0-9a-fA-F]{6}", spec):
        return int(spec[1:3], 16), int(spec[3:5], 16), int(spec[5:7], 16)
    return COLOURS.get(spec.lower())


def crop_to_cover(rgb: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """The centred part of a picture that has the shape of width x height, as a view: scaled to that size it covers it.

    Cropping before scaling costs nothing; its edges fall on whole source pixels, so shapes are off by less than a
    pixel.
    """
    have_height, have_width = rgb.shape[:2]
    part_width = min(have_width, max(1, round(have_height * width / height)))
    part_height = min(have_height, max(1, round(have_width * height / width)))
    left, top = (have_width - part_width) // 2, (have_height - part_height) // 2
    return rgb[top : top + part_height, left : left + part_width]
