"""E2FGVI (Li et al., 2022, arXiv:2204.02663): video inpainting, flow, propagation and transformer trained as one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actors.networks.inpaint.alignment import SecondOrderPropagation
from actors.networks.inpaint.flow_completion import Flows
from actors.networks.inpaint.focal import FocalTransformerBlock
from actors.networks.inpaint.layers import GroupedSkipEncoder, frame_decoder, framewise
from actors.networks.inpaint.spynet import SPyNet
from actors.networks.inpaint.tokens import SoftComposition, SoftSplit
from actors.networks.sizes import check_sides

_FEATURES = 128
#: Height and width of features for which the base model has a bias for every place.
_BASE_FEATURES = (60, 108)


class E2FGVI(nn.Module):
    """Frames with holes -> frames without.

    Frames are RGB in -1..1 with their holes set to zero (grey). The official tool gives each call 11 neighbouring
    (local) frames and every tenth of the others as references; it brings frames to a fitting size by mirroring them
    over the lower and right edges.

    Args:
        high_quality: E2FGVI-HQ, which takes any fitting size; else the base model for 432x240 only.

    Attributes:
        multiple_of: the height must be a multiple of the first, the width of the second: whole windows of tokens.
        half_safe: no half-precision run of the official code is known.
    """

    multiple_of = (60, 108)
    half_safe = False

    def __init__(self, high_quality: bool = True) -> None:
        super().__init__()
        self.high_quality = high_quality
        self.encoder = GroupedSkipEncoder(3)
        self.decoder = frame_decoder(_FEATURES)
        self.feat_prop_module = SecondOrderPropagation(_FEATURES, reach=10, guided=True)
        self.ss = SoftSplit(_FEATURES)
        self.sc = SoftComposition(_FEATURES, None if high_quality else _BASE_FEATURES)
        self.transformer = nn.Sequential(*(FocalTransformerBlock() for _ in range(8)))
        self.update_spynet = SPyNet()

    def forward(self, frames: Tensor, local: int) -> Tensor:
        """Inpaints T frames, of which the first `local` follow each other and the others are references.

        Args:
            frames: [B,T,3,H,W].
            local: 1..T.

        Returns:
            [B,T,3,H,W] in -1..1; only the holes are to be taken from it.

        Raises:
            ValueError: the sides are not those the model takes, or `local` is outside 1..T.
        """
        self._check(frames, local)
        x = framewise(self.encoder, frames)
        size = (x.shape[3], x.shape[4])
        x = torch.cat([self.feat_prop_module(x[:, :local], self.flows(frames[:, :local])), x[:, local:]], 1)
        tokens = framewise(self.ss, x)
        for block in self.transformer:
            tokens = block(tokens, size)
        x = x + framewise(lambda each: self.sc(each, size), tokens)
        return torch.tanh(framewise(self.decoder, x))

    def flows(self, frames: Tensor) -> Flows:
        """Completed flow between frames [B,T,3,H,W] at a quarter of their size: to the next ones, to those before."""
        small = framewise(_quarter, (frames + 1) / 2)
        here, there = small[:, :-1], small[:, 1:]
        if not here.shape[1]:
            return here[:, :, :2], here[:, :, :2]
        both = framewise(
            lambda pair: self.update_spynet(pair[:, :3], pair[:, 3:]),
            torch.cat([torch.cat([here, there], 2), torch.cat([there, here], 2)]),
        )
        ahead, back = both.chunk(2)
        return ahead, back

    def _check(self, frames: Tensor, local: int) -> None:
        if self.high_quality:
            check_sides(frames, self.multiple_of)
        elif frames.shape[-2:] != tuple(4 * side for side in _BASE_FEATURES):
            raise ValueError(f"the base model takes 432x240 only, got {frames.shape[-1]}x{frames.shape[-2]}")
        if not 1 <= local <= frames.shape[1]:
            raise ValueError(f"{local} local frames of {frames.shape[1]}")


def _quarter(frames: Tensor) -> Tensor:
    size = (frames.shape[2] // 4, frames.shape[3] // 4)
    return F.interpolate(frames, size, mode="bilinear", align_corners=True)


def detect(state: Mapping[str, Tensor]) -> E2FGVI | None:
    """The network (weights not loaded), HQ or base as the state dict shows, or None if it is of another family."""
    if "transformer.0.attn.qkv.weight" not in state or "update_spynet.mean" not in state:
        return None
    return E2FGVI(high_quality="sc.bias" not in state)
