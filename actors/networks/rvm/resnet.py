"""ResNet-50 encoder (He et al., 2015, arXiv:1512.03385) with its last stage dilated instead of strided."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from actors.networks.resnet import Bottleneck, stage


class ResNet50Encoder(nn.Module):
    """RGB in 0..1 [N,3,H,W], not normalised, to features of 64, 256, 512, 2048 channels at 1/2, 1/4, 1/8, 1/16."""

    channels = (64, 256, 512, 2048)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = stage(Bottleneck, 64, 64, 3)
        self.layer2 = stage(Bottleneck, 256, 128, 4, stride=2)
        self.layer3 = stage(Bottleneck, 512, 256, 6, stride=2)
        self.layer4 = stage(Bottleneck, 1024, 512, 3, dilation=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        f1 = F.relu(self.bn1(self.conv1(x)))  # 1/2
        f2 = self.layer1(self.maxpool(f1))  # 1/4
        f3 = self.layer2(f2)  # 1/8
        f4 = self.layer4(self.layer3(f3))  # 1/16
        return f1, f2, f3, f4
