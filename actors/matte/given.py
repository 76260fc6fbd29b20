"""The matte that came with the clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from actors.frames import Carry, FrameBatch, UInt8
from actors.matte.edges import decontaminate
from cluster.errors import MediaError

#: Name of the plane that holds the mask's frames.
MASK = "mask"


class Given:
    """Takes alpha from `planes["mask"]`, uint8 [T,h,w] of any size, 255 where the person is. Stateless.

    The plane is used up: it is not in the result.

    Params:
        decontaminate: take the old background's colour out of soft edges (default true). Turn it off when the
            clip's colours are already the foreground's own.

    Raises:
        MediaError: there is no mask, or not one for each frame.
    """

    def __call__(self, batch: FrameBatch, carry: Carry, params: Mapping[str, Any]) -> tuple[FrameBatch, Carry]:  # noqa: ARG002
        mask = batch.planes.get(MASK)
        if mask is None:
            raise MediaError("mask", "the clip came without one", remedy="put <stem>.mask.<ext> beside it")
        if mask.dtype != np.uint8 or mask.ndim != 3 or len(mask) != len(batch):
            raise MediaError("mask", f"is {mask.dtype} {mask.shape}, not uint8 [{len(batch)},h,w]")
        alpha = np.empty(batch.rgb.shape[:3], np.uint8)
        for index, frame in enumerate(mask.view(np.uint8)):
            alpha[index] = _resized(frame, batch.size)
        rgb = batch.rgb
        if params.get("decontaminate", True):
            rgb = np.stack([decontaminate(frame, pha) for frame, pha in zip(batch.rgb, alpha, strict=True)])
        planes = {name: plane for name, plane in batch.planes.items() if name != MASK}
        return replace(batch, rgb=rgb, alpha=alpha, planes=planes), {}


def _resized(mask: UInt8, size: tuple[int, int]) -> UInt8:
    height, width = mask.shape
    if (width, height) == size:
        return mask
    shrinks = size[0] <= width and size[1] <= height
    resized: UInt8 = cv2.resize(mask, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized
