"""Lanes' results before they are encoded, kept for comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from actors.frames import FrameBatch
from actors.video.scan import Scan
from actors.video.yuv import YuvConverter


@dataclass
class Recording:
    """A job's last step that keeps what the chain made: RGB and alpha by pts."""

    size: tuple[int, int] = (64, 48)
    frames: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    files: tuple[Path, ...] = ()

    def open(self, scan: Scan) -> Recorder:  # noqa: ARG002
        return Recorder(self)

    def identity(self) -> Mapping[str, Any]:
        return {}


class Recorder:
    def __init__(self, kept: Recording) -> None:
        self._kept, self._convert = kept, YuvConverter(*kept.size)

    def compose(self, batch: FrameBatch) -> Iterator[av.VideoFrame]:
        for i, pts in enumerate(batch.pts.tolist()):
            assert pts not in self._kept.frames, "a frame came twice"
            layers = [batch.rgb[i]] if batch.alpha is None else [batch.rgb[i], batch.alpha[i][..., None]]
            self._kept.frames[pts] = np.concatenate(layers, -1)
            frame = self._convert.convert(batch.rgb[i])
            frame.pts = pts
            yield frame

    def close(self) -> None: ...


def assert_same(found: Mapping[int, NDArray[np.uint8]], expected: Mapping[int, NDArray[np.uint8]]) -> None:
    assert list(found) == list(expected), "frames are missing or out of order"
    for pts, frame in expected.items():
        np.testing.assert_array_equal(found[pts], frame, err_msg=f"frame at {pts}")
