"""ProPainter's mask-guided sparse transformer (Zhou et al., 2023, arXiv:2309.03897, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

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
_REACH = (3, 5)
#: Sides of the areas that are pooled to one token each, of which every query sees all.
_POOL = 4
#: Each block sees every second frame only, even and odd blocks in turn.
_EVERY = 2


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of a batch as pairs (clip, window), [n,2]: those that touch a hole, and all others."""

    holes: Tensor
    rest: Tensor


def windows_with_holes(masks: Tensor) -> Windows:
    """Masks of tokens in the local frames, [B,L,h,w] -> which windows touch a hole in any frame."""
    height, width = masks.shape[2:]
    masks = F.pad(masks, (0, -width % WINDOW[1], 0, -height % WINDOW[0]))
    hole = F.max_pool2d(masks.amax(1, keepdim=True), WINDOW).flatten(1) > 0  # [B,windows]
    return Windows(hole.nonzero(), (~hole).nonzero())


class SparseWindowAttention(nn.Module):
    """Windows with a hole attend to themselves, to what surrounds them and to a pooled overview, in the block's half of
    the frames; all other windows to themselves in each frame alone."""

    valid_ind_rolled: Tensor
    heads = 4

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("valid_ind_rolled", surroundings(_REACH))
        self.key = nn.Linear(TOKEN, TOKEN)
        self.query = nn.Linear(TOKEN, TOKEN)
        self.value = nn.Linear(TOKEN, TOKEN)
        self.proj = nn.Linear(TOKEN, TOKEN)
        self.pool_layer = nn.Conv2d(TOKEN, TOKEN, _POOL, _POOL, groups=TOKEN)

    def forward(self, x: Tensor, windows: Windows, frames: slice) -> Tensor:
        """Tokens [B,T,h,w,512] -> the same shape; `frames` are those whose keys windows with a hole see."""
        height, width = x.shape[2:4]
        x = F.pad(x, (0, 0, 0, -width % WINDOW[1], 0, -height % WINDOW[0]))
        size = (x.shape[2], x.shape[3])
        own, shifted = window_places(size, _REACH, x.device)
        query, key, value = (layer(x).flatten(2, 3) for layer in (self.query, self.key, self.value))  # [B,T,h*w,C]
        out = torch.empty_like(query)

        if len(windows.holes):
            clip, window = windows.holes.unbind(1)
            at = (clip[:, None], slice(None), own[window])  # indexes [B,T,h*w,C] to [n,45,T,C]
            seen = torch.cat([own, shifted[:, self.valid_ind_rolled]], 1)[window]
            overview = self._pooled(x[:, frames])  # [B,T',p,C]
            keys, values = (
                torch.cat(
                    [full[:, frames][clip[:, None], :, seen].flatten(1, 2), layer(overview)[clip].flatten(1, 2)], 1
                )
                for full, layer in ((key, self.key), (value, self.value))
            )
            asked = query[at]
            out[at] = attend(asked.flatten(1, 2), keys, values, self.heads).view_as(asked)

        if len(windows.rest):
            clip, window = windows.rest.unbind(1)
            at = (clip[:, None], slice(None), own[window])
            q, k, v = (full[at].transpose(1, 2).flatten(0, 1) for full in (query, key, value))  # [n*T,45,C]
            each = attend(q, k, v, self.heads)
            out[at] = torch.unflatten(each, 0, (len(clip), -1)).transpose(1, 2)

        y: Tensor = self.proj(torch.unflatten(out, 2, size)[:, :, :height, :width])
        return y

    def _pooled(self, x: Tensor) -> Tensor:
        return framewise(self.pool_layer, x.permute(0, 1, 4, 2, 3)).flatten(3).transpose(2, 3)


class SparseTransformerBlock(nn.Module):
    """Attention and feed-forward, each normalised first and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = SparseWindowAttention()
        self.norm1 = nn.LayerNorm(TOKEN)
        self.norm2 = nn.LayerNorm(TOKEN)
        self.mlp = FusionFeedForward(("fc1", "fc2"))

    def forward(self, x: Tensor, size: Size, windows: Windows, frames: slice) -> Tensor:
        """Tokens [B,T,h,w,512] of features of this size [H,W]."""
        x = x + self.attention(self.norm1(x), windows, frames)
        return x + framewise(lambda tokens: self.mlp(tokens, size), self.norm2(x))


class SparseTransformer(nn.Module):
    """Eight blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Sequential(*(SparseTransformerBlock() for _ in range(8)))

    def forward(self, x: Tensor, size: Size, windows: Windows) -> Tensor:
        for number, block in enumerate(self.transformer):
            x = block(x, size, windows, slice(number % _EVERY, None, _EVERY))
        return x
