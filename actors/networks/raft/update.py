"""One step of the iterative refinement: motion features, a convolutional GRU, and the flow's correction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actors.networks.raft.correlation import LEVELS


@dataclass(frozen=True, slots=True)
class Size:
    """What differs between the full and the small network.

    Attributes:
        radius: of the correlation windows.
        widths: encoder channels at 1/2, 1/4 and 1/8.
        features, hidden, context: channels of the feature maps, of the GRU's state, of the context.
        correlation, flow, motion: channels of the motion encoder's convolutions: two on the correlation windows (one
            in the small network), two on the flow, and one on both.
        head: channels inside the flow head.
        separable: the GRU works in rows, then in columns; and the flow is enlarged by learned weights.
    """

    radius: int
    widths: tuple[int, int, int]
    features: int
    hidden: int
    context: int
    correlation: tuple[int, ...]
    flow: tuple[int, int]
    motion: int
    head: int
    separable: bool


FULL = Size(4, (64, 96, 128), 256, 128, 128, (256, 192), (128, 64), 126, 256, separable=True)
SMALL = Size(3, (32, 64, 96), 128, 96, 64, (96,), (64, 32), 80, 128, separable=False)


class MotionEncoder(nn.Module):
    """Correlation windows and the flow they were taken at, both at 1/8, to motion + 2 channels."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.convc1 = nn.Conv2d(LEVELS * (2 * size.radius + 1) ** 2, size.correlation[0], 1)
        self.convc2: nn.Module | None = None
        if len(size.correlation) > 1:
            self.convc2 = nn.Conv2d(size.correlation[0], size.correlation[1], 3, padding=1)
        self.convf1 = nn.Conv2d(2, size.flow[0], 7, padding=3)
        self.convf2 = nn.Conv2d(size.flow[0], size.flow[1], 3, padding=1)
        self.conv = nn.Conv2d(size.correlation[-1] + size.flow[-1], size.motion, 3, padding=1)

    def forward(self, flow: Tensor, windows: Tensor) -> Tensor:
        c = F.relu(self.convc1(windows))
        if self.convc2 is not None:
            c = F.relu(self.convc2(c))
        f = F.relu(self.convf2(F.relu(self.convf1(flow))))
        return torch.cat([F.relu(self.conv(torch.cat([c, f], 1))), flow], 1)


def _gru(h: Tensor, x: Tensor, convz: nn.Module, convr: nn.Module, convq: nn.Module) -> Tensor:
    """The state after input x: gates z (how much is replaced) and r (how much is seen), candidate q."""
    hx = torch.cat([h, x], 1)
    z = torch.sigmoid(convz(hx))
    r = torch.sigmoid(convr(hx))
    q = torch.tanh(convq(torch.cat([r * h, x], 1)))
    return (1 - z) * h + z * q


class ConvGRU(nn.Module):
    """GRU with 3x3 convolutions; state [B,hidden,h,w], input [B,in_channels,h,w]."""

    def __init__(self, hidden: int, in_channels: int) -> None:
        super().__init__()
        self.convz = nn.Conv2d(hidden + in_channels, hidden, 3, padding=1)
        self.convr = nn.Conv2d(hidden + in_channels, hidden, 3, padding=1)
        self.convq = nn.Conv2d(hidden + in_channels, hidden, 3, padding=1)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return _gru(h, x, self.convz, self.convr, self.convq)


class SepConvGRU(nn.Module):
    """A GRU with 1x5 convolutions, then one with 5x1."""

    def __init__(self, hidden: int, in_channels: int) -> None:
        super().__init__()
        channels = hidden + in_channels
        self.convz1 = nn.Conv2d(channels, hidden, (1, 5), padding=(0, 2))
        self.convr1 = nn.Conv2d(channels, hidden, (1, 5), padding=(0, 2))
        self.convq1 = nn.Conv2d(channels, hidden, (1, 5), padding=(0, 2))
        self.convz2 = nn.Conv2d(channels, hidden, (5, 1), padding=(2, 0))
        self.convr2 = nn.Conv2d(channels, hidden, (5, 1), padding=(2, 0))
        self.convq2 = nn.Conv2d(channels, hidden, (5, 1), padding=(2, 0))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        h = _gru(h, x, self.convz1, self.convr1, self.convq1)
        return _gru(h, x, self.convz2, self.convr2, self.convq2)


class FlowHead(nn.Module):
    """The GRU's state to a correction of the flow [B,2,h,w] in pixels of 1/8."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(hidden, inner, 3, padding=1)
        self.conv2 = nn.Conv2d(inner, 2, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        y: Tensor = self.conv2(F.relu(self.conv1(h)))
        return y


class UpdateBlock(nn.Module):
    """State, context, correlation windows and flow to the next state and the flow's correction.

    Args:
        aggregator: (attention, motion features) -> what related pixels do, as many channels again (GMA).
    """

    def __init__(self, size: Size, aggregator: nn.Module | None = None) -> None:
        super().__init__()
        motion = (size.motion + 2) * (1 if aggregator is None else 2)
        gru = SepConvGRU if size.separable else ConvGRU
        self.encoder = MotionEncoder(size)
        self.gru = gru(size.hidden, size.context + motion)
        self.flow_head = FlowHead(size.hidden, size.head)
        self.mask: nn.Module | None = None
        if size.separable:
            self.mask = nn.Sequential(nn.Conv2d(size.hidden, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 9 * 64, 1))
        self.aggregator = aggregator

    def forward(
        self, state: Tensor, context: Tensor, windows: Tensor, flow: Tensor, attention: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        motion = self.encoder(flow, windows)
        inputs = [context, motion]
        if self.aggregator is not None:
            inputs.append(self.aggregator(attention, motion))
        state = self.gru(state, torch.cat(inputs, 1))
        return state, self.flow_head(state)

    def enlarge(self, flow: Tensor, state: Tensor) -> Tensor:
        """Flow at 1/8 in its pixels [B,2,h,w] float32 -> full size in full-size pixels [B,2,8h,8w]."""
        batch, _, h, w = flow.shape
        if self.mask is None:
            return 8 * F.interpolate(flow, size=(8 * h, 8 * w), mode="bilinear", align_corners=True)
        # Every fine pixel is a convex combination of the 3x3 coarse ones around its own.
        weights = torch.softmax(0.25 * self.mask(state).float().view(batch, 1, 9, 8, 8, h, w), 2)
        around = F.unfold(8 * flow, 3, padding=1).view(batch, 2, 9, 1, 1, h, w)
        fine = (weights * around).sum(2)  # [B, 2, 8, 8, h, w]
        return fine.permute(0, 1, 4, 2, 5, 3).reshape(batch, 2, 8 * h, 8 * w)
