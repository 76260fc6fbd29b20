"""MattingNetwork: frames and states in, foreground, alpha and states out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from actors.networks.rvm.decoder import RecurrentDecoder, States
from actors.networks.rvm.lraspp import LRASPP
from actors.networks.rvm.mobilenetv3 import MobileNetV3LargeEncoder
from actors.networks.rvm.refiners import DeepGuidedFilter, FastGuidedFilter
from actors.networks.rvm.resnet import ResNet50Encoder

Variant = Literal["mobilenetv3", "resnet50"]
Refiner = Literal["deep_guided_filter", "fast_guided_filter"]

_HIDDEN = 16


class Projection(nn.Module):
    """A 1x1 convolution, under the name that the checkpoints give it."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class MattingNetwork(nn.Module):
    """Robust Video Matting.

    Args:
        variant: the encoder; `resnet50` is seven times larger and a little better.
        refiner: how a result at a reduced size is carried to full size; not used at ratio 1.
    """

    def __init__(self, variant: Variant = "mobilenetv3", refiner: Refiner = "deep_guided_filter") -> None:
        super().__init__()
        self.variant = variant
        self.backbone: MobileNetV3LargeEncoder | ResNet50Encoder
        if variant == "mobilenetv3":
            self.backbone = MobileNetV3LargeEncoder()
            aspp, outputs = 128, (80, 40, 32, _HIDDEN)
        else:
            self.backbone = ResNet50Encoder()
            aspp, outputs = 256, (128, 64, 32, _HIDDEN)
        c1, c2, c3, c4 = self.backbone.channels
        self.aspp = LRASPP(c4, aspp)
        self.decoder = RecurrentDecoder((c1, c2, c3, aspp), outputs)
        self.project_mat = Projection(_HIDDEN, 4)
        # The segmentation head of the training recipe: never called here, but part of every checkpoint.
        self.project_seg = Projection(_HIDDEN, 1)
        deep = refiner == "deep_guided_filter"
        self.refiner: DeepGuidedFilter | FastGuidedFilter = DeepGuidedFilter(_HIDDEN) if deep else FastGuidedFilter()

    def forward(
        self, src: Tensor, states: States | None = None, downsample_ratio: float = 1.0
    ) -> tuple[Tensor, Tensor, States]:
        """Mattes one frame of each clip, or clips of T frames; a clip in pieces gives what it gives whole.

        Args:
            src: RGB in 0..1, [B,3,H,W] or [B,T,3,H,W].
            states: what the previous frames of the same clips returned; None at a clip's start, after a cut, and
                when the size or the ratio changes.
            downsample_ratio: the size at which the network looks, relative to src, 0 < ratio <= 1.

        Returns:
            fgr: the people's own colours 0..1, decontaminated of the background, shaped like src.
            pha: alpha 0..1, shaped like src with one channel.
            states: r1..r4, [B,C,h,w] at 1/2, 1/4, 1/8, 1/16 of the reduced size.
        """
        clip = src.ndim == 5
        frames = src.shape[1] if clip else 1
        full = src.flatten(0, 1) if clip else src
        reduced = downsample_ratio != 1
        small = _reduce(full, downsample_ratio) if reduced else full

        f1, f2, f3, f4 = self.backbone(small)
        hid, states = self.decoder(small, (f1, f2, f3, self.aspp(f4)), states, frames)
        mat = self.project_mat(hid)
        residual, pha = mat[:, :3], mat[:, 3:]
        if reduced:
            residual, pha = self.refiner(full, small, residual, pha, hid)
        fgr = (residual + full).clamp(0, 1)
        pha = pha.clamp(0, 1)
        if clip:
            fgr, pha = (y.reshape(-1, frames, *y.shape[1:]) for y in (fgr, pha))
        return fgr, pha, states


def _reduce(src: Tensor, ratio: float) -> Tensor:
    return F.interpolate(
        src, scale_factor=ratio, mode="bilinear", align_corners=False, recompute_scale_factor=False
    )  # floor(side * ratio)


def build_rvm(state: Mapping[str, Tensor]) -> MattingNetwork | None:
    """The unfilled network that a state dict belongs to, or None when its keys are not Robust Video Matting's."""
    if "project_mat.conv.weight" not in state or "decoder.decode4.gru.ih.0.weight" not in state:
        return None
    if "backbone.features.0.0.weight" in state:
        variant: Variant = "mobilenetv3"
    elif "backbone.conv1.weight" in state:
        variant = "resnet50"
    else:
        return None
    deep = "refiner.box_filter.weight" in state
    return MattingNetwork(variant, "deep_guided_filter" if deep else "fast_guided_filter")
