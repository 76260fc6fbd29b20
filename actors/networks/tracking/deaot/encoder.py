"""MobileNetV2 (Sandler et al., 2018, arXiv:1801.04381) with its last stages dilated instead of strided."""

from __future__ import annotations

from torch import Tensor, nn

from actors.networks.resnet import FrozenBatchNorm2d

#: Expansion, channels, blocks and stride of each stage (the paper's table 2).
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_STRIDE = 16


def _conv(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2 * dilation, dilation, groups, bias=False)
    return nn.Sequential(conv, FrozenBatchNorm2d(out_channels), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; the input is added where shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int, dilation: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers = [_conv(in_channels, hidden, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *layers,
            _conv(hidden, hidden, 3, stride=stride, dilation=dilation, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            FrozenBatchNorm2d(out_channels),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """RGB [B,3,H,W] to features at 1/4, 1/8, 1/16 and, deeper, 1/16.

    Attributes:
        channels: of the four.
    """

    channels = (24, 32, 96, 1280)

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, 32, 3, stride=2)]
        channels, reached, dilation = 32, 2, 1
        for expansion, out_channels, blocks, stage_stride in _STAGES:
            # Past 1/16 a stage dilates what follows its first block, instead of striding in it.
            stride = 1 if reached == _STRIDE else stage_stride
            later = dilation * stage_stride // stride
            for block in range(blocks):
                first = block == 0
                layers.append(
                    InvertedResidual(
                        channels, out_channels, expansion, stride if first else 1, dilation if first else later
                    )
                )
                channels = out_channels
            reached, dilation = reached * stride, later
        layers.append(_conv(channels, self.channels[-1], 1))
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        f4 = self.features[:4](x)
        f8 = self.features[4:7](f4)
        f16 = self.features[7:14](f8)
        return f4, f8, f16, self.features[14:](f16)
