"""Residual networks (He et al., 2015, arXiv:1512.03385): the blocks and the trunk that several families share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Callable[[int], nn.Module]


class FrozenBatchNorm2d(nn.Module):
    """BatchNorm whose four vectors are all buffers: its checkpoints have no `num_batches_tracked`."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=False)


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: Norm) -> nn.Module | None:
    """A projection where the shortcut changes shape, else None."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), norm(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, `width` channels inside and outside."""

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, *, stride: int = 1, dilation: int = 1, norm: Norm = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, dilation, dilation, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = norm(width)
        self.downsample = _shortcut(in_channels, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(y + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; `width` channels inside, four times as many outside."""

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, *, stride: int = 1, dilation: int = 1, norm: Norm = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(y + shortcut)


Block = type[BasicBlock] | type[Bottleneck]


def stage(
    block: Block,
    in_channels: int,
    width: int,
    blocks: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    norm: Norm = nn.BatchNorm2d,
) -> nn.Sequential:
    """A stage of blocks. Where dilation stands in for a stride, the first block is the one that would have strided:
    it still sees the undilated grid."""
    first = block(in_channels, width, stride=stride, norm=norm)
    rest = (block(width * block.expansion, width, dilation=dilation, norm=norm) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


class Trunk(nn.Module):
    """An image [B,C,H,W] to features at 1/4, 1/8 and 1/16: a ResNet without its last stage.

    Args:
        depths: blocks of the three stages; (2, 2, 2) of BasicBlock is ResNet-18, (3, 4, 6) of Bottleneck ResNet-50.
        in_channels: 3 for RGB, more where masks come along.
        first: state-dict name of the first stage; the descendants of STM call it `res2` in their key encoders.

    Attributes:
        channels: of the features at 1/4, 1/8 and 1/16.
    """

    def __init__(
        self,
        block: Block,
        depths: tuple[int, int, int],
        *,
        in_channels: int = 3,
        first: str = "layer1",
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        c4, c8, c16 = (width * block.expansion for width in (64, 128, 256))
        self.channels = (c4, c8, c16)
        self._first = first
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1 = norm(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.add_module(first, stage(block, 64, 64, depths[0], norm=norm))
        self.layer2 = stage(block, c4, 128, depths[1], stride=2, norm=norm)
        self.layer3 = stage(block, c8, 256, depths[2], stride=2, norm=norm)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        f4 = self.get_submodule(self._first)(x)
        f8 = self.layer2(f4)
        return f4, f8, self.layer3(f8)
