"""Recurrent decoder: four scales, each with a ConvGRU over half of its channels.

Convolutions see clips as [B*T,C,H,W]; only the GRUs walk through time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: States r1..r4 after a frame, [B,C,h,w] at 1/2, 1/4, 1/8, 1/16 of the decoded size.
States = tuple[Tensor, Tensor, Tensor, Tensor]


class ConvGRU(nn.Module):
    """Gated recurrent unit with 3x3 convolutions (Ballas et al., 2015, arXiv:1511.06432)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ih = nn.Sequential(nn.Conv2d(channels * 2, channels * 2, 3, padding=1), nn.Sigmoid())
        self.hh = nn.Sequential(nn.Conv2d(channels * 2, channels, 3, padding=1), nn.Tanh())

    def forward(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """x [B,T,C,H,W] and h [B,C,H,W] or None (zeros) to outputs [B,T,C,H,W] and the last state."""
        if h is None:
            h = torch.zeros_like(x[:, 0])
        outputs = []
        for frame in x.unbind(1):
            r, z = self.ih(torch.cat([frame, h], 1)).chunk(2, 1)
            c = self.hh(torch.cat([frame, r * h], 1))
            h = (1 - z) * h + z * c
            outputs.append(h)
        return torch.stack(outputs, 1), h


def _recur(gru: ConvGRU, x: Tensor, h: Tensor | None, frames: int) -> tuple[Tensor, Tensor]:
    """Passes the second half of x's channels [B*T,C,H,W] through time; the first half stays as it is."""
    kept, moved = x.chunk(2, 1)
    out, h = gru(moved.reshape(-1, frames, *moved.shape[1:]), h)
    return torch.cat([kept, out.flatten(0, 1)], 1), h


def _grow(x: Tensor, like: Tensor) -> Tensor:
    """x at twice its size, cropped where `like`'s odd side was rounded up on the way down."""
    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    return x[:, :, : like.shape[2], : like.shape[3]]


class BottleneckBlock(nn.Module):
    """The coarsest scale, 1/16."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gru = ConvGRU(channels // 2)

    def forward(self, x: Tensor, r: Tensor | None, frames: int) -> tuple[Tensor, Tensor]:
        return _recur(self.gru, x, r, frames)


class UpsamplingBlock(nn.Module):
    """One scale up: the coarser result, the encoder's feature f and the image s at this size."""

    def __init__(self, in_channels: int, feature_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels + feature_channels + 3, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )
        self.gru = ConvGRU(out_channels // 2)

    def forward(self, x: Tensor, f: Tensor, s: Tensor, r: Tensor | None, frames: int) -> tuple[Tensor, Tensor]:
        x = self.conv(torch.cat([_grow(x, s), f, s], 1))
        return _recur(self.gru, x, r, frames)


class OutputBlock(nn.Module):
    """The full decoded size; no recurrence."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels + 3, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        y: Tensor = self.conv(torch.cat([_grow(x, s), s], 1))
        return y


class RecurrentDecoder(nn.Module):
    """Features of a clip and its states to 16 hidden channels at the clip's size, and the new states.

    Args:
        features: channels of f1, f2, f3 and of the LR-ASPP's output, which replaces f4.
        outputs: channels of the blocks at 1/8, 1/4, 1/2 and full size.
    """

    def __init__(self, features: tuple[int, int, int, int], outputs: tuple[int, int, int, int]) -> None:
        super().__init__()
        f1, f2, f3, f4 = features
        d3, d2, d1, d0 = outputs
        self.decode4 = BottleneckBlock(f4)
        self.decode3 = UpsamplingBlock(f4, f3, d3)
        self.decode2 = UpsamplingBlock(d3, f2, d2)
        self.decode1 = UpsamplingBlock(d2, f1, d1)
        self.decode0 = OutputBlock(d1, d0)

    def forward(
        self, s0: Tensor, features: tuple[Tensor, Tensor, Tensor, Tensor], states: States | None, frames: int
    ) -> tuple[Tensor, States]:
        """s0 [B*T,3,H,W] and features f1..f4 [B*T,C,h,w], of clips of `frames` frames each."""
        f1, f2, f3, f4 = features
        r1, r2, r3, r4 = states if states is not None else (None, None, None, None)
        s1 = _halve(s0)
        s2 = _halve(s1)
        s3 = _halve(s2)
        x, r4 = self.decode4(f4, r4, frames)  # 1/16
        x, r3 = self.decode3(x, f3, s3, r3, frames)  # 1/8
        x, r2 = self.decode2(x, f2, s2, r2, frames)  # 1/4
        x, r1 = self.decode1(x, f1, s1, r1, frames)  # 1/2
        return self.decode0(x, s0), (r1, r2, r3, r4)


def _halve(image: Tensor) -> Tensor:
    """Half the size, odd sides rounded up; border cells average only the pixels that exist."""
    return F.avg_pool2d(image, 2, 2, ceil_mode=True, count_include_pad=False)
