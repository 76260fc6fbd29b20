"""U-2-Net (Qin et al., 2020, arXiv:2005.09007): a U of small Us, for salient objects; and its deeper anime variant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Width = Literal["full", "lite"]

#: Scales inside the blocks of stages 1 to 6. From stage 5 maps are too small to halve: blocks dilate instead.
HEIGHTS = (7, 6, 5, 4, 4, 4)
DILATED = 5


@dataclass(frozen=True, slots=True)
class Channels:
    """Channels inside and after each stage of the encoder, and of the decoder from 5 down to 1."""

    inner: tuple[int, ...]
    outer: tuple[int, ...]
    inner_up: tuple[int, ...]
    outer_up: tuple[int, ...]


CHANNELS: Mapping[Width, Channels] = {
    "full": Channels(
        (32, 32, 64, 128, 256, 256), (64, 128, 256, 512, 512, 512), (256, 128, 64, 32, 16), (512, 256, 128, 64, 64)
    ),
    "lite": Channels((16,) * 6, (64,) * 6, (16,) * 5, (64,) * 5),
}


class ConvBlock(nn.Module):
    """3x3 convolution, batch norm, ReLU; the size stays."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv_s1 = nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn_s1(self.conv_s1(x)), inplace=True)


class RSU(nn.Module):
    """Residual U-block: a U of `height` scales whose output is added to its first convolution's.

    Args:
        dilated: no pooling; dilation doubles from scale to scale instead.
        paired: names are registered down and up in turn (the anime variant's order of state-dict keys), not the way
            down first.
    """

    def __init__(
        self, height: int, in_channels: int, inner: int, out_channels: int, dilated: bool, paired: bool
    ) -> None:
        super().__init__()
        self.height, self.dilated = height, dilated
        self.rebnconvin = ConvBlock(in_channels, out_channels)
        down, up = {}, {}
        for scale in range(1, height):
            dilation = 2 ** (scale - 1) if dilated else 1
            down[f"rebnconv{scale}"] = ConvBlock(out_channels if scale == 1 else inner, inner, dilation)
            up[f"rebnconv{scale}d"] = ConvBlock(2 * inner, out_channels if scale == 1 else inner, dilation)
        bottom = {f"rebnconv{height}": ConvBlock(inner, inner, 2 ** (height - 1) if dilated else 2)}
        if paired:
            blocks = dict(pair for both in zip(down.items(), up.items(), strict=True) for pair in both) | bottom
        else:
            blocks = down | bottom | dict(reversed(up.items()))
        for name, block in blocks.items():
            self.add_module(name, block)

    def forward(self, x: Tensor) -> Tensor:
        """[B,in,H,W] to [B,out,H,W]."""
        x = shortcut = self.rebnconvin(x)
        skips = []
        for scale in range(1, self.height):
            # The last two scales have the same size.
            x = self.get_submodule(f"rebnconv{scale}")(_halve(x) if scale > 1 and not self.dilated else x)
            skips.append(x)
        x = self.get_submodule(f"rebnconv{self.height}")(x)
        for scale, skip in zip(range(self.height - 1, 0, -1), reversed(skips), strict=True):
            x = self.get_submodule(f"rebnconv{scale}d")(torch.cat((_resize(x, skip), skip), 1))
        y: Tensor = x + shortcut
        return y


class NestedU(nn.Module):
    """The U of RSU blocks that U-2-Net and IS-Net share, with a side map from each scale.

    Args:
        deeper: blocks of one scale more, and the anime variant's order of state-dict keys.
        stem: what stands before the U, under the name `conv_in`.
        in_channels: of stage 1.
    """

    multiple_of = 1

    def __init__(self, width: Width, deeper: bool = False, stem: nn.Module | None = None, in_channels: int = 3) -> None:
        super().__init__()
        if stem is not None:
            self.conv_in = stem
        channels = CHANNELS[width]
        before = in_channels
        for scale, height, inner, after in zip(range(1, 7), HEIGHTS, channels.inner, channels.outer, strict=True):
            dilated = scale >= DILATED
            self.add_module(f"stage{scale}", RSU(height + deeper, before, inner, after, dilated, paired=deeper))
            before = after
        sides = {6: nn.Conv2d(before, 1, 3, padding=1)}
        if deeper:
            self.side6 = sides[6]
        for scale, inner, after in zip(range(5, 0, -1), channels.inner_up, channels.outer_up, strict=True):
            height, entering = HEIGHTS[scale - 1] + deeper, before + channels.outer[scale - 1]
            dilated = scale >= DILATED
            self.add_module(f"stage{scale}d", RSU(height, entering, inner, after, dilated, paired=deeper))
            sides[scale] = nn.Conv2d(after, 1, 3, padding=1)
            if deeper:
                self.add_module(f"side{scale}", sides[scale])
            before = after
        for scale in range(1, 7):
            self.add_module(f"side{scale}", sides[scale])

    def features(self, x: Tensor) -> list[Tensor]:
        """[B,in,H,W] to the maps of decoder stages 1 to 5 and of encoder stage 6, at 1/1, 1/2 ... 1/32."""
        skips: list[Tensor] = []
        for scale in range(1, 7):
            x = self.get_submodule(f"stage{scale}")(_halve(x) if skips else x)
            skips.append(x)
        maps = [skips.pop()]
        for scale, skip in zip(range(5, 0, -1), reversed(skips), strict=True):
            maps.append(self.get_submodule(f"stage{scale}d")(torch.cat((_resize(maps[-1], skip), skip), 1)))
        return maps[::-1]

    def side_maps(self, features: list[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """One map [B,1,*size] of each feature, as logits."""
        return [
            F.interpolate(self.get_submodule(f"side{scale}")(feature), size, mode="bilinear", align_corners=False)
            for scale, feature in enumerate(features, 1)
        ]


class U2Net(NestedU):
    """The official U-2-Net (`full`), U-2-Net-p (`lite`), and SkyTNT's anime variants full2 and lite2 (`deeper`).

    Frames: RGB [B,3,H,W] of any size. Official weights were trained at 320x320 on x / max(x), then ImageNet mean and
    standard deviation; anime weights at 640x640, letterboxed, on 0..1 without mean and deviation.

    Attributes:
        half_safe: every convolution is followed by a batch norm, and SkyTNT trains in fp16.
        probabilities: whether maps are probabilities, as the official U-2-Net returns, or logits, as the anime variants
            do; the state dict does not tell, so it goes by `deeper`.
    """

    half_safe = True

    def __init__(self, width: Width = "full", deeper: bool = False) -> None:
        super().__init__(width, deeper)
        self.probabilities = not deeper
        self.outconv = nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B,3,H,W] to seven maps [B,1,H,W]: d0, which is fused of all, then those of scales 1 to 6."""
        sides = self.side_maps(self.features(x), (x.shape[2], x.shape[3]))
        maps = [self.outconv(torch.cat(sides, 1)), *sides]
        return [torch.sigmoid(m) for m in maps] if self.probabilities else maps


def detect(state: Mapping[str, Tensor]) -> U2Net | None:
    """The network (weights not loaded) whose sizes this state dict has, or None if it is of another family."""
    width = detect_width(state)
    if width is None or "outconv.weight" not in state:
        return None
    return U2Net(width, deeper="stage1.rebnconv8.conv_s1.weight" in state)


def detect_width(state: Mapping[str, Tensor]) -> Width | None:
    """Which of the known widths the U has, by the decoder's first block; None if it is another network."""
    first = state.get("stage5d.rebnconvin.conv_s1.weight")
    widths = {name: (channels.outer_up[0], 2 * channels.outer[-1], 3, 3) for name, channels in CHANNELS.items()}
    return next((name for name, shape in widths.items() if first is not None and first.shape == shape), None)


def _halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, 2, ceil_mode=True)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    """x at the size of `like`; no work where it has it already."""
    size = like.shape[2:]
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)
