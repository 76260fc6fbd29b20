"""RRDBNet: the large Real-ESRGAN upscaler (x4plus, x2plus, x4plus-anime-6b)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Residuals are added at this fraction (ESRGAN, section 3.1).
RESIDUAL = 0.2
#: Channels of the first convolution, by enlargement: smaller ones fold pixels into channels first.
INPUT_CHANNELS = {4: 3, 2: 12, 1: 48}


def _lrelu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2, inplace=True)


class ResidualDenseBlock(nn.Module):
    """Five convolutions, each on the concatenation of everything before it."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, growth, 3, padding=1)
        self.conv2 = nn.Conv2d(features + growth, growth, 3, padding=1)
        self.conv3 = nn.Conv2d(features + 2 * growth, growth, 3, padding=1)
        self.conv4 = nn.Conv2d(features + 3 * growth, growth, 3, padding=1)
        self.conv5 = nn.Conv2d(features + 4 * growth, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = _lrelu(self.conv1(x))
        x2 = _lrelu(self.conv2(torch.cat((x, x1), 1)))
        x3 = _lrelu(self.conv3(torch.cat((x, x1, x2), 1)))
        x4 = _lrelu(self.conv4(torch.cat((x, x1, x2, x3), 1)))
        x5: Tensor = self.conv5(torch.cat((x, x1, x2, x3, x4), 1))
        return x + RESIDUAL * x5


class RRDB(nn.Module):
    """Residual in residual: three dense blocks and a shortcut around them."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = ResidualDenseBlock(features, growth)
        self.rdb2 = ResidualDenseBlock(features, growth)
        self.rdb3 = ResidualDenseBlock(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rdb3(self.rdb2(self.rdb1(x)))
        return x + RESIDUAL * y


class RRDBNet(nn.Module):
    """Residual-in-residual dense blocks at input size, then two nearest x2 enlargements with convolutions.

    State-dict names are those of BasicSR's `RRDBNet`. Enlargements 2 and 1 fold 2x2 and 4x4 input pixels into
    channels first, so the trunk runs at a half or a quarter of the size.

    Attributes:
        scale: enlargement of both sides: 4, 2 or 1.
        multiple_of: the input's sides must be multiples of this.
        receptive_field: None; it reaches hundreds of pixels, so tiles are blended, never exact.
    """

    receptive_field: None = None

    def __init__(self, features: int = 64, growth: int = 32, blocks: int = 23, scale: int = 4) -> None:
        super().__init__()
        self.scale = scale
        self.multiple_of = 4 // scale
        self.conv_first = nn.Conv2d(INPUT_CHANNELS[scale], features, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(features, growth) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up2 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_hr = nn.Conv2d(features, features, 3, padding=1)
        self.conv_last = nn.Conv2d(features, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """RGB [B,3,H,W] in 0..1 -> [B,3,H*scale,W*scale]; H and W are multiples of `multiple_of`."""
        if self.multiple_of > 1:
            x = F.pixel_unshuffle(x, self.multiple_of)
        x = self.conv_first(x)
        x = x + self.conv_body(self.body(x))
        x = _lrelu(self.conv_up1(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        x = _lrelu(self.conv_up2(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        y: Tensor = self.conv_last(_lrelu(self.conv_hr(x)))
        return y


def detect(state: Mapping[str, Tensor]) -> RRDBNet | None:
    """The network (weights not loaded) whose sizes this state dict has, or None if it is of another family."""
    first, dense = state.get("conv_first.weight"), state.get("body.0.rdb1.conv1.weight")
    if first is None or dense is None or first.ndim != 4 or dense.ndim != 4:
        return None
    scale = next((scale for scale, channels in INPUT_CHANNELS.items() if channels == first.shape[1]), None)
    blocks = 1 + max(int(m[1]) for m in (re.match(r"body\.([0-9]+)\.", key) for key in state) if m)
    # The bound keeps a file with one absurd index from building an absurd network.
    if scale is None or blocks > len(state):
        return None
    return RRDBNet(features=first.shape[0], growth=dense.shape[0], blocks=blocks, scale=scale)
