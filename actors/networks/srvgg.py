"""SRVGGNetCompact: the compact Real-ESRGAN upscaler (realesr-animevideov3, realesr-general-x4v3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt

import torch.nn.functional as F
from torch import Tensor, nn


class SRVGGNetCompact(nn.Module):
    """A plain stack of 3x3 convolutions at input size whose last layer is shuffled into `scale` x `scale` pixels.

    State-dict names are those of Real-ESRGAN's `SRVGGNetCompact` with PReLU activations. The network neither clamps
    its input nor its output.

    Attributes:
        scale: enlargement of both sides.
        multiple_of: the input's sides must be multiples of this.
        receptive_field: an output pixel depends on input pixels at most this far away; a tile grown by it on every
            side gives the same pixels as the whole frame.
    """

    multiple_of = 1

    def __init__(self, features: int = 64, convs: int = 16, scale: int = 4) -> None:
        super().__init__()
        self.scale = scale
        self.receptive_field = convs + 2
        layers: list[nn.Module] = []
        channels = 3
        for _ in range(convs + 1):
            layers += [nn.Conv2d(channels, features, 3, padding=1), nn.PReLU(features)]
            channels = features
        layers.append(nn.Conv2d(channels, 3 * scale * scale, 3, padding=1))
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """RGB [B,3,H,W] in 0..1 -> [B,3,H*scale,W*scale]."""
        base = F.interpolate(x, scale_factor=float(self.scale), mode="nearest")
        return F.pixel_shuffle(self.body(x), self.scale) + base


def detect(state: Mapping[str, Tensor]) -> SRVGGNetCompact | None:
    """The network (weights not loaded) whose sizes this state dict has, or None if it is of another family."""
    indices = [int(m[1]) for m in (re.fullmatch(r"body\.([0-9]+)\.(weight|bias)", key) for key in state) if m]
    first, slope = state.get("body.0.weight"), state.get("body.1.weight")
    if not indices or first is None or slope is None:
        return None
    last = max(indices)
    shuffled = state.get(f"body.{last}.weight")
    # The second bound keeps a file with one absurd index from building an absurd network.
    if last % 2 or last < 2 or last > 2 * len(state) or shuffled is None:
        return None
    if first.ndim != 4 or first.shape[1:] != (3, 3, 3) or slope.shape != first.shape[:1] or shuffled.ndim != 4:
        return None
    scale = isqrt(shuffled.shape[0] // 3)
    if scale < 1 or 3 * scale * scale != shuffled.shape[0]:
        return None
    return SRVGGNetCompact(features=first.shape[0], convs=(last - 2) // 2, scale=scale)
