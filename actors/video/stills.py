"""Still images of strangers, for requests: each is decoded in a process of its own.

This module knows neither OpenCV nor any codec: what it does itself is read headers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from actors.video import shared
from actors.video.forking import Forks
from actors.video.image_header import check_bytes, read_header
from actors.video.limits import Limits, check_size
from actors.video.process import Child
from cluster.errors import MediaError

#: Kinds that requests may send.
KINDS = ("png", "jpeg", "webp")

Picture = NDArray[np.uint8]


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
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        # OpenCV reads its own bound of the size as it is loaded, for a header that tells it another story than us.
        self._forks = Forks("actors.video.image", {"OPENCV_IO_MAX_IMAGE_PIXELS": str(limits.max_pixels)})
        self._forks.warm_up()

    def decode(self, data: bytes, name: str) -> Still:
        """Decode a PNG, JPEG or WebP file; blocks, some milliseconds for small ones.

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
        at, pixels = len(data), header.width * header.height
        memory = shared.create("still")
        try:
            whole = shared.sized(memory, at + 4 * pixels)
            whole[:at] = data
            with Child(name, self._limits, memory, forks=self._forks) as child:
                child.send({"op": "still", "limits": self._limits.to_json(), "name": name, "bytes": at})
                answer, _ = child.receive()
        finally:
            os.close(memory)
        # The child is gone: it can change nothing any more in what is handed on.
        upright = (header.height, header.width)
        height, width = upright if answer["height"] == upright[0] else upright[::-1]
        rgb, alpha = np.split(np.frombuffer(whole, np.uint8, 4 * pixels, at), [3 * pixels])
        return Still(
            rgb.reshape(height, width, 3), alpha.reshape(height, width) if answer["alpha"] else None, header.kind
        )

    def close(self) -> None:
        """Start no more; images that are being decoded are finished. May be called again."""
        self._forks.close()

    def __enter__(self) -> Stills:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
