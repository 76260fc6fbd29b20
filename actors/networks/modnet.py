"""MODNet (Ke et al., 2020, arXiv:2011.11961): portrait matting from one frame, in three branches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actors.networks.sizes import check_sides

#: Channels of the backbone at 1/2, 1/4, 1/8, 1/16 and 1/32.
ENCODED = (16, 24, 32, 96, 1280)
DETAIL = 32
#: MobileNetV2 (Sandler et al., 2018, arXiv:1801.04381), table 2: expansion, channels, blocks, stride of the first.
INVERTED = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """MobileNetV2's block: widen, filter each channel, narrow; added to its input where shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.shortcut = stride == 1 and in_channels == out_channels
        inner = in_channels * expansion
        widen = _conv_bn(in_channels, inner, 1) if expansion > 1 else []
        narrow = [nn.Conv2d(inner, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)]
        self.conv = nn.Sequential(*widen, *_conv_bn(inner, inner, 3, stride, inner), *narrow)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """The convolutions of MobileNetV2 without its classifier."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Sequential(*_conv_bn(3, 32, 3, 2))]
        channels = 32
        for expansion, out_channels, count, stride in INVERTED:
            for i in range(count):
                blocks.append(InvertedResidual(channels, out_channels, stride if i == 0 else 1, expansion))
                channels = out_channels
        blocks.append(nn.Sequential(*_conv_bn(channels, ENCODED[-1], 1)))
        self.features = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B,3,H,W] to features of 16, 24 and 1280 channels at 1/2, 1/4 and 1/32."""
        half = self.features[:2](x)
        quarter = self.features[2:4](half)
        return half, quarter, self.features[4:](quarter)


class Backbone(nn.Module):
    """Holds MobileNetV2 under its official name."""

    def __init__(self) -> None:
        super().__init__()
        self.model = MobileNetV2()


class IBNorm(nn.Module):
    """Batch norm for the first half of the channels, instance norm for the rest."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bnorm = nn.BatchNorm2d(channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.bnorm.num_features
        return torch.cat((self.bnorm(x[:, :kept].contiguous()), F.instance_norm(x[:, kept:].contiguous())), 1)


class ConvIBNorm(nn.Module):
    """Convolution that keeps the size (halves it with stride 2), IBNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2)
        self.layers = nn.Sequential(conv, IBNorm(out_channels), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class Conv(nn.Module):
    """A plain convolution to one map, under the official name."""

    def __init__(self, in_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(in_channels, 1, kernel, stride, padding=kernel // 2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class ChannelGate(nn.Module):
    """Squeeze and excitation (Hu et al., 2017, arXiv:1709.01507): channels weighted by the whole picture."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        narrow = nn.Linear(channels, channels // reduction, bias=False)
        widen = nn.Linear(channels // reduction, channels, bias=False)
        self.fc = nn.Sequential(narrow, nn.ReLU(inplace=True), widen, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.fc(x.mean((2, 3)))
        return x * gate[:, :, None, None]


class SemanticBranch(nn.Module):
    """The low-resolution branch: where the person is."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.se_block = ChannelGate(ENCODED[4], 4)
        self.conv_lr16x = ConvIBNorm(ENCODED[4], ENCODED[3], 5)
        self.conv_lr8x = ConvIBNorm(ENCODED[3], ENCODED[2], 5)
        self.conv_lr = Conv(ENCODED[2], 3, stride=2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B,3,H,W] to the semantic features at 1/8, and the backbone's at 1/2 and 1/4."""
        half, quarter, coarse = self.backbone.model(image)
        x = self.conv_lr16x(_double(self.se_block(coarse)))
        return self.conv_lr8x(_double(x)), half, quarter


class DetailBranch(nn.Module):
    """The high-resolution branch: the outline."""

    def __init__(self) -> None:
        super().__init__()
        n = DETAIL
        self.tohr_enc2x = ConvIBNorm(ENCODED[0], n, 1)
        self.conv_enc2x = ConvIBNorm(n + 3, n, 3, stride=2)
        self.tohr_enc4x = ConvIBNorm(ENCODED[1], n, 1)
        self.conv_enc4x = ConvIBNorm(2 * n, 2 * n, 3)
        self.conv_hr4x = nn.Sequential(
            ConvIBNorm(2 * n + ENCODED[2] + 3, 2 * n, 3), ConvIBNorm(2 * n, 2 * n, 3), ConvIBNorm(2 * n, n, 3)
        )
        self.conv_hr2x = nn.Sequential(
            ConvIBNorm(2 * n, 2 * n, 3), ConvIBNorm(2 * n, n, 3), ConvIBNorm(n, n, 3), ConvIBNorm(n, n, 3)
        )
        self.conv_hr = nn.Sequential(ConvIBNorm(n + 3, n, 3), Conv(n, 1))

    def forward(self, image: Tensor, half: Tensor, quarter: Tensor, semantic: Tensor) -> Tensor:
        """The image, the backbone's features and the semantic ones at 1/8, to detail features at 1/2."""
        image2 = F.interpolate(image, scale_factor=1 / 2, mode="bilinear", align_corners=False)
        image4 = F.interpolate(image, scale_factor=1 / 4, mode="bilinear", align_corners=False)
        half = self.tohr_enc2x(half)
        x = self.conv_enc2x(torch.cat((image2, half), 1))  # 1/4
        x = self.conv_enc4x(torch.cat((x, self.tohr_enc4x(quarter)), 1))
        x = self.conv_hr4x(torch.cat((x, _double(semantic), image4), 1))
        y: Tensor = self.conv_hr2x(torch.cat((_double(x), half), 1))
        return y


class FusionBranch(nn.Module):
    """Semantic and detail features to the matte."""

    def __init__(self) -> None:
        super().__init__()
        n = DETAIL
        self.conv_lr4x = ConvIBNorm(ENCODED[2], n, 5)
        self.conv_f2x = ConvIBNorm(2 * n, n, 3)
        self.conv_f = nn.Sequential(ConvIBNorm(n + 3, n // 2, 3), Conv(n // 2, 1))

    def forward(self, image: Tensor, semantic: Tensor, detail: Tensor) -> Tensor:
        """[B,3,H,W], semantic features at 1/8 and detail features at 1/2 to alpha [B,1,H,W] in 0..1."""
        x = _double(self.conv_lr4x(_double(semantic)))
        x = self.conv_f2x(torch.cat((x, detail), 1))
        return torch.sigmoid(self.conv_f(torch.cat((_double(x), image), 1)))


class MODNet(nn.Module):
    """The official network. Its backbone stands in the state dict twice, as one set of tensors.

    Frames: RGB [B,3,H,W] in -1..1 (mean and deviation 0.5). The official demo resizes by area so that the shorter side
    is 512, and both sides are floored to multiples of 32. Trained on portraits; weak on drawings.

    Attributes:
        multiple_of: of both sides.
        half_safe: activations are normalised or bounded by 6, and norms sum in fp32 on CUDA.
    """

    multiple_of = 32
    half_safe = True

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.lr_branch = SemanticBranch(self.backbone)
        self.hr_branch = DetailBranch()
        self.f_branch = FusionBranch()

    def forward(self, image: Tensor) -> Tensor:
        """[B,3,H,W] to alpha [B,1,H,W] in 0..1. ValueError if a side is no multiple of 32."""
        semantic, detail = self._features(image)
        alpha: Tensor = self.f_branch(image, semantic, detail)
        return alpha

    def all_maps(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, after what training supervises: where the person is [B,1,H/16,W/16], the outline [B,1,H,W]."""
        semantic, detail = self._features(image)
        person = torch.sigmoid(self.lr_branch.conv_lr(semantic))
        outline = torch.sigmoid(self.hr_branch.conv_hr(torch.cat((_double(detail), image), 1)))
        return person, outline, self.f_branch(image, semantic, detail)

    def _features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        check_sides(image, self.multiple_of)
        semantic, half, quarter = self.lr_branch(image)
        return semantic, self.hr_branch(image, half, quarter, semantic)


def detect(state: Mapping[str, Tensor]) -> MODNet | None:
    """The network (weights not loaded) if this state dict is one's, or None if it is of another family."""
    ours = ("lr_branch.backbone.model.features.0.0.weight", "f_branch.conv_lr4x.layers.0.weight")
    return MODNet() if all(name in state for name in ours) else None


def _conv_bn(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True)]


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
