"""SPyNet (Ranjan & Black, 2016, arXiv:1611.00850): optical flow from coarse to fine in six levels."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actors.networks.inpaint.layers import warp


class Level(nn.Module):
    """First frame, second frame warped by the flow so far, and that flow [N,3+3+2,H,W] -> its correction [N,2,H,W]."""

    def __init__(self) -> None:
        super().__init__()
        channels = (8, 32, 64, 32, 16, 2)
        stack: list[nn.Module] = []
        for in_channels, out_channels in pairwise(channels):
            conv = nn.Conv2d(in_channels, out_channels, 7, padding=3)
            last = out_channels == channels[-1]
            stack.append(nn.Sequential(OrderedDict(conv=conv) if last else OrderedDict(conv=conv, activate=nn.ReLU())))
        self.basic_module = nn.Sequential(*stack)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.basic_module(x)
        return y


class SPyNet(nn.Module):
    """Flow from one frame to another. Frames are RGB in 0..1; ImageNet's mean and deviation are taken off inside."""

    mean: Tensor
    std: Tensor
    levels = 6

    def __init__(self) -> None:
        super().__init__()
        self.basic_module = nn.ModuleList(Level() for _ in range(self.levels))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """[N,3,H,W] twice, any size -> flow from first to second [N,2,H,W], (dx, dy) in pixels."""
        height, width = first.shape[2:]
        coarsest = 2 ** (self.levels - 1)
        inner = (-(-height // coarsest) * coarsest, -(-width // coarsest) * coarsest)
        a, b = ([self._prepared(frame, inner)] for frame in (first, second))
        for _ in range(self.levels - 1):
            a.append(F.avg_pool2d(a[-1], 2))
            b.append(F.avg_pool2d(b[-1], 2))

        flow = a[-1].new_zeros(a[-1].shape[0], 2, *a[-1].shape[2:])
        for number, (level, here, there) in enumerate(zip(self.basic_module, a[::-1], b[::-1], strict=True)):
            if number:
                flow = 2 * F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True)
            flow = flow + level(torch.cat([here, warp(there, flow, padding_mode="border"), flow], 1))
        flow = F.interpolate(flow, (height, width), mode="bilinear", align_corners=False)
        return flow * flow.new_tensor([width / inner[1], height / inner[0]]).view(2, 1, 1)

    def _prepared(self, frame: Tensor, size: tuple[int, int]) -> Tensor:
        return (F.interpolate(frame, size, mode="bilinear", align_corners=False) - self.mean) / self.std
