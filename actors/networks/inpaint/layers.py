"""What the video inpainting networks share: encoder, decoder, warping, and the check of sides."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UpConv(nn.Module):
    """Twice the size, bilinearly with corners aligned, then a 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))
        return y


def leaky_convs(*convs: nn.Module, slope: float = 0.2) -> nn.Sequential:
    """Convolutions with a leaky ReLU between each two of them, none after the last."""
    layers: list[nn.Module] = []
    for conv in convs:
        layers += [conv, nn.LeakyReLU(slope, inplace=True)]
    return nn.Sequential(*layers[:-1])


def frame_decoder(channels: int) -> nn.Sequential:
    """Features [N,channels,H/4,W/4] -> RGB before its tanh [N,3,H,W]."""
    return leaky_convs(
        UpConv(channels, 128), nn.Conv2d(128, 64, 3, padding=1), UpConv(64, 64), nn.Conv2d(64, 3, 3, padding=1)
    )


class GroupedSkipEncoder(nn.Module):
    """Frames [N,C,H,W] -> features [N,128,ceil(H/4),ceil(W/4)] (FuseFormer's encoder; Liu et al., 2021).

    From the fifth convolution on, each convolution sees the features of the fourth again, interleaved group by group.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.layers = leaky_convs(
            nn.Conv2d(in_channels, 64, 3, stride=2, padding=1),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),
            nn.Conv2d(128, 256, 3, padding=1),
            nn.Conv2d(256, 384, 3, padding=1),
            nn.Conv2d(256 + 384, 512, 3, padding=1, groups=2),
            nn.Conv2d(256 + 512, 384, 3, padding=1, groups=4),
            nn.Conv2d(256 + 384, 256, 3, padding=1, groups=8),
            nn.Conv2d(256 + 256, 128, 3, padding=1),
        ).append(nn.LeakyReLU(0.2, inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.layers[:8](x)
        y = self.layers[8:10](skip)
        for at, groups in ((10, 2), (12, 4), (14, 8), (16, 1)):
            both = [torch.unflatten(part, 1, (groups, -1)) for part in (skip, y)]
            y = self.layers[at : at + 2](torch.cat(both, 2).flatten(1, 2))
        result: Tensor = y
        return result


def framewise(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A network for [N,...] applied to every frame of clips [B,T,...] at once."""
    return torch.unflatten(network(x.flatten(0, 1)), 0, x.shape[:2])


def warp(x: Tensor, flow: Tensor, mode: str = "bilinear", padding_mode: str = "zeros") -> Tensor:
    """x [N,C,H,W] looked up at every pixel's own place plus its flow [N,2,H,W], (dx, dy) in pixels.

    Places and samples are float32 even for half-precision inputs, whose steps are 1/8 pixel at column 200.
    """
    height, width = x.shape[2:]
    pixels, last = _pixels(height, width, x.device)
    wide = torch.promote_types(x.dtype, torch.float32)
    grid = 2 * (pixels + flow.to(wide).permute(0, 2, 3, 1)) / last - 1
    return F.grid_sample(x.to(wide), grid, mode=mode, padding_mode=padding_mode, align_corners=True).to(x.dtype)


@lru_cache(maxsize=16)
def _pixels(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(x, y) of every pixel, [H,W,2], and of the last one, [2], at least 1 for the division."""
    with torch.inference_mode(False):  # kept between calls, of which some may want gradients
        y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
        pixels = torch.stack((x, y), -1).float()
        return pixels, pixels[-1, -1].clamp(min=1)
