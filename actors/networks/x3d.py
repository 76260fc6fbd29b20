"""X3D (Feichtenhofer, 2020, arXiv:2004.04730): which of Kinetics' actions a clip shows, with very little arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

#: Channels of the stem and of the four stages; inside a block there are 2.25 times as many.
STEM = 24
WIDTHS = (24, 48, 96, 192)
#: Channels to which each stage's squeeze-and-excitation narrows: a sixteenth, in eights.
SQUEEZED = (8, 8, 16, 32)
HEAD = 2048
STRIDE = (1, 2, 2)

#: Blocks of the stages.
SHALLOW = (3, 5, 11, 7)
DEEP = (5, 10, 25, 15)


class Clip(NamedTuple):
    """What a published network was trained on: `frames` pictures, every `rate`-th of the film, `side` x `side`."""

    frames: int
    rate: int
    side: int


#: XS, S and M are one network with three sets of weights, so their files cannot tell which clip they want; L is DEEP.
CLIPS = {"xs": Clip(4, 12, 160), "s": Clip(13, 6, 160), "m": Clip(16, 5, 224), "l": Clip(16, 5, 312)}


class SpaceTimeConv(nn.Module):
    """A convolution in space, then one in time. The checkpoints' names have it the wrong way round."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_t = nn.Conv3d(3, STEM, (1, 3, 3), STRIDE, (0, 1, 1), bias=False)
        self.conv_xy = nn.Conv3d(STEM, STEM, (5, 1, 1), padding=(2, 0, 0), groups=STEM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv_xy(self.conv_t(x))
        return y


class Stem(nn.Module):
    """RGB [B,3,T,H,W] to [B,24,T,H/2,W/2]; here and in every stage odd sides are rounded up."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = SpaceTimeConv()
        self.norm = nn.BatchNorm3d(STEM)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from the channels' means."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv3d(channels, squeezed, 1), nn.ReLU(), nn.Conv3d(squeezed, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.block(x.mean((2, 3, 4), keepdim=True))
        return x * gate


class Bottleneck(nn.Module):
    """Expand, 3x3x3 within each channel, gate, project."""

    def __init__(self, in_channels: int, out_channels: int, squeezed: int | None, stride: tuple[int, int, int]) -> None:
        super().__init__()
        inner = out_channels * 9 // 4
        self.conv_a = nn.Conv3d(in_channels, inner, 1, bias=False)
        self.norm_a = nn.BatchNorm3d(inner)
        self.conv_b = nn.Conv3d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        gate = nn.Identity() if squeezed is None else SqueezeExcitation(inner, squeezed)
        self.norm_b = nn.Sequential(nn.BatchNorm3d(inner), gate)
        self.conv_c = nn.Conv3d(inner, out_channels, 1, bias=False)
        self.norm_c = nn.BatchNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_a(self.conv_a(x)))
        x = F.silu(self.norm_b(self.conv_b(x)))
        y: Tensor = self.norm_c(self.conv_c(x))
        return y


class ResidualBlock(nn.Module):
    """A bottleneck around a shortcut; a stage's first block halves the height and the width."""

    def __init__(self, in_channels: int, out_channels: int, squeezed: int | None, first: bool) -> None:
        super().__init__()
        self.branch1_conv = nn.Conv3d(in_channels, out_channels, 1, STRIDE, bias=False) if first else None
        self.branch1_norm = nn.BatchNorm3d(out_channels) if in_channels != out_channels else None
        self.branch2 = Bottleneck(in_channels, out_channels, squeezed, STRIDE if first else (1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branch2(x)
        if self.branch1_conv is not None:
            x = self.branch1_conv(x)
        if self.branch1_norm is not None:
            x = self.branch1_norm(x)
        return F.relu(x + y)


class Stage(nn.Module):
    """Residual blocks, every second one with a gate."""

    def __init__(self, in_channels: int, out_channels: int, squeezed: int, blocks: int) -> None:
        super().__init__()
        self.res_blocks = nn.Sequential(
            *(
                ResidualBlock(
                    out_channels if block else in_channels, out_channels, None if block % 2 else squeezed, not block
                )
                for block in range(blocks)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.res_blocks(x)
        return y


class ProjectedPool(nn.Module):
    """Features [B,192,T,h,w] to 2048 at every place of the window, or at one when the window is everything."""

    def __init__(self, window: tuple[int, int, int] | None) -> None:
        super().__init__()
        inner = WIDTHS[-1] * 9 // 4
        self.window = window
        self.pre_conv = nn.Conv3d(WIDTHS[-1], inner, 1, bias=False)
        self.pre_norm = nn.BatchNorm3d(inner)
        self.post_conv = nn.Conv3d(inner, HEAD, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.pre_norm(self.pre_conv(x)))
        x = x.mean((2, 3, 4), keepdim=True) if self.window is None else F.avg_pool3d(x, self.window, 1)
        return F.relu(self.post_conv(x))


class Head(nn.Module):
    """Features to one logit a class: the mean of those at every place."""

    def __init__(self, classes: int, window: tuple[int, int, int] | None) -> None:
        super().__init__()
        self.pool = ProjectedPool(window)
        self.proj = nn.Linear(HEAD, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.proj(self.pool(x).movedim(1, -1))
        return y.mean((1, 2, 3))


class X3D(nn.Module):
    """Action classifier.

    State-dict names are those of pytorchvideo's `create_x3d`. Frames are RGB, (x / 255 - 0.45) / 0.225 in every
    channel, sampled and sized as `CLIPS` says, shorter side first and then the middle. Safe in half precision: every
    convolution before the head is followed by a BatchNorm.

    Args:
        depths: blocks of the four stages: `SHALLOW` (XS, S, M) or `DEEP` (L).
        classes: 400 in the published weights (Kinetics-400).
        clip: the head averages over windows of this size, and its answers over all places of the window, which
            matters when longer or larger clips are shown (the authors' tests show 182 pixels to XS and S, 256 to M).
            Without it the window is everything, which at a network's own clip is the same.
    """

    multiple_of = 1
    half_safe = True

    def __init__(self, depths: tuple[int, ...] = SHALLOW, classes: int = 400, clip: Clip | None = None) -> None:
        super().__init__()
        self.depths = depths
        self.classes = classes
        self.window = None if clip is None else (clip.frames, -(-clip.side // 32), -(-clip.side // 32))
        sizes = zip((STEM, *WIDTHS[:-1]), WIDTHS, SQUEEZED, depths, strict=True)
        self.blocks = nn.Sequential(Stem(), *(Stage(*size) for size in sizes), Head(classes, self.window))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised RGB [B,3,T,H,W] to logits [B,classes]; softmax is the caller's.

        Raises:
            ValueError: x is of another shape, or smaller than the clip that the head was made for.
        """
        if x.ndim != 5 or x.shape[1] != 3:
            raise ValueError(f"input must be [B,3,T,H,W], got {list(x.shape)}")
        frames, height, width = x.shape[2:]
        if self.window is not None and (frames < self.window[0] or -(-min(height, width) // 32) < self.window[1]):
            raise ValueError(
                f"clips must have at least {self.window[0]} frames and sides above {32 * (self.window[1] - 1)}, "
                f"got {frames} of {height}x{width}"
            )
        y: Tensor = self.blocks(x)
        return y


def detect(state: Mapping[str, Tensor]) -> X3D | None:
    """The network (weights not loaded) with the depths and classes of this state dict, or None if of another family."""
    classes = state.get("blocks.5.proj.weight")
    if classes is None or classes.ndim != 2 or "blocks.0.conv.conv_t.weight" not in state:
        return None
    depths = []
    for stage in range(1, 1 + len(WIDTHS)):
        depth = 0
        while f"blocks.{stage}.res_blocks.{depth}.branch2.conv_a.weight" in state:
            depth += 1
        depths.append(depth)
    return X3D(tuple(depths), classes.shape[0]) if all(depths) else None
