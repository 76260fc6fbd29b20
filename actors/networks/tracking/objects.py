"""Layers on features of objects that XMem and Cutie share; the batch dimension is the objects'."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResBlock(nn.Module):
    """Two 3x3 convolutions, each after its activation; `shortcut` is the kernel of a shortcut that changes channels."""

    def __init__(self, in_channels: int, out_channels: int, shortcut: int) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.downsample = nn.Conv2d(in_channels, out_channels, shortcut, padding=shortcut // 2)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(F.relu(self.conv1(F.relu(x)))) + self.downsample(x)
        return y


class SensoryGRU(nn.Module):
    """A gated update of sensory memory h [n,Ch,h,w] by features [n,C,h,w] of a stored frame."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.transform = nn.Conv2d(channels + hidden, 3 * hidden, 3, padding=1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return _gated(self.transform(torch.cat([x, h], 1)), h)


class MultiScaleGRU(nn.Module):
    """A gated update of sensory memory by a decoder's features at 1/16, 1/8 and 1/4."""

    def __init__(self, channels: tuple[int, int, int], middle: int, hidden: int) -> None:
        super().__init__()
        c16, c8, c4 = channels
        self.g16_conv = nn.Conv2d(c16, middle, 1)
        self.g8_conv = nn.Conv2d(c8, middle, 1)
        self.g4_conv = nn.Conv2d(c4, middle, 1)
        self.transform = nn.Conv2d(middle + hidden, 3 * hidden, 3, padding=1)

    def forward(self, x16: Tensor, x8: Tensor, x4: Tensor, h: Tensor) -> Tensor:
        x = self.g16_conv(x16) + self.g8_conv(F.avg_pool2d(x8, 2)) + self.g4_conv(F.avg_pool2d(x4, 4))
        return _gated(self.transform(torch.cat([x, h], 1)), h)


def _gated(gates: Tensor, h: Tensor) -> Tensor:
    """Not quite the textbook's cell: what is forgotten is also scaled by what is not updated."""
    forget, update, new = gates.chunk(3, 1)
    update = update.sigmoid()
    return forget.sigmoid() * h * (1 - update) + update * new.tanh()


def other_objects(planes: Tensor) -> Tensor:
    """[n,H,W]: for each object the sum of all others' planes."""
    return planes.sum(0, keepdim=True) - planes


def grown(states: Tensor, objects: int) -> Tensor:
    """States [k,...] of the known objects with zeros for the new ones, [objects,...]."""
    return torch.cat([states, states.new_zeros(objects - len(states), *states.shape[1:])])


def upsampled(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)
