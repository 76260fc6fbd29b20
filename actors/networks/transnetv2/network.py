"""The network: a stretch of tiny frames to two logits a frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Height, width and colours of a frame.
FRAME = (27, 48, 3)
#: Dilations in time of the four convolutions of a cell.
DILATIONS = (1, 2, 4, 8)
#: Filters of each dilation in the three stages.
FILTERS = (16, 32, 64)
#: Frames to each side that a frame is compared with.
REACH = 50
SIMILARITY = 128
HIDDEN = 1024


class SeparableConv3d(nn.Module):
    """A convolution in space, then one in time."""

    def __init__(self, in_channels: int, filters: int, dilation: int) -> None:
        super().__init__()
        space = nn.Conv3d(in_channels, 2 * filters, (1, 3, 3), padding=(0, 1, 1), bias=False)
        time = nn.Conv3d(
            2 * filters, filters, (3, 1, 1), padding=(dilation, 0, 0), dilation=(dilation, 1, 1), bias=False
        )
        self.layers = nn.Sequential(space, time)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class Cell(nn.Module):
    """The paper's DDCNN V2 cell: four views of time side by side, [B,C,T,H,W] to [B,4*filters,T,H,W]."""

    def __init__(self, in_channels: int, filters: int) -> None:
        super().__init__()
        for dilation in DILATIONS:
            self.add_module(f"Conv3D_{dilation}", SeparableConv3d(in_channels, filters, dilation))
        self.bn = nn.BatchNorm3d(len(DILATIONS) * filters, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        views = [self.get_submodule(f"Conv3D_{dilation}")(x) for dilation in DILATIONS]
        y: Tensor = self.bn(torch.cat(views, 1))
        return y


class Stage(nn.Module):
    """Two cells, the second around a shortcut, then half the height and width."""

    def __init__(self, in_channels: int, filters: int) -> None:
        super().__init__()
        self.DDCNN = nn.ModuleList([Cell(in_channels, filters), Cell(len(DILATIONS) * filters, filters)])

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.DDCNN
        x = F.relu(first(x))
        x = F.relu(second(x)) + x
        y = F.avg_pool2d(x.flatten(0, 1), 2)
        return y.view(*x.shape[:3], *y.shape[2:])


def _neighbours(features: Tensor) -> Tensor:
    """Cosine of every frame to those at -REACH..REACH, 0 beyond the ends: unit vectors [B,T,D] to [B,T,2*REACH+1]."""
    batch, frames, _ = features.shape
    padded = F.pad(features @ features.transpose(1, 2), (REACH, REACH))
    width = frames + 2 * REACH
    # The band around the diagonal: every row begins one further to the right than the one above.
    return padded.as_strided((batch, frames, 2 * REACH + 1), (frames * width, width + 1, 1))


class FrameSimilarity(nn.Module):
    """How alike frames are in what the stages saw."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.projection = nn.Linear(in_channels, SIMILARITY)
        self.fc = nn.Linear(2 * REACH + 1, out_channels)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        means = torch.cat([x.mean((3, 4)) for x in stages], 1).transpose(1, 2)
        features = F.normalize(self.projection(means).float(), dim=2)
        return F.relu(self.fc(_neighbours(features).to(means.dtype)))


class ColorHistograms(nn.Module):
    """How alike frames are in their colours: histograms of 8 x 8 x 8 bins."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * REACH + 1, out_channels)

    def forward(self, frames: Tensor) -> Tensor:
        """uint8 RGB [B,T,H,W,3] to [B,T,out_channels]."""
        r, g, b = (frames.long() >> 5).flatten(2, 3).unbind(-1)
        bins = (r << 6) + (g << 3) + b  # [B, T, H*W]
        counts = torch.zeros(*bins.shape[:2], 512, device=frames.device)
        counts.scatter_add_(2, bins, torch.ones((), device=frames.device).expand(bins.shape))
        return F.relu(self.fc(_neighbours(F.normalize(counts, dim=2)).to(self.fc.weight.dtype)))


class TransNetV2(nn.Module):
    """Shot-transition detector.

    State-dict names are those of soCzech/TransNetV2's `inference-pytorch`, default sizes.

    Frames are RGB, resized by the caller to 48 x 27 pixels whatever their aspect (the authors: ffmpeg's bicubic), and
    stay uint8: the histograms need whole numbers. The network was trained on films of 24 to 30 frames a second and on
    stretches of 100 frames; `step` and `finish` of this package walk a film as the authors do.

    Safe in half precision: every cell ends in a BatchNorm, and similarities are computed in float32.
    """

    half_safe = True

    def __init__(self) -> None:
        super().__init__()
        channels = [3, *(len(DILATIONS) * filters for filters in FILTERS)]
        self.SDDCNN = nn.ModuleList([Stage(*sizes) for sizes in zip(channels[:-1], FILTERS, strict=True)])
        self.frame_sim_layer = FrameSimilarity(sum(channels[1:]), SIMILARITY)
        self.color_hist_layer = ColorHistograms(SIMILARITY)
        places = (FRAME[0] >> len(FILTERS)) * (FRAME[1] >> len(FILTERS))
        self.fc1 = nn.Linear(2 * SIMILARITY + places * channels[-1], HIDDEN)
        self.cls_layer1 = nn.Linear(HIDDEN, 1)
        self.cls_layer2 = nn.Linear(HIDDEN, 1)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 RGB [B,T,27,48,3] to logits.

        Returns:
            one_hot: the one frame in the middle of a transition, [B,T,1].
            many_hot: every frame of a transition, [B,T,1].

        Raises:
            ValueError: frames are not uint8 or of another size.
        """
        if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[2:] != FRAME:
            raise ValueError(f"frames must be uint8 [B,T,27,48,3], got {frames.dtype} {list(frames.shape)}")
        x = frames.permute(0, 4, 1, 2, 3).to(self.fc1.weight.dtype) / 255
        stages = []
        for stage in self.SDDCNN:
            x = stage(x)
            stages.append(x)
        seen = x.permute(0, 2, 3, 4, 1).flatten(2)
        x = torch.cat([self.color_hist_layer(frames), self.frame_sim_layer(stages), seen], 2)
        x = F.relu(self.fc1(x))
        return self.cls_layer1(x), self.cls_layer2(x)


def detect(state: Mapping[str, Tensor]) -> TransNetV2 | None:
    """The network (weights not loaded), or None if the state dict is of another family."""
    if "SDDCNN.0.DDCNN.0.Conv3D_1.layers.0.weight" not in state or "color_hist_layer.fc.weight" not in state:
        return None
    return TransNetV2()
