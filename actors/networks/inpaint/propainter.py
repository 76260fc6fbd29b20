"""ProPainter (Zhou et al., 2023, arXiv:2309.03897): video inpainting along completed optical flow."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actors.networks.inpaint.alignment import DeformableAlignment
from actors.networks.inpaint.flow_completion import Flows
from actors.networks.inpaint.layers import GroupedSkipEncoder, frame_decoder, framewise, leaky_convs, warp
from actors.networks.inpaint.sparse import SparseTransformer, windows_with_holes
from actors.networks.inpaint.tokens import SoftComposition, SoftSplit
from actors.networks.sizes import check_sides

_FEATURES = 128


def consistent(flow: Tensor, opposite: Tensor) -> Tensor:
    """1 where following `flow` and coming back by `opposite` ends near the start, 0 elsewhere.

    Args:
        flow: [N,2,H,W] from one frame to another.
        opposite: [N,2,H,W] from the other to the one.

    Returns:
        [N,1,H,W] in flow's dtype.
    """
    wide = torch.promote_types(flow.dtype, torch.float32)  # the square of 256 pixels is beyond a half
    there = flow.to(wide)
    returned = warp(opposite.to(wide), there)
    apart = (there + returned).square().sum(1, keepdim=True)
    length = there.square().sum(1, keepdim=True) + returned.square().sum(1, keepdim=True)
    return (apart < 0.01 * length + 0.5).to(flow.dtype)


def propagate_pixels(frames: Tensor, flows: Flows, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Fills holes with the very pixels that other frames show there: backward through the clip, then forward.

    Args:
        frames: [B,T,C,H,W], holes zero.
        flows: completed.
        masks: [B,T,1,H,W], 1 in holes.

    Returns:
        frames, only meaningful inside of the masks; and masks of what is still missing.
    """
    sound = _both_ways_consistent(flows)
    now, holes = list(frames.unbind(1)), list(masks.unbind(1))
    for backward in (True, False):
        order = range(len(now))[::-1] if backward else range(len(now))
        for step in range(1, len(now)):
            here, source = order[step], order[step - 1]
            flow, valid = (pair[0 if backward else 1][:, min(here, source)] for pair in (flows, sound))
            known = valid * (1 - _binary(warp(holes[source], flow)))
            take = _binary(holes[here] * known)
            now[here] = take * warp(now[source], flow, "nearest") + (1 - take) * now[here]
            holes[here] = _binary(holes[here] * (1 - known))
    return torch.stack(now, 1), torch.stack(holes, 1)


def _both_ways_consistent(flows: Flows) -> Flows:
    ahead, back = (flow.flatten(0, 1) for flow in flows)
    sound = torch.stack((consistent(ahead, back), consistent(back, ahead)))
    ahead, back = torch.unflatten(sound, 1, flows[0].shape[:2])
    return ahead, back


def _binary(mask: Tensor) -> Tensor:
    """Bilinear samples of a mask count as hole from a tenth on."""
    return (mask > 0.1).to(mask.dtype)


class FeaturePropagation(nn.Module):
    """Carries features backward, then forward through a clip; the flow's failures and the masks are told."""

    def __init__(self) -> None:
        super().__init__()
        self.deform_align = nn.ModuleDict()
        self.backbone = nn.ModuleDict()
        for sweep in ("backward_1", "forward_1"):
            self.deform_align[sweep] = DeformableAlignment(_FEATURES, _FEATURES, 2 * _FEATURES + 5, reach=3)
            self.backbone[sweep] = self._mix()
        self.fuse = self._mix()

    @staticmethod
    def _mix() -> nn.Sequential:
        """Two sets of features and two masks -> one set."""
        return leaky_convs(
            nn.Conv2d(2 * _FEATURES + 2, _FEATURES, 3, padding=1), nn.Conv2d(_FEATURES, _FEATURES, 3, padding=1)
        )

    def forward(self, x: Tensor, flows: Flows, masks: Tensor) -> Tensor:
        """Features of T frames [B,T,128,H,W], flows in their pixels, masks [B,T,2,H,W] -> features completed."""
        sound = _both_ways_consistent(flows)
        back = self._sweep("backward_1", x.flip(1), flows[0].flip(1), sound[0].flip(1), masks.flip(1)).flip(1)
        ahead = self._sweep("forward_1", back, flows[1], sound[1], masks)
        return framewise(self.fuse, torch.cat([back, ahead, masks], 2)) + x

    def _sweep(self, name: str, x: Tensor, flows: Tensor, sound: Tensor, masks: Tensor) -> Tensor:
        """All in the sweep's order of time; `flows` lead from each frame but the first to its predecessor."""
        align, backbone = self.deform_align[name], self.backbone[name]
        done: list[Tensor] = []
        for step, (here, mask) in enumerate(zip(x.unbind(1), masks.unbind(1), strict=True)):
            carried = here
            if step:
                flow, valid = flows[:, step - 1], sound[:, step - 1]
                condition = torch.cat([here, warp(done[-1], flow), flow, valid, mask], 1)
                carried = align(done[-1], condition, (flow,))
            done.append(carried + backbone(torch.cat([here, carried, mask], 1)))
        return torch.stack(done, 1)


class ProPainter(nn.Module):
    """The generator: frames with their holes filled from pixels as far as possible -> frames without holes.

    Frames are RGB in -1..1. The official tool sizes them to multiples of 8, dilates masks by 4, and gives each call 11
    neighbouring (local) frames and every tenth of the others as references.

    Attributes:
        multiple_of: both sides must be multiples of this.
        half_safe: the official tool runs it in float16; sample positions stay in float32 here.
    """

    multiple_of = 4
    half_safe = True

    def __init__(self) -> None:
        super().__init__()
        self.encoder = GroupedSkipEncoder(5)
        self.decoder = frame_decoder(_FEATURES)
        self.ss = SoftSplit(_FEATURES)
        self.sc = SoftComposition(_FEATURES)
        self.feat_prop_module = FeaturePropagation()
        self.transformers = SparseTransformer()

    def forward(self, frames: Tensor, flows: Flows, masks: Tensor, missing: Tensor, local: int) -> Tensor:
        """Inpaints the first `local` of T frames; the others are references.

        Args:
            frames: [B,T,3,H,W]; local ones with their holes filled by `propagate_pixels`, references with holes zero.
            flows: between the local frames, completed, [B,local-1,2,H,W].
            masks: [B,T,1,H,W], 1 in holes.
            missing: masks of what `propagate_pixels` left; of references the same as `masks`.
            local: 1..T.

        Returns:
            [B,local,3,H,W] in -1..1; only the holes are to be taken from it.

        Raises:
            ValueError: a side is no multiple of 4, there is one frame only, or the number of flows does not fit.
        """
        count = frames.shape[1]
        check_sides(frames, self.multiple_of)
        if count < 2:
            raise ValueError("at least two frames are needed: every second block sees the second, fourth, ... only")
        if not 1 <= local <= count or flows[0].shape[1] != local - 1:
            raise ValueError(f"{flows[0].shape[1]} flows do not belong to {local} local frames of {count}")

        x = framewise(self.encoder, torch.cat([frames, masks, missing], 2))
        size = (x.shape[3], x.shape[4])
        small = torch.cat([masks, missing], 2)[:, :local, :, ::4, ::4]
        nearby = self.feat_prop_module(x[:, :local], (_quarter(flows[0]), _quarter(flows[1])), small)
        x = torch.cat([nearby, x[:, local:]], 1)

        holes = F.max_pool2d(small[:, :, 0], 7, 3, 3)  # of each token's patch
        tokens = self.transformers(framewise(self.ss, x), size, windows_with_holes(holes))
        x = x + framewise(lambda each: self.sc(each, size), tokens)
        return torch.tanh(framewise(self.decoder, x[:, :local]))


def _quarter(flow: Tensor) -> Tensor:
    """Flow [B,T,2,H,W] of frames as flow of features at a quarter of their size."""
    if not flow.shape[1]:
        return flow[..., ::4, ::4]
    return framewise(lambda x: F.interpolate(x, scale_factor=0.25, mode="bilinear", align_corners=False), flow) / 4


def detect(state: Mapping[str, Tensor]) -> ProPainter | None:
    """The network (weights not loaded) if the state dict is one of it; there is one size only."""
    return ProPainter() if "transformers.transformer.0.attention.pool_layer.weight" in state else None
