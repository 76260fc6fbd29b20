"""Swin Transformer (Liu et al., 2021, arXiv:2103.14030): attention within windows, shifted in every second block.

Maps are [B,H,W,C] throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Channels of one attention head, in every size of Swin.
HEAD = 32
PATCH = 4


class WindowAttention(nn.Module):
    """Attention among the pixels of a window, with a learnt bias for each relative position."""

    relative_position_index: Tensor

    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        self.heads = channels // HEAD
        side = 2 * window - 1
        self.relative_position_bias_table = nn.Parameter(torch.zeros(side * side, self.heads))
        # Of each pair of pixels of a window, the row in the table: (dy, dx) counted from (-window + 1, -window + 1).
        at = torch.arange(window)
        y, x = at.repeat_interleave(window), at.repeat(window)
        index = (y[:, None] - y + window - 1) * side + (x[:, None] - x + window - 1)
        self.register_buffer("relative_position_index", index)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, shift: tuple[Tensor, Tensor] | None) -> Tensor:
        """Windows [B*n,N,C] of N pixels; `shift` as of `shift_masks` if they were shifted."""
        count, pixels, channels = x.shape
        q, k, v = self.qkv(x).view(count, pixels, 3, self.heads, HEAD).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]  # [1,heads,N,N]
        if shift is not None:
            masks, kind = shift
            bias = (bias + masks[:, None].to(bias.dtype))[kind.repeat(count // len(kind))]  # [B*n,heads,N,N]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        y: Tensor = self.proj(x.transpose(1, 2).reshape(count, pixels, channels))
        return y


class MLP(nn.Module):
    """Two dense layers over each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class Block(nn.Module):
    """Attention within windows, then the dense layers; each added to its input."""

    def __init__(self, channels: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLP(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y

    def _attend(self, x: Tensor) -> Tensor:
        _, height, width, channels = x.shape
        # Zeros fill the last windows; pixels do attend to them, as in the official code.
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        down, across = x.shape[1] // self.window, x.shape[2] // self.window
        shift = None
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
            shift = shift_masks(down, across, self.window, self.shift, x.device)
        tiled = (-1, down, self.window, across, self.window, channels)
        windows = x.view(tiled).transpose(2, 3).reshape(-1, self.window**2, channels)
        windows = self.attn(windows, shift).view(-1, down, across, self.window, self.window, channels)
        x = windows.transpose(2, 3).reshape(x.shape)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """2x2 pixels to one of twice the channels; odd sides are filled with zeros."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = torch.cat((x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]), -1)
        y: Tensor = self.reduction(self.norm(x))
        return y


class Stage(nn.Module):
    """Blocks at one size, and the way to half of it."""

    downsample: PatchMerging | None

    def __init__(self, channels: int, depth: int, window: int, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(channels, window, i % 2 * (window // 2)) for i in range(depth))
        self.downsample = None if last else PatchMerging(channels)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class PatchEmbed(nn.Module):
    """4x4 pixels to one token."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, PATCH, PATCH)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] to [B,H/4,W/4,C], sides rounded up."""
        x = F.pad(x, (0, -x.shape[3] % PATCH, 0, -x.shape[2] % PATCH))
        y: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return y


class SwinTransformer(nn.Module):
    """The backbone, with a norm on each stage's output.

    Args:
        channels: of the first stage; each further one has twice as many.
        depths: blocks of each stage.
        window: its side in pixels of the stage.
    """

    def __init__(self, channels: int, depths: Sequence[int], window: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(channels)
        last = len(depths) - 1
        self.layers = nn.ModuleList(Stage(channels * 2**i, depth, window, i == last) for i, depth in enumerate(depths))
        for i in range(len(depths)):
            self.add_module(f"norm{i}", nn.LayerNorm(channels * 2**i))

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B,3,H,W] to the stages' features [B,C,h,w] at 1/4, 1/8, 1/16 and 1/32, sides rounded up."""
        x = self.patch_embed(x)
        features = []
        for i, stage in enumerate(self.layers):
            assert isinstance(stage, Stage)
            x = stage(x)
            features.append(self.get_submodule(f"norm{i}")(x).permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None:
                x = stage.downsample(x)
        return features


@lru_cache(maxsize=32)
def shift_masks(down: int, across: int, window: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What shifted windows must not see: after the shift the last ones hold pixels from both sides of the picture.

    Returns:
        Masks [4,N,N], 0 or minus infinity, of windows within the picture, in its last column, its last row and its
        corner; and which of the four each of the down * across windows has.
    """
    with torch.inference_mode(False):  # kept tensors must also serve callers that want gradients
        beyond = (torch.arange(window, device=device) >= window - shift).int()
        ids = torch.stack(
            [(row * beyond[:, None] * 2 + column * beyond).flatten() for row in (0, 1) for column in (0, 1)]
        )
        differ = ids[:, :, None] != ids[:, None, :]
        masks = torch.zeros(differ.shape, device=device).masked_fill_(differ, float("-inf"))
        kind = torch.zeros(down, across, dtype=torch.int64, device=device)
        kind[:, -1] += 1
        kind[-1] += 2
        return masks, kind.flatten()
