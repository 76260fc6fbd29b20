"""Enlarging without a network."""

from __future__ import annotations

import cv2
import numpy as np

from actors.video.stills import Still


def resized(image: Still, size: tuple[int, int]) -> Still:
    """The image at (width, height): Lanczos where it grows, areas where it shrinks."""
    kernel = cv2.INTER_LANCZOS4 if size[0] * size[1] > image.rgb.shape[0] * image.rgb.shape[1] else cv2.INTER_AREA
    rgb = np.asarray(cv2.resize(image.rgb, size, interpolation=kernel), np.uint8)
    alpha = image.alpha
    if alpha is not None:
        alpha = np.asarray(cv2.resize(alpha, size, interpolation=kernel), np.uint8)
    return Still(rgb, alpha, image.kind)
