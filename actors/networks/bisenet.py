"""BiSeNet (Yu et al., 2018, arXiv:1808.00897) for the parts of a face: 19 classes of CelebAMask-HQ."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actors.networks.resnet import BasicBlock, Trunk, stage

#: Classes by their index (CelebAMask-HQ).
CLASSES = (
    "background", "skin", "left_brow", "right_brow", "left_eye", "right_eye", "glasses", "left_ear", "right_ear",
    "earring", "nose", "mouth", "upper_lip", "lower_lip", "neck", "necklace", "cloth", "hair", "hat",
)  # fmt: skip
#: More than any data set of segmentation has.
MOST_CLASSES = 1000


class ConvBNReLU(nn.Module):
    """Convolution that keeps the size, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class ResNet18(Trunk):
    """ResNet-18 without its classifier."""

    def __init__(self) -> None:
        super().__init__(BasicBlock, (2, 2, 2))
        self.layer4 = stage(BasicBlock, 256, 512, 2, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B,3,H,W] to features of 128, 256 and 512 channels at 1/8, 1/16 and 1/32, sides rounded up."""
        _, eighth, sixteenth = super().forward(x)
        return eighth, sixteenth, self.layer4(sixteenth)


class AttentionRefinement(nn.Module):
    """Features weighted by what the whole picture shows (the paper's ARM)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(in_channels, out_channels, 3)
        self.conv_atten = nn.Conv2d(out_channels, out_channels, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * torch.sigmoid(self.bn_atten(self.conv_atten(_mean(x))))


class ContextPath(nn.Module):
    """The paper's context path: what is seen far around a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = ResNet18()
        self.arm16 = AttentionRefinement(256, 128)
        self.arm32 = AttentionRefinement(512, 128)
        self.conv_head32 = ConvBNReLU(128, 128, 3)
        self.conv_head16 = ConvBNReLU(128, 128, 3)
        self.conv_avg = ConvBNReLU(512, 128, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B,3,H,W] to ResNet's features at 1/8 and to context of 128 channels at 1/8 and at 1/16."""
        eighth, sixteenth, last = self.resnet(x)
        coarse = self.arm32(last) + self.conv_avg(_mean(last))
        context16 = self.conv_head32(F.interpolate(coarse, sixteenth.shape[2:], mode="nearest"))
        fine = self.arm16(sixteenth) + context16
        context8 = self.conv_head16(F.interpolate(fine, eighth.shape[2:], mode="nearest"))
        return eighth, context8, context16


class FeatureFusion(nn.Module):
    """Detail and context joined, with channels weighted by the whole picture (the paper's FFM)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convblk = ConvBNReLU(channels, channels, 1)
        self.conv1 = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(channels // 4, channels, 1, bias=False)

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        x: Tensor = self.convblk(torch.cat((detail, context), 1))
        return x + x * torch.sigmoid(self.conv2(F.relu(self.conv1(_mean(x)))))


class Head(nn.Module):
    """Features to logits of each class, at the features' size."""

    def __init__(self, in_channels: int, inner: int, classes: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(in_channels, inner, 3)
        self.conv_out = nn.Conv2d(inner, classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv_out(self.conv(x))
        return y


class BiSeNet(nn.Module):
    """The network of face-parsing.PyTorch, which MuseTalk uses too; its spatial path is ResNet's features at 1/8.

    Frames: RGB [B,3,H,W] in 0..1, then ImageNet mean and deviation; trained at 512x512, any size works.

    Attributes:
        half_safe: every convolution but the last is followed by a batch norm.
    """

    multiple_of = 1
    half_safe = True

    def __init__(self, classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.cp = ContextPath()
        self.ffm = FeatureFusion(256)
        self.conv_out = Head(256, 256, classes)
        self.conv_out16 = Head(128, 64, classes)
        self.conv_out32 = Head(128, 64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] to logits [B,classes,H,W]; their argmax is the map of `CLASSES`."""
        eighth, context, _ = self.cp(x)
        return _grow(self.conv_out(self.ffm(eighth, context)), x)

    def all_maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, and the two maps that training supervises, from context alone at 1/8 and at 1/16."""
        eighth, context8, context16 = self.cp(x)
        logits = self.conv_out(self.ffm(eighth, context8))
        return _grow(logits, x), _grow(self.conv_out16(context8), x), _grow(self.conv_out32(context16), x)


def detect(state: Mapping[str, Tensor]) -> BiSeNet | None:
    """The network (weights not loaded) whose sizes this state dict has, or None if it is of another family."""
    head = state.get("conv_out.conv_out.weight")
    if head is None or head.shape[1:] != (256, 1, 1) or "cp.resnet.conv1.weight" not in state:
        return None
    # The bound keeps a file with one absurd shape from building an absurd network.
    return BiSeNet(head.shape[0]) if head.shape[0] <= MOST_CLASSES else None


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def _grow(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)
