"""Cutie's convolutional parts: fusion of image and object features, mask encoder, decoder."""

from __future__ import annotations

from math import log2

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actors.networks.resnet import BasicBlock, Trunk
from actors.networks.tracking.objects import MultiScaleGRU, ResBlock, SensoryGRU, other_objects, upsampled


class ChannelResBlock(nn.Module):
    """Two 3x3 convolutions whose channels are scaled by their neighbours' means (ECA-Net, arXiv:1910.03151)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        kernel = int((log2(channels) + 1) // 2) | 1
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(F.relu(self.conv1(F.relu(x))))
        gate: Tensor = self.conv(y.mean((2, 3))[:, None])  # [n,1,C]
        return x + y * gate.sigmoid().permute(0, 2, 1)[..., None]


class FeatureFusion(nn.Module):
    """Image features [1,C,h,w] and object features [n,C,h,w] to object features."""

    def __init__(self, image: int, objects: int, out: int) -> None:
        super().__init__()
        self.distributor = nn.ModuleDict(
            {"x_transform": nn.Conv2d(image, out, 1), "g_transform": nn.Conv2d(objects, out, 1)}
        )
        self.block1 = ChannelResBlock(out)
        self.block2 = ChannelResBlock(out)

    def forward(self, image: Tensor, objects: Tensor) -> Tensor:
        x = self.distributor["x_transform"](image) + self.distributor["g_transform"](objects)
        y: Tensor = self.block2(self.block1(x))
        return y


class MaskEncoder(Trunk):
    """A frame with its masks to what is stored of each object, and the objects' sensory memory after it."""

    def __init__(self, channels: int) -> None:
        super().__init__(BasicBlock, (2, 2, 2), in_channels=3 + 2)
        self.fuser = FeatureFusion(channels, self.channels[-1], channels)
        self.sensory_update = SensoryGRU(channels, channels)

    def encode(self, image: Tensor, pixel: Tensor, sensory: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        """image [1,3,H,W], its features [1,C,h,w], sensory [n,C,h,w], planes [n,H,W]: value [n,C,h,w], sensory."""
        masks = torch.stack([planes, other_objects(planes).clamp(0, 1)], 1)
        *_, x = self(torch.cat([image.expand(len(planes), -1, -1, -1), masks], 1))
        value = self.fuser(pixel, x)
        return value, self.sensory_update(value, sensory)


class PixelFuser(nn.Module):
    """What is recalled of each object, with its sensory memory and where it was seen last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fuser = FeatureFusion(channels, channels, channels)
        self.sensory_compress = nn.Conv2d(channels + 2, channels, 1)

    def forward(self, pixel: Tensor, recalled: Tensor, sensory: Tensor, seen: Tensor) -> Tensor:
        """pixel [1,C,h,w], recalled and sensory [n,C,h,w], seen [n,h,w]: [n,C,h,w]."""
        masks = torch.stack([seen, other_objects(seen).clamp(0, 1)], 1)
        y: Tensor = self.fuser(pixel, recalled + self.sensory_compress(torch.cat([sensory, masks], 1)))
        return y


class UpsampleBlock(nn.Module):
    """Object features at twice the size, with the image's features there."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.out_conv = ResBlock(in_channels, out_channels, shortcut=1)

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        y: Tensor = self.out_conv(skip + upsampled(x, 2))
        return y


class SkipProjections(nn.Module):
    """The image's features at 1/8 and 1/4 in the decoder's channels."""

    def __init__(self, image: tuple[int, int], out: tuple[int, int]) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(image, out, strict=True))

    def forward(self, *features: Tensor) -> list[Tensor]:
        return [transform(x) for transform, x in zip(self.transforms, features, strict=True)]


class MaskDecoder(nn.Module):
    """Readouts of the objects to their logits [n,1,h,w] at 1/4 and their sensory memory."""

    def __init__(self, image: tuple[int, int, int], channels: int) -> None:
        super().__init__()
        c4, c8, _ = image
        half = channels // 2
        self.sensory_update = MultiScaleGRU((channels, half, half + 1), channels, channels)
        self.decoder_feat_proc = SkipProjections((c8, c4), (channels, half))
        self.up_16_8 = UpsampleBlock(channels, half)
        self.up_8_4 = UpsampleBlock(half, half)
        self.pred = nn.Conv2d(half, 1, 3, padding=1)

    def forward(
        self, features: tuple[Tensor, Tensor, Tensor], x16: Tensor, sensory: Tensor, *, update: bool
    ) -> tuple[Tensor, Tensor]:
        f4, f8, _ = features
        skip8, skip4 = self.decoder_feat_proc(f8, f4)
        x8 = self.up_16_8(skip8, x16)
        x4 = self.up_8_4(skip4, x8)
        logits = self.pred(F.relu(x4))
        if update:
            sensory = self.sensory_update(x16, x8, torch.cat([x4, logits], 1), sensory)
        return logits, sensory
