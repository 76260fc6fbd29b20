"""Encoders of both images (features) and of the first one (context): six residual blocks down to 1/8."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

#: Channels -> their normalisation. Modules, not functions, because the checkpoints name BatchNorm's parameters.
Norm = Callable[[int], nn.Module]


def identity(_channels: int) -> nn.Module:
    """The norm of the small context encoder: none."""
    return nn.Identity()


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm1 = norm(out_channels)
        self.norm2 = norm(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1:
            self.norm3 = norm(out_channels)  # also downsample.1: the checkpoints hold one norm under two names
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride), self.norm3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; a quarter of the channels inside."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm, stride: int) -> None:
        super().__init__()
        width = out_channels // 4
        self.conv1 = nn.Conv2d(in_channels, width, 1)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1)
        self.conv3 = nn.Conv2d(width, out_channels, 1)
        self.norm1 = norm(width)
        self.norm2 = norm(width)
        self.norm3 = norm(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride), norm(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        y = F.relu(self.norm3(self.conv3(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


Block = type[ResidualBlock] | type[BottleneckBlock]


class Encoder(nn.Module):
    """RGB in -1..1 [B,3,H,W] to features [B,out_channels,H/8,W/8].

    Args:
        widths: channels at 1/2, 1/4 and 1/8.
    """

    def __init__(self, block: Block, widths: tuple[int, int, int], out_channels: int, norm: Norm) -> None:
        super().__init__()
        w2, w4, w8 = widths
        self.norm1 = norm(w2)
        self.conv1 = nn.Conv2d(3, w2, 7, 2, 3)
        self.layer1 = nn.Sequential(block(w2, w2, norm, 1), block(w2, w2, norm, 1))
        self.layer2 = nn.Sequential(block(w2, w4, norm, 2), block(w4, w4, norm, 1))
        self.layer3 = nn.Sequential(block(w4, w8, norm, 2), block(w8, w8, norm, 1))
        self.conv2 = nn.Conv2d(w8, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        y: Tensor = self.conv2(x)
        return y
