from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actors.video.limits import Limits


@dataclass(frozen=True, slots=True, eq=False)
class Still:
    rgb: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None
    kind: str

    @property
    def size(self) -> tuple[int, int]:
        return self.rgb.shape[1], self.rgb.shape[0]


class Stills:
    def __init__(self, limits: Limits, spares: int = 2) -> None: ...
    def close(self) -> None: ...
    def decode(self, data: bytes, name: str) -> Still:
        import cv2

        return Still(
            np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), np.uint8), None, "png"
        )


def encode_still(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8] | None, kind: str, quality: int) -> bytes:
    import cv2

    full = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR) if alpha is None else np.dstack([rgb[..., ::-1], alpha])
    return cv2.imencode("." + kind, full)[1].tobytes()
