"""Temporal focal transformer of E2FGVI (Li et al., 2022, arXiv:2204.02663)."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actors.networks.inpaint.layers import framewise
from actors.networks.inpaint.tokens import (
    TOKEN,
    WINDOW,
    FusionFeedForward,
    Size,
    attend,
    surroundings,
    window_places,
)

#: How far beyond its window a query looks, in tokens.
_REACH = (2, 4)
#: Added to products with pooled windows beyond the edge. It is not infinite: they keep a trace of weight.
_BEYOND = -100.0


class FocalAttention(nn.Module):
    """Each window attends, over all frames, to itself, to what surrounds it, and to the 5x9 windows around it, each
    pooled to one token."""

    valid_ind_rolled: Tensor
    heads = 4

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("valid_ind_rolled", surroundings(_REACH))
        self.qkv = nn.Linear(TOKEN, 3 * TOKEN)
        self.proj = nn.Linear(TOKEN, TOKEN)

    def forward(self, x: Tensor, pooled: Tensor) -> Tensor:
        """Tokens [B,T,h,w,512] in whole windows, the same pooled by windows [B,T,h/5,w/9,512] -> [B,T,h,w,512]."""
        batch, count, height, width, _ = x.shape
        own, shifted = window_places((height, width), _REACH, x.device)
        seen = torch.cat([own, shifted[:, self.valid_ind_rolled]], 1)  # [windows, 45+120]
        around, beyond = _pooled_places((pooled.shape[2], pooled.shape[3]), x.device)  # [windows, 45]

        query, key, value = self.qkv(x).flatten(2, 3).chunk(3, -1)  # [B,T,h*w,512]
        # A pooled window beyond the edge is a key and a value of zeros, without the bias of a projection.
        _, key_pooled, value_pooled = F.pad(self.qkv(pooled).flatten(2, 3), (0, 0, 0, 1)).chunk(3, -1)
        keys, values = (
            _by_window(torch.cat([full[:, :, seen], few[:, :, around]], 3))
            for full, few in ((key, key_pooled), (value, value_pooled))
        )
        bias = F.pad(beyond, (seen.shape[1], 0)).repeat(batch, count)[:, None, None]
        attended = attend(_by_window(query[:, :, own]), keys, values, self.heads, bias.to(x.dtype))
        out = torch.empty_like(query)
        out[:, :, own] = attended.view(batch, own.shape[0], count, own.shape[1], -1).transpose(1, 2)
        y: Tensor = self.proj(out.view(x.shape))
        return y


def _by_window(x: Tensor) -> Tensor:
    """[B,T,windows,K,C] -> [B*windows,T*K,C]."""
    return x.transpose(1, 2).flatten(2, 3).flatten(0, 1)


@lru_cache(maxsize=16)
def _pooled_places(size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which pooled windows lie around each of these windows [n,m], and what is added to products with them.

    Returns:
        around: [n*m, 45] indices; n*m stands for a window beyond the edge.
        beyond: [n*m, 45], 0 or `_BEYOND`.
    """
    rows, columns = WINDOW
    with torch.inference_mode(False):
        count = size[0] * size[1]
        places = torch.arange(count, device=device).view(size)
        framed = F.pad(places, (columns // 2, columns // 2, rows // 2, rows // 2), value=count)
        around = framed.unfold(0, rows, 1).unfold(1, columns, 1).reshape(count, rows * columns)
        return around, (around == count) * _BEYOND


class FocalTransformerBlock(nn.Module):
    """Attention and feed-forward, each normalised first and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.pool_layers = nn.ModuleList([nn.Linear(WINDOW[0] * WINDOW[1], 1)])
        self.norm1 = nn.LayerNorm(TOKEN)
        self.attn = FocalAttention()
        self.norm2 = nn.LayerNorm(TOKEN)
        self.mlp = FusionFeedForward(("conv1", "conv2"))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Tokens [B,T,h,w,512], h a multiple of 5 and w of 9, of features of this size [H,W]."""
        normal = self.norm1(x)
        windows = torch.unflatten(torch.unflatten(normal, 3, (-1, WINDOW[1])), 2, (-1, WINDOW[0]))  # [B,T,n,5,m,9,C]
        pooled = self.pool_layers[0](windows.permute(0, 1, 2, 4, 6, 3, 5).flatten(5)).squeeze(-1)
        x = x + self.attn(normal, pooled)
        return x + framewise(lambda tokens: self.mlp(tokens, size), self.norm2(x))
