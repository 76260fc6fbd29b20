"""Propagation of features along a video by deformable alignment (BasicVSR++; Chan et al., 2021, arXiv:2104.13371)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from actors.networks.deform import deform_conv2d
from actors.networks.inpaint.layers import framewise, leaky_convs, warp

#: Deformable groups and taps of every alignment here.
_GROUPS, _TAPS = 16, 9


class DeformableAlignment(nn.Module):
    """A modulated deformable 3x3 convolution whose offsets come from a condition, on top of the optical flow.

    Args:
        in_channels: of the features to align.
        out_channels: of the aligned features.
        condition: channels of the condition.
        reach: how many pixels an offset leads away from the flow at most.
    """

    def __init__(self, in_channels: int, out_channels: int, condition: int, reach: float) -> None:
        super().__init__()
        self.reach = reach
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.kaiming_uniform_(self.weight)
        self.conv_offset = leaky_convs(
            nn.Conv2d(condition, out_channels, 3, padding=1),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.Conv2d(out_channels, 3 * _TAPS * _GROUPS, 3, padding=1),
            slope=0.1,
        )

    def forward(self, x: Tensor, condition: Tensor, flows: Sequence[Tensor] = ()) -> Tensor:
        """x [B,C,H,W] and condition -> [B,O,H,W]; equal parts of C follow one flow [B,2,H,W] each."""
        steering = self.conv_offset(condition)
        offset = self.reach * torch.tanh(steering[:, : 2 * _TAPS * _GROUPS])
        if flows:
            taps = _TAPS * _GROUPS // len(flows)
            offset = offset + torch.cat([flow.flip(1).repeat(1, taps, 1, 1) for flow in flows], 1)  # (dx,dy) -> (dy,dx)
        mask = torch.sigmoid(steering[:, 2 * _TAPS * _GROUPS :])
        return deform_conv2d(x, offset, self.weight, self.bias, padding=1, mask=mask)


class SecondOrderPropagation(nn.Module):
    """Carries features backward, then forward through a clip; each frame takes from its two predecessors.

    Args:
        reach: of the alignment's offsets, in pixels of the features.
        guided: whether optical flow leads the alignment; else it looks around the same place.
    """

    def __init__(self, channels: int, reach: float, *, guided: bool) -> None:
        super().__init__()
        condition = 3 * channels + (4 if guided else 0)
        self.deform_align = nn.ModuleDict()
        self.backbone = nn.ModuleDict()
        for order, sweep in enumerate(("backward_", "forward_")):
            self.deform_align[sweep] = DeformableAlignment(2 * channels, channels, condition, reach)
            self.backbone[sweep] = leaky_convs(
                nn.Conv2d((2 + order) * channels, channels, 3, padding=1),
                nn.Conv2d(channels, channels, 3, padding=1),
                slope=0.1,
            )
        self.fusion = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor, flows: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Features of T frames [B,T,C,H,W] -> the same, completed by each other.

        Args:
            flows: of features, in their pixels, [B,T-1,2,H,W]: from each frame to the next one, and to the one before.
                Both sweeps count them from the first on, as the released weights were trained to have them: the
                backward sweep's first step (the last frame but one) uses the first flow.
        """
        frames = list(x.unbind(1))
        toward_next, toward_previous = (None, None) if flows is None else (flow.unbind(1) for flow in flows)
        back = self._sweep("backward_", [[frame] for frame in frames[::-1]], toward_next)[::-1]
        ahead = self._sweep("forward_", [list(pair) for pair in zip(frames, back, strict=True)], toward_previous)
        return framewise(self.fusion, torch.cat([torch.stack(back, 1), torch.stack(ahead, 1)], 2)) + x

    def _sweep(self, name: str, known: list[list[Tensor]], flows: Sequence[Tensor] | None) -> list[Tensor]:
        """`known`: of each frame in the sweep's order, its own features and what earlier sweeps made of them."""
        align, backbone = self.deform_align[name], self.backbone[name]
        nothing = torch.zeros_like(known[0][0])
        done: list[Tensor] = []
        for step, here in enumerate(known):
            carried = nothing
            if step:
                first, second = done[-1], done[-2] if step > 1 else nothing
                if flows is None:
                    carried = align(torch.cat([first, second], 1), torch.cat([first, here[0], second], 1))
                else:
                    flow1 = flows[step - 1]
                    flow2 = torch.zeros_like(flow1)
                    seen2 = nothing
                    if step > 1:
                        flow2 = flow1 + warp(flows[step - 2], flow1)
                        seen2 = warp(second, flow2)
                    condition = torch.cat([warp(first, flow1), here[0], seen2, flow1, flow2], 1)
                    carried = align(torch.cat([first, second], 1), condition, (flow1, flow2))
            done.append(carried + backbone(torch.cat([*here, carried], 1)))
        return done
