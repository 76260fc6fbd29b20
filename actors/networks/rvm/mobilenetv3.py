"""MobileNetV3-Large encoder (Howard et al., 2019, arXiv:1905.02244) with its last stage dilated instead of strided."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from actors.networks.rvm.normalise import ImageNetNormalise

#: BatchNorm epsilon of this encoder; the rest of the network uses PyTorch's 1e-5.
_EPS = 1e-3


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of the paper's table 1: kernel, expanded and output channels, squeezed channels or 0, activation."""

    kernel: int
    expand: int
    out: int
    squeeze: int
    hardswish: bool
    stride: int = 1
    dilation: int = 1


_ROWS = (
    _Row(3, 16, 16, 0, False),
    _Row(3, 64, 24, 0, False, stride=2),
    _Row(3, 72, 24, 0, False),
    _Row(5, 72, 40, 24, False, stride=2),
    _Row(5, 120, 40, 32, False),
    _Row(5, 120, 40, 32, False),
    _Row(3, 240, 80, 0, True, stride=2),
    _Row(3, 200, 80, 0, True),
    _Row(3, 184, 80, 0, True),
    _Row(3, 184, 80, 0, True),
    _Row(3, 480, 112, 120, True),
    _Row(3, 672, 112, 168, True),
    _Row(5, 672, 160, 168, True, dilation=2),
    _Row(5, 960, 160, 240, True, dilation=2),
    _Row(5, 960, 160, 240, True, dilation=2),
)


class ConvBNActivation(nn.Sequential):
    """Convolution without bias, BatchNorm, and an activation unless it is a linear projection."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        activation: type[nn.Module] | None,
    ) -> None:
        padding = (kernel - 1) // 2 * dilation
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False),
            nn.BatchNorm2d(out_channels, eps=_EPS),
        ]
        if activation is not None:
            layers.append(activation())
        super().__init__(*layers)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from the channels' means."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.adaptive_avg_pool2d(x, 1)
        gate = F.relu(self.fc1(gate))
        return x * F.hardsigmoid(self.fc2(gate))


class InvertedResidual(nn.Module):
    """Expand, depthwise, squeeze, project; the input is added where shapes agree."""

    def __init__(self, in_channels: int, row: _Row) -> None:
        super().__init__()
        activation: type[nn.Module] = nn.Hardswish if row.hardswish else nn.ReLU
        layers: list[nn.Module] = []
        if row.expand != in_channels:
            layers.append(ConvBNActivation(in_channels, row.expand, 1, activation=activation))
        layers.append(
            ConvBNActivation(
                row.expand,
                row.expand,
                row.kernel,
                stride=row.stride,
                dilation=row.dilation,
                groups=row.expand,
                activation=activation,
            )
        )
        if row.squeeze:
            layers.append(SqueezeExcitation(row.expand, row.squeeze))
        layers.append(ConvBNActivation(row.expand, row.out, 1, activation=None))
        self.block = nn.Sequential(*layers)
        self.residual = row.stride == 1 and in_channels == row.out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return x + y if self.residual else y


class MobileNetV3LargeEncoder(nn.Module):
    """RGB in 0..1 [N,3,H,W] to features of 16, 24, 40, 960 channels at 1/2, 1/4, 1/8, 1/16."""

    channels = (16, 24, 40, 960)

    def __init__(self) -> None:
        super().__init__()
        self.normalise = ImageNetNormalise()
        layers: list[nn.Module] = [ConvBNActivation(3, 16, 3, stride=2, activation=nn.Hardswish)]
        channels = 16
        for row in _ROWS:
            layers.append(InvertedResidual(channels, row))
            channels = row.out
        layers.append(ConvBNActivation(channels, 960, 1, activation=nn.Hardswish))
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        f1 = self.features[:2](self.normalise(x))  # 1/2
        f2 = self.features[2:4](f1)  # 1/4
        f3 = self.features[4:7](f2)  # 1/8
        f4 = self.features[7:](f3)  # 1/16
        return f1, f2, f3, f4
