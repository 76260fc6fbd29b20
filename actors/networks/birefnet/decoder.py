"""BiRefNet's decoder: every scale looks at deformable surroundings and at patches of the image itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actors.networks.deform import deform_conv2d

#: Channels inside a decoder block, of each branch of its surroundings, and of the gradient attention.
INNER, BRANCH, GRADIENT = 64, 256, 16


class DeformableConv(nn.Module):
    """Modulated deformable convolution that keeps the size; where and how much each tap looks comes from its input."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.padding = kernel // 2
        self.offset_conv = nn.Conv2d(in_channels, 2 * kernel**2, kernel, padding=self.padding)
        self.modulator_conv = nn.Conv2d(in_channels, kernel**2, kernel, padding=self.padding)
        self.regular_conv = nn.Conv2d(in_channels, out_channels, kernel, padding=self.padding, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mask = 2 * torch.sigmoid(self.modulator_conv(x))
        return deform_conv2d(x, self.offset_conv(x), self.regular_conv.weight, padding=self.padding, mask=mask)


class DeformableBranch(nn.Module):
    """Deformable convolution, batch norm, ReLU."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.atrous_conv = DeformableConv(INNER, BRANCH, kernel)
        self.bn = nn.BatchNorm2d(BRANCH)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.atrous_conv(x)), inplace=True)


class DeformableASPP(nn.Module):
    """Surroundings of several sizes side by side: kernels 1, 1, 3 and 7, and the mean of the whole picture."""

    def __init__(self) -> None:
        super().__init__()
        self.aspp1 = DeformableBranch(1)
        self.aspp_deforms = nn.ModuleList(DeformableBranch(kernel) for kernel in (1, 3, 7))
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(INNER, BRANCH, 1, bias=False),
            nn.BatchNorm2d(BRANCH),
            nn.ReLU(inplace=True),
        )
        self.conv1 = nn.Conv2d(5 * BRANCH, INNER, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(INNER)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.global_avg_pool(x).expand(-1, -1, *x.shape[2:])
        x = torch.cat((self.aspp1(x), *(branch(x) for branch in self.aspp_deforms), whole), 1)
        return F.relu(self.bn1(self.conv1(x)), inplace=True)


class DecoderBlock(nn.Module):
    """Narrow, look around, widen (the paper's reconstruction block)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, INNER, 3, padding=1)
        self.dec_att = DeformableASPP()
        self.conv_out = nn.Conv2d(INNER, out_channels, 3, padding=1)
        self.bn_in = nn.BatchNorm2d(INNER)
        self.bn_out = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn_in(self.conv_in(x)), inplace=True)
        y: Tensor = self.bn_out(self.conv_out(self.dec_att(x)))
        return y


class ImageBlock(nn.Module):
    """Patches of the image, stacked as channels, to features: two convolutions with nothing between."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, INNER, 3, padding=1)
        self.conv_out = nn.Conv2d(INNER, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv_out(self.conv1(x))
        return y


class Lateral(nn.Module):
    """A feature of the encoder on its way to the decoder."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class Decoder(nn.Module):
    """From 1/32 to full size, scale by scale. `conv_ms_spvn_*` and `gdt_convs_pred_*` serve training alone.

    Args:
        channels: of the encoder's features at 1/32, 1/16, 1/8 and 1/4.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        image = [c // 8 for c in channels]
        outputs = [*channels[1:], channels[-1] // 2]
        patches = [3 * 4**halvings for halvings in (5, 4, 3, 2, 0)]
        for scale, taken, given in zip(range(5, 0, -1), patches, [image[0], *image], strict=True):
            self.add_module(f"ipt_blk{scale}", ImageBlock(taken, given))
        for scale, feature, seen, given in zip(range(4, 0, -1), channels, [image[0], *image], outputs, strict=False):
            self.add_module(f"decoder_block{scale}", DecoderBlock(feature + seen, given))
        self.conv_out1 = nn.Sequential(nn.Conv2d(outputs[-1] + image[-1], 1, 1))
        refined = dict(zip((4, 3, 2), outputs, strict=False))
        for scale, given in refined.items():
            self.add_module(f"lateral_block{scale}", Lateral(given))
        for scale, given in refined.items():
            self.add_module(f"conv_ms_spvn_{scale}", nn.Conv2d(given, 1, 1))
        for scale, given in refined.items():
            gradient = nn.Sequential(
                nn.Conv2d(given, GRADIENT, 3, padding=1), nn.BatchNorm2d(GRADIENT), nn.ReLU(inplace=True)
            )
            self.add_module(f"gdt_convs_{scale}", gradient)
        for purpose in ("pred", "attn"):
            for scale in refined:
                self.add_module(f"gdt_convs_{purpose}_{scale}", nn.Sequential(nn.Conv2d(GRADIENT, 1, 1)))

    def forward(self, x: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Frames [B,3,H,W] and features at 1/4, 1/8, 1/16 and 1/32 to logits [B,1,H,W]."""
        p = features[3]
        for scale in (4, 3, 2):
            p = self._part(f"decoder_block{scale}", self._with_image(p, x, scale + 1))
            # The paper's gradient attention: weight where outlines are.
            p = p * torch.sigmoid(self._part(f"gdt_convs_attn_{scale}", self._part(f"gdt_convs_{scale}", p)))
            skip = features[scale - 2]
            p = _resize(p, skip) + self._part(f"lateral_block{scale}", skip)
        p = _resize(self._part("decoder_block1", self._with_image(p, x, 2)), x)
        return self._part("conv_out1", self._with_image(p, x, 1))

    def _with_image(self, p: Tensor, x: Tensor, scale: int) -> Tensor:
        """p and, after it, features of the image's patches of p's size."""
        return torch.cat((p, self._part(f"ipt_blk{scale}", patches(x, p.shape[2], p.shape[3]))), 1)

    def _part(self, name: str, x: Tensor) -> Tensor:
        y: Tensor = self.get_submodule(name)(x)
        return y


def patches(x: Tensor, height: int, width: int) -> Tensor:
    """[B,C,H,W] cut into tiles of height x width that become channels: [B, C*H/height*W/width, height, width]."""
    batch, channels, rows, columns = x.shape
    tiles = x.view(batch, channels, rows // height, height, columns // width, width)
    return tiles.transpose(3, 4).reshape(batch, -1, height, width)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)
