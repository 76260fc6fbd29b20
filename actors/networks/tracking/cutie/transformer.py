"""Cutie's object transformer: sixteen queries an object, half of them for the object and half for what is around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actors.networks.tracking.cutie.layers import ChannelResBlock
from actors.networks.tracking.masks import sine_positions, soft_aggregation

QUERIES = 16
HEADS = 8
_BLOCKS = 3


class PositionalEncoding(nn.Module):
    """Sines of the place in the picture, [h,w,C]; the frequencies are part of the checkpoint.

    They are computed anew each time: two short vectors, cheaper than a cache that must notice new weights.
    """

    inv_freq: Tensor

    def __init__(self, channels: int, scale: float = 32.0, temperature: float = 128.0) -> None:
        super().__init__()
        self.scale = scale
        half = channels // 2
        self.register_buffer("inv_freq", temperature ** -(torch.arange(0, half, 2).float() / half))

    def forward(self, height: int, width: int) -> Tensor:
        frequencies = self.inv_freq.float()
        y = sine_positions(height, frequencies, self.scale)[:, None].expand(-1, width, -1)
        x = sine_positions(width, frequencies, self.scale)[None].expand(height, -1, -1)
        return torch.cat([x, y], -1).to(self.inv_freq.dtype)


class CrossAttention(nn.Module):
    """x [n,A,C] reads from memory [n,B,C]; positions are added to queries and keys, not to values."""

    def __init__(self, channels: int, *, norm: bool) -> None:
        super().__init__()
        self.cross_attn = nn.MultiheadAttention(channels, HEADS, batch_first=True)
        self.norm = nn.LayerNorm(channels) if norm else nn.Identity()

    def forward(
        self, x: Tensor, memory: Tensor, x_position: Tensor, memory_position: Tensor, blocked: Tensor | None = None
    ) -> Tensor:
        x = self.norm(x)
        y: Tensor = self.cross_attn(
            x + x_position, memory + memory_position, memory, attn_mask=blocked, need_weights=False
        )[0]
        return x + y


class SelfAttention(nn.Module):
    """Queries [n,A,C] of one object read each other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(channels, HEADS, batch_first=True)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        x = self.norm(x)
        y: Tensor = self.self_attn(x + position, x + position, x, need_weights=False)[0]
        return x + y


class FeedForward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, 8 * channels)
        self.linear2 = nn.Linear(8 * channels, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear2(F.relu(self.linear1(self.norm(x))))
        return x + y


class Block(nn.Module):
    """Queries read the pixels where they may, then each other; then the pixels read the queries."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.read_from_pixel = CrossAttention(channels, norm=True)
        self.self_attn = SelfAttention(channels)
        self.ffn = FeedForward(channels)
        self.read_from_query = CrossAttention(channels, norm=False)
        self.pixel_ffn = nn.ModuleDict({"conv": ChannelResBlock(channels)})

    def forward(
        self, query: Tensor, pixel: Tensor, query_position: Tensor, pixel_position: Tensor, blocked: Tensor
    ) -> tuple[Tensor, Tensor]:
        """query [n,Q,C] and pixel [n,C,h,w] with their positions [n,Q,C] and [n,h*w,C]."""
        places = pixel.flatten(2).transpose(1, 2)
        query = self.read_from_pixel(query, places, query_position, pixel_position, blocked)
        query = self.ffn(self.self_attn(query, query_position))
        places = self.read_from_query(places, query, pixel_position, query_position)
        return query, self.pixel_ffn["conv"](places.transpose(1, 2).reshape(pixel.shape))


class ObjectTransformer(nn.Module):
    """Refines what was recalled of each object with what is known of the object as a whole."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_init = nn.Embedding(QUERIES, channels)
        self.query_emb = nn.Embedding(QUERIES, channels)
        self.summary_to_query_init = nn.Linear(channels, channels)
        self.summary_to_query_emb = nn.Linear(channels, channels)
        self.pixel_init_proj = nn.Conv2d(channels, channels, 1)
        self.pixel_emb_proj = nn.Conv2d(channels, channels, 1)
        self.spatial_pe = PositionalEncoding(channels)
        self.blocks = nn.ModuleList(Block(channels) for _ in range(_BLOCKS))
        self.mask_pred = nn.ModuleList(nn.Sequential(nn.ReLU(), nn.Conv2d(channels, 1, 1)) for _ in range(_BLOCKS + 1))

    def forward(self, pixel: Tensor, summaries: Tensor) -> tuple[Tensor, list[Tensor]]:
        """pixel [n,C,h,w] and summaries [n,Q,C+1] of objects that exclude each other.

        Returns:
            The readout [n,C,h,w], and coarse logits [n,h,w] before the first block and after each.
        """
        means = (summaries[..., :-1] / (summaries[..., -1:] + 1e-4)).to(pixel.dtype)
        query = self.query_init.weight + self.summary_to_query_init(means)
        query_position = self.query_emb.weight + self.summary_to_query_emb(means)
        places = self.spatial_pe(*pixel.shape[-2:]).flatten(0, 1)
        pixel_position = places + self.pixel_emb_proj(pixel).flatten(2).transpose(1, 2)
        pixel = self.pixel_init_proj(pixel)
        logits = [self.mask_pred[0](pixel)[:, 0]]
        for block, predict in zip(self.blocks, self.mask_pred[1:], strict=True):
            query, pixel = block(query, pixel, query_position, pixel_position, _blocked(logits[-1]))
            logits.append(predict(pixel)[:, 0])
        return pixel, logits


def _blocked(logits: Tensor) -> Tensor:
    """bool [n*heads,Q,h*w]: the places at which an object's queries may not look.

    The first half looks where the object is more likely than anything else, the second where it is not; queries that
    would see nothing look everywhere.
    """
    aggregated = soft_aggregation(logits.sigmoid())
    foreground = (aggregated[1:] >= aggregated.amax(0)).flatten(1)
    blocked = torch.stack([~foreground, foreground], 1)
    blocked = blocked & ~blocked.all(-1, keepdim=True)
    return blocked.repeat_interleave(QUERIES // 2, 1).repeat_interleave(HEADS, 0)


class ObjectSummarizer(nn.Module):
    """A stored frame to each object's sums of features, by which it is known as a whole."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pos_enc = PositionalEncoding(channels)
        self.input_proj = nn.Linear(channels, channels)
        self.feature_pred = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels))
        self.weights_pred = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, QUERIES))

    def forward(self, seen: Tensor, value: Tensor) -> Tensor:
        """seen [n,h,w] in 0..1 and value [n,C,h,w]: float32 [n,Q,C+1], the last one the sum of weights.

        In float32, since sums grow throughout a video.
        """
        x = self.input_proj(value.permute(0, 2, 3, 1)) + self.pos_enc(*seen.shape[-2:])
        inside = torch.stack([seen, 1 - seen], -1).float().repeat_interleave(QUERIES // 2, -1)  # [n,h,w,Q]
        weights = (self.weights_pred(x).float().sigmoid() * inside).flatten(1, 2).transpose(1, 2)  # [n,Q,h*w]
        sums = weights @ self.feature_pred(x).float().flatten(1, 2)
        return torch.cat([sums, weights.sum(-1, keepdim=True)], -1)
