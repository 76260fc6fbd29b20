"""STTN (Zeng et al., 2020, arXiv:2007.10247): video inpainting by attention between patches of several sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor, nn

from actors.networks.inpaint.layers import frame_decoder, framewise

_FEATURES = 256
#: Height and width of frames, of features, and of the patches of each quarter of the channels. The largest patch is
#: the whole frame.
_FRAME = (240, 432)
_SIZE = (60, 108)
_PATCHES = ((60, 108), (20, 36), (10, 18), (5, 9))


class PatchAttention(nn.Module):
    """Every patch attends to all patches of its size in all frames, each quarter of the channels at another size."""

    def __init__(self) -> None:
        super().__init__()
        self.query_embedding = nn.Conv2d(_FEATURES, _FEATURES, 1)
        self.value_embedding = nn.Conv2d(_FEATURES, _FEATURES, 1)
        self.key_embedding = nn.Conv2d(_FEATURES, _FEATURES, 1)
        self.output_linear = nn.Sequential(
            nn.Conv2d(_FEATURES, _FEATURES, 3, padding=1), nn.LeakyReLU(0.2, inplace=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,256,60,108] -> the same shape."""
        embeddings = (self.query_embedding, self.key_embedding, self.value_embedding)
        parts = (framewise(embedding, x).chunk(len(_PATCHES), 2) for embedding in embeddings)
        heads = []
        for patch, *part in zip(_PATCHES, *parts, strict=True):
            query, key, value = (_patches(each, patch) for each in part)
            # Scaled before the product: one of half a million terms would leave the range of halves.
            products = (query / sqrt(query.shape[2])) @ key.transpose(1, 2)
            heads.append(_whole(products.softmax(2) @ value, patch, x.shape[1]))
        return framewise(self.output_linear, torch.cat(heads, 2))


def _patches(x: Tensor, patch: tuple[int, int]) -> Tensor:
    """[B,T,C,60,108] -> [B, T*rows*columns, C*height*width] patches of this height and width."""
    rows, columns = (side // part for side, part in zip(_SIZE, patch, strict=True))
    split = x.reshape(*x.shape[:3], rows, patch[0], columns, patch[1])
    return split.permute(0, 1, 3, 5, 2, 4, 6).reshape(x.shape[0], x.shape[1] * rows * columns, -1)


def _whole(patches: Tensor, patch: tuple[int, int], count: int) -> Tensor:
    """What `_patches` made of `count` frames -> [B,T,C,60,108]."""
    rows, columns = (side // part for side, part in zip(_SIZE, patch, strict=True))
    split = patches.view(patches.shape[0], count, rows, columns, -1, *patch)
    return split.permute(0, 1, 4, 2, 5, 3, 6).reshape(patches.shape[0], count, -1, *_SIZE)


class _FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(_FEATURES, _FEATURES, 3, padding=2, dilation=2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(_FEATURES, _FEATURES, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return framewise(self.conv, x)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = PatchAttention()
        self.feed_forward = _FeedForward()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        y: Tensor = x + self.feed_forward(x)
        return y


class STTN(nn.Module):
    """Frames with holes -> frames without.

    Frames are RGB in -1..1 with their holes set to zero (grey), 432x240. The official tool dilates masks by 4 and gives
    each call 11 neighbouring frames and every tenth of the others. Masks are no input: the official attention means to
    leave out patches that are mostly hole but discards its result, and the weights were trained so.

    Attributes:
        size: height and width, the only ones: the patch sizes are fixed.
        half_safe: no half-precision run of the official code is known.
    """

    size = _FRAME
    half_safe = False

    def __init__(self, blocks: int = 8) -> None:
        super().__init__()
        self.transformer = nn.Sequential(*(_Block() for _ in range(blocks)))
        layers: list[nn.Module] = []
        for in_channels, out_channels, stride in ((3, 64, 2), (64, 64, 1), (64, 128, 2), (128, _FEATURES, 1)):
            layers += [nn.Conv2d(in_channels, out_channels, 3, stride, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        self.encoder = nn.Sequential(*layers)
        self.decoder = frame_decoder(_FEATURES)

    def forward(self, frames: Tensor, count: int | None = None) -> Tensor:
        """Inpaints the first `count` of T frames, all of them if None; the others are references.

        Args:
            frames: [B,T,3,240,432].

        Returns:
            [B,count,3,240,432] in -1..1; only the holes are to be taken from it.

        Raises:
            ValueError: the frames have another size.
        """
        return self.inpaint(self.encode(frames), count)

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [B,T,3,240,432] -> features [B,T,256,60,108], which a frame keeps in every call it takes part in."""
        if frames.shape[-2:] != self.size:
            raise ValueError(f"the frames must be 432x240, got {frames.shape[-1]}x{frames.shape[-2]}")
        return framewise(self.encoder, frames)

    def inpaint(self, features: Tensor, count: int | None = None) -> Tensor:
        """`forward` from features on."""
        return torch.tanh(framewise(self.decoder, self.transformer(features)[:, :count]))


def detect(state: Mapping[str, Tensor]) -> STTN | None:
    """The network (weights not loaded) with the state dict's number of blocks, or None if it is of another family."""
    pattern = re.compile(r"transformer\.[0-9]+\.attention\.query_embedding\.weight")
    blocks = sum(1 for key in state if pattern.fullmatch(key))
    return STTN(blocks) if blocks and "encoder.0.weight" in state else None
