"""Still images of strangers, for requests: each is decoded in a process of its own.

Starting one takes some tenths of a second, so a few are kept started. This module knows neither OpenCV nor any codec:
what it does itself is read headers.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from types import TracebackType

from actors.video.image_header import check_bytes, read_header
from actors.video.limits import Limits, check_size
from actors.video.spares import Picture, Spares
from cluster.errors import MediaError

#: Kinds that requests may send.
KINDS = ("png", "jpeg", "webp")

#: Children that may be found dead one after the other before an image is begun, before that is an error.
_TRIES = 3


@dataclass(frozen=True, slots=True, eq=False)
class Still:
    """One image, upright: `rgb` uint8 [H,W,3], `alpha` uint8 [H,W] or None, `kind` as in `KINDS`."""

    rgb: Picture
    alpha: Picture | None
    kind: str


class Stills:
    """Decodes still images, from any number of threads at once. Use it as a context manager or `close` it.

    Args:
        limits: `max_bytes` (and never over 256 MiB), `max_pixels`, `stall_seconds`, `memory_bytes` and `cpu_seconds` of
            one image. At most 30 CPU seconds are given.
        spares: processes kept started, some 25 MiB each. With none left, one is started on the spot.
    """

    def __init__(self, limits: Limits, spares: int = 2) -> None:
        if spares < 0:
            raise ValueError(f"{spares} spares cannot be")
        self._limits = limits
        self._spares = Spares(limits, spares)
        self._end = weakref.finalize(self, self._spares.close)

    def decode(self, data: bytes, name: str) -> Still:
        """Decode a PNG, JPEG or WebP file; blocks, a few milliseconds for small ones when a spare is at hand.

        Animations are refused, because all but one of their pictures would be lost without a word, and CMYK JPEGs,
        because their colours depend on the printer they were made for. Colour profiles are not looked at.

        Args:
            data: the whole file.
            name: for errors.

        Raises:
            MediaError: refused (kind, size, animation, CMYK), broken, or its decoder died or stalled.
            RuntimeError: closed already.
        """
        check_bytes(len(data), name, self._limits)
        header = read_header(data, name, KINDS)
        if header.animated:
            raise MediaError(name, "is an animation", remedy="send one of its pictures, or the whole as a video")
        if header.cmyk:
            raise MediaError(name, "is a CMYK JPEG", remedy="convert it to RGB")
        check_size(header.width, header.height, name, self._limits)
        for _ in range(_TRIES):
            with self._spares.take() as child:
                try:
                    child.give(data, name, header)
                except MediaError as error:  # it ended while it waited, which says nothing of the image
                    gone = error
                    continue
                rgb, alpha = child.take()
                return Still(rgb, alpha, header.kind)
        raise gone

    def close(self) -> None:
        """End the spares; images that are being decoded are finished. May be called again."""
        self._end()

    def __enter__(self) -> Stills:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
