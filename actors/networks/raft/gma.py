"""GMA: RAFT whose pixels also see the motion of the pixels that look like them, so that hidden ones move along."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from actors.networks.raft.flow import RAFT
from actors.networks.raft.update import FULL

#: The table of relative positions in the checkpoints reaches this many pixels of 1/8.
POSITIONS = 160


class RelativePositions(nn.Module):
    """The position embedding of the paper's ablations: never called here, but part of every checkpoint."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rel_height = nn.Embedding(2 * POSITIONS - 1, channels)
        self.rel_width = nn.Embedding(2 * POSITIONS - 1, channels)
        steps = torch.arange(POSITIONS)
        self.register_buffer("rel_ind", steps[None] - steps[:, None] + POSITIONS - 1)


class Attention(nn.Module):
    """How much each pixel of the context [B,C,h,w] resembles every other: [B,h*w,h*w], rows sum to one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_qk = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.pos_emb = RelativePositions(channels)

    def forward(self, context: Tensor) -> Tensor:
        q, k = self.to_qk(context).flatten(2).chunk(2, 1)
        return torch.softmax((q * q.shape[1] ** -0.5).transpose(1, 2) @ k, -1)


class Aggregate(nn.Module):
    """Motion features [B,C,h,w] plus those of the pixels that the attention relates."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_v = nn.Conv2d(channels, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, attention: Tensor, motion: Tensor) -> Tensor:
        values: Tensor = self.to_v(motion).flatten(2).transpose(1, 2)
        related = (attention @ values).transpose(1, 2).reshape(motion.shape)
        return motion + self.gamma * related


class GMA(RAFT):
    """RAFT with global motion aggregation; frames, sizes and call are RAFT's.

    State-dict names are those of zacjiang/GMA's `RAFTGMA` with one head that compares contents only, as in its
    published checkpoints.
    """

    def __init__(self) -> None:
        super().__init__(FULL, Attention(FULL.context), Aggregate(FULL.motion + 2))


def detect_gma(state: Mapping[str, Tensor]) -> GMA | None:
    """The network (weights not loaded), or None if the state dict is of another family."""
    if "att.to_qk.weight" not in state or "fnet.conv1.weight" not in state:
        return None
    return GMA()
