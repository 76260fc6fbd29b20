"""Lite R-ASPP (MobileNetV3 paper, section 6.3): features gated by the whole image's content."""

from __future__ import annotations

from torch import Tensor, nn


class LRASPP(nn.Module):
    """[N,in,h,w] to [N,out,h,w]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.aspp1 = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()
        )
        self.aspp2 = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.aspp1(x) * self.aspp2(x)
        return y
