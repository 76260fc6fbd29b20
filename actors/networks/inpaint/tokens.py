"""Tokens of overlapping 7x7 patches and their windows, shared by the inpainting transformers (FuseFormer's soft split
and composition; Liu et al., 2021, arXiv:2109.02974).

A token covers 7x7 features, every third in each direction: features [H,W] make [ceil(H/3), ceil(W/3)] tokens. Splitting
is therefore a strided convolution and composing the transposed one; both are done so, which never holds the patches,
49 / 9 times the features.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Channels of a token.
TOKEN = 512
#: Patch sides in features, their step, and the border that is added.
_PATCH, _STEP, _BORDER = 7, 3, 3
#: Window sides in tokens.
WINDOW = (5, 9)

Size = tuple[int, int]


class SoftSplit(nn.Module):
    """Features [N,C,H,W] -> tokens [N,h,w,512]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(channels * _PATCH**2, TOKEN)

    def forward(self, x: Tensor) -> Tensor:
        return _split(x, self.embedding)


class SoftComposition(nn.Module):
    """Tokens [N,h,w,512] -> features [N,C,H,W], overlapping patches added up.

    Args:
        fixed: the only size [H,W] there is, which then has a bias for every place; None is any size, and a convolution.
    """

    def __init__(self, channels: int, fixed: Size | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.bias = None if fixed is None else nn.Parameter(torch.zeros(channels, *fixed))
        self.embedding = nn.Linear(TOKEN, channels * _PATCH**2)
        self.bias_conv = nn.Conv2d(channels, channels, 3, padding=1) if fixed is None else None

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        """`size`: [H,W] of the features."""
        y = _compose(tokens, self.embedding, self.channels, size)
        if self.bias_conv is not None:
            y = self.bias_conv(y)
        return y if self.bias is None else y + self.bias


class FusionFeedForward(nn.ModuleDict):
    """The feed-forward half of a block, in which overlapping tokens mix: its 1960 hidden values are 40 channels of 7x7.

    Args:
        names: what the checkpoint calls the two layers.
    """

    channels = 40

    def __init__(self, names: tuple[str, str]) -> None:
        hidden = self.channels * _PATCH**2
        widen = nn.Linear(TOKEN, hidden)
        narrow = nn.Linear(hidden, TOKEN)
        super().__init__({names[0]: nn.Sequential(widen), names[1]: nn.Sequential(nn.GELU(), narrow)})

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        """Tokens [N,h,w,512] of features of this size [H,W] -> the same shape."""
        widen, narrow = (m for m in self.modules() if isinstance(m, nn.Linear))
        hidden = _compose(tokens, widen, self.channels, size) / _cover(size, tokens.device).to(tokens.dtype)
        # The activation before the split instead of after it: each hidden value is then activated once.
        return _split(F.gelu(hidden), narrow)


def _split(x: Tensor, embedding: nn.Linear) -> Tensor:
    weight = embedding.weight.view(embedding.out_features, x.shape[1], _PATCH, _PATCH)
    return F.conv2d(x, weight, embedding.bias, _STEP, _BORDER).permute(0, 2, 3, 1)


def _compose(tokens: Tensor, embedding: nn.Linear, channels: int, size: Size) -> Tensor:
    weight = embedding.weight.view(channels, _PATCH, _PATCH, embedding.in_features).permute(3, 0, 1, 2)
    once = tokens.new_ones(1, 1, *tokens.shape[1:3])
    return _add_up(tokens.permute(0, 3, 1, 2), weight, size) + _add_up(
        once, embedding.bias.view(1, channels, _PATCH, _PATCH), size
    )


def _add_up(x: Tensor, weight: Tensor, size: Size) -> Tensor:
    spare = [side - (_STEP * (count - 1) + 1) for side, count in zip(size, x.shape[2:], strict=True)]
    return F.conv_transpose2d(x, weight, None, _STEP, _BORDER, spare)


@lru_cache(maxsize=16)
def _cover(size: Size, device: torch.device) -> Tensor:
    """How many patches cover each feature, [1,1,H,W]."""
    with torch.inference_mode(False):
        once = torch.ones(1, 1, *(-(-side // _STEP) for side in size), device=device)
        return _add_up(once, torch.ones(1, 1, _PATCH, _PATCH, device=device), size)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Attention of Q tokens to K tokens in each of N windows: [N,Q,C], [N,K,C], [N,K,C] -> [N,Q,C].

    Args:
        bias: added to the scaled products, [N,1,1,K].
    """
    q, k, v = (torch.unflatten(x, 2, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return y.transpose(1, 2).flatten(2)


def surroundings(reach: Size) -> Tensor:
    """Which of four shifted copies of a window's places lie outside the window: int64 indices into [4 x 45].

    The copies are shifted by `reach` tokens (rows, columns) down right, down left, up right and up left, in the order
    of `window_places`.
    """
    # Looked at on the CPU: a network that is built on the meta device, without its numbers, has these.
    steps = (torch.arange(side, device="cpu") for side in WINDOW)
    rows, columns = torch.meshgrid(*steps, indexing="ij")
    outside = []
    for down, right in _shifts(reach):
        row, column = rows + down, columns + right
        inside = (row >= 0) & (row < WINDOW[0]) & (column >= 0) & (column < WINDOW[1])
        outside.append(~inside.flatten())
    return torch.cat(outside).nonzero().view(-1).to(torch.get_default_device())


@lru_cache(maxsize=16)
def window_places(size: Size, reach: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the tokens of each window lie in the flattened token map [h*w]; `size` is in whole windows.

    Returns:
        own: [windows, 45].
        shifted: [windows, 4*45], the same shifted as in `surroundings`; over the map's edge it goes on at the other.
    """
    with torch.inference_mode(False):
        places = torch.arange(size[0] * size[1], device=device).view(size)
        shifted = [_windows(places.roll((-down, -right), (0, 1))) for down, right in _shifts(reach)]
        return _windows(places), torch.cat(shifted, 1)


def _windows(places: Tensor) -> Tensor:
    rows, columns = WINDOW
    split = places.view(places.shape[0] // rows, rows, places.shape[1] // columns, columns)
    return split.transpose(1, 2).reshape(-1, rows * columns)


def _shifts(reach: Size) -> tuple[Size, ...]:
    rows, columns = reach
    return (rows, columns), (rows, -columns), (-rows, columns), (-rows, -columns)
