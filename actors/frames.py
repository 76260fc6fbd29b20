"""FrameBatch: consecutive frames of one shot sequence, the one value that models pass on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]

#: A model's temporal state after a batch: named arrays, passed in and returned. Empty for stateless models
#: and at the start of a clip. It is a value: it can be stored in a file beside a segment and sent to any replica.
Carry = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class FrameBatch:
    """T consecutive frames.

    Attributes:
        rgb: uint8 [T,H,W,3], full range, sRGB-like display values.
        pts: int64 [T], in ticks of the source's time base, strictly increasing.
        cut: bool [T]; True where temporal state resets before this frame.
        alpha: uint8 [T,H,W], straight (not premultiplied), or None when nothing was cut out.
        planes: further named arrays of leading dimension T.
    """

    rgb: UInt8
    pts: NDArray[np.int64]
    cut: NDArray[np.bool_]
    alpha: UInt8 | None = None
    planes: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.rgb.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return int(self.rgb.shape[2]), int(self.rgb.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        arrays: list[NDArray[np.generic]] = [self.rgb, self.pts, self.cut, *self.planes.values()]
        if self.alpha is not None:
            arrays.append(self.alpha)
        return sum(array.nbytes for array in arrays)

    def part(self, first: int, last: int) -> FrameBatch:
        """Frames `first` to `last`, excluded; views, not copies."""
        part = slice(first, last)
        alpha = None if self.alpha is None else self.alpha[part]
        planes = {name: plane[part] for name, plane in self.planes.items()}
        return FrameBatch(self.rgb[part], self.pts[part], self.cut[part], alpha, planes)

    def with_pixels(self, rgb: UInt8, alpha: UInt8 | None = None) -> FrameBatch:
        """The same frames in time with other pixels."""
        return replace(self, rgb=rgb, alpha=alpha)
