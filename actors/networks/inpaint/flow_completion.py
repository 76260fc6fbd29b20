"""Recurrent flow completion of ProPainter (Zhou et al., 2023, arXiv:2309.03897, section 3.1): optical flow in holes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from actors.networks.inpaint.alignment import SecondOrderPropagation
from actors.networks.inpaint.layers import UpConv, framewise
from actors.networks.sizes import check_sides

#: Flow from each frame to the next and from each frame to the one before, [B,T-1,2,H,W], (dx, dy) in pixels.
Flows = tuple[Tensor, Tensor]


class P3DBlock(nn.Module):
    """A convolution within each frame, then one over time that looks two frames back and ahead."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, (1, 3, 3), (1, stride, stride), (0, 1, 1)),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.conv2 = nn.Sequential(nn.Conv3d(out_channels, out_channels, (3, 1, 1), 1, (2, 0, 0), (2, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.conv1(x))
        return y


def _p3d_stage(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        P3DBlock(in_channels, in_channels, 1),
        nn.LeakyReLU(0.2, inplace=True),
        P3DBlock(in_channels, out_channels, 2),
        nn.LeakyReLU(0.2, inplace=True),
    )


def _up_stage(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=1),
        nn.LeakyReLU(0.2, inplace=True),
        UpConv(in_channels, out_channels),
        nn.LeakyReLU(0.2, inplace=True),
    )


class EdgeDetector(nn.Module):
    """Flow [N,2,H,W] -> edges of motion 0..1 [N,1,H,W]. Only training asks for them; every checkpoint has them."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.LeakyReLU(0.2, inplace=True))
        self.mid_layer_1 = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.LeakyReLU(0.2, inplace=True))
        self.mid_layer_2 = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1))
        self.out_layer = nn.Conv2d(16, 1, 1)

    def forward(self, flow: Tensor) -> Tensor:
        x = self.projection(flow)
        refined = self.mid_layer_2(self.mid_layer_1(x))
        return torch.sigmoid(self.out_layer(nn.functional.leaky_relu(x + refined, 0.01)))


class FlowCompletion(nn.Module):
    """Fills the holes of a clip's optical flow.

    Frames are not seen, only flow in pixels and masks (1 in holes, 0 elsewhere; the official tool dilates by 4).

    Attributes:
        multiple_of: both sides of the flow must be multiples of this.
        half_safe: the official tool runs it in float16.
    """

    multiple_of = 8
    half_safe = True

    def __init__(self) -> None:
        super().__init__()
        self.downsample = nn.Sequential(
            nn.Conv3d(3, 32, (1, 5, 5), (1, 2, 2), (0, 2, 2), padding_mode="replicate"), nn.LeakyReLU(0.2, inplace=True)
        )
        self.encoder1 = _p3d_stage(32, 64)  # 1/4
        self.encoder2 = _p3d_stage(64, 128)  # 1/8
        dilated: list[nn.Module] = []
        for d in (3, 2, 1):
            dilated += [nn.Conv3d(128, 128, (1, 3, 3), 1, (0, d, d), (1, d, d)), nn.LeakyReLU(0.2, inplace=True)]
        self.mid_dilation = nn.Sequential(*dilated)
        self.feat_prop_module = SecondOrderPropagation(128, reach=5, guided=False)
        self.decoder2 = _up_stage(128, 64)
        self.decoder1 = _up_stage(64, 32)
        self.upsample = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.LeakyReLU(0.2, inplace=True), UpConv(32, 2))
        self.edgeDetector = EdgeDetector()

    def forward(self, flows: Flows, masks: Tensor) -> Flows:
        """The flows as given outside of the masks and as predicted inside.

        Args:
            flows: as measured; what they have inside of the masks has no influence.
            masks: [B,T,1,H,W].

        Raises:
            ValueError: a side is no multiple of 8, or the number of masks does not fit.
        """
        ahead, back = self.predict(flows, masks)
        here, there = masks[:, :-1], masks[:, 1:]
        return ahead * here + flows[0] * (1 - here), back * there + flows[1] * (1 - there)

    def predict(self, flows: Flows, masks: Tensor) -> Flows:
        """What `forward` takes inside of the masks, everywhere. Arguments and errors are the same."""
        if masks.shape[1] != flows[0].shape[1] + 1:
            raise ValueError(f"{masks.shape[1]} masks do not belong to {flows[0].shape[1]} flows: one more is needed")
        check_sides(masks, self.multiple_of)
        # One direction after the other, the backward one in its own order of time: half the memory of both at once.
        ahead = self._predict(flows[0], masks[:, :-1])
        back = self._predict(flows[1].flip(1), masks[:, 1:].flip(1)).flip(1)
        return ahead, back

    def _predict(self, flow: Tensor, mask: Tensor) -> Tensor:
        """One direction: flow [B,T,2,H,W], mask [B,T,1,H,W] of the frame at which each flow starts."""
        half = self.downsample(torch.cat([flow * (1 - mask), mask], 2).transpose(1, 2))  # [B,32,T,H/2,W/2]
        quarter = self.encoder1(half)
        eighth = self.mid_dilation(self.encoder2(quarter))
        propagated = self.feat_prop_module(eighth.transpose(1, 2))  # [B,T,128,H/8,W/8]
        y = framewise(self.decoder2, propagated) + quarter.transpose(1, 2)
        return framewise(lambda z: self.upsample(self.decoder1(z)), y)


def detect(state: Mapping[str, Tensor]) -> FlowCompletion | None:
    """The network (weights not loaded) if the state dict is one of it; there is one size only."""
    ours = "mid_dilation.0.weight" in state and "feat_prop_module.deform_align.backward_.weight" in state
    return FlowCompletion() if ours else None
