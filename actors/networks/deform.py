"""Deformable convolution (Dai et al., 2017, arXiv:1703.06211; with modulation, Zhu et al., 2018, arXiv:1811.11168)."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Size = int | tuple[int, int]

#: Sampled values held at once in the torch version: 2**26 floats are 256 MB. A 7x7 kernel over 64 channels of a
#: 1024x1024 picture at a quarter size would otherwise take 0.8 GB, twice.
_BAND = 2**26


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """A convolution whose every tap looks `offset` pixels beside its place, bilinearly, zero outside the picture.

    Order of arguments and channels is that of `torchvision.ops.deform_conv2d`, whose compiled operator is used for
    CUDA tensors where it can be imported. Positions and sums are float32 even for half-precision inputs: a half
    cannot tell apart positions closer than 1/8 pixel at column 200.

    Args:
        x: [B,C,H,W].
        offset: [B, 2*D*kh*kw, Ho, Wo] in pixels; (dy, dx) of each tap of each of the D offset groups, which share C.
        weight: [O, C/groups, kh, kw]; the number of groups follows from its shape.
        bias: [O].
        mask: [B, D*kh*kw, Ho, Wo], a factor for each tap; None is one everywhere.

    Returns:
        [B,O,Ho,Wo] in x's dtype.

    Raises:
        ValueError: the shapes do not belong together.
    """
    sy, sx = _pair(stride)
    py, px = _pair(padding)
    dy, dx = _pair(dilation)
    batch, channels, height, width = x.shape
    outs, per_group, kh, kw = weight.shape
    taps = kh * kw
    rows = (height + 2 * py - dy * (kh - 1) - 1) // sy + 1
    columns = (width + 2 * px - dx * (kw - 1) - 1) // sx + 1
    fields, rest = divmod(offset.shape[1], 2 * taps)
    groups = channels // per_group
    if rest or not fields or channels % fields or channels != groups * per_group or outs % groups:
        raise ValueError(
            f"offset {list(offset.shape)} and weight {list(weight.shape)} do not fit input {list(x.shape)}"
        )
    if offset.shape != (batch, 2 * fields * taps, rows, columns):
        raise ValueError(f"offset must be {[batch, 2 * fields * taps, rows, columns]}, got {list(offset.shape)}")
    if mask is not None and mask.shape != (batch, fields * taps, rows, columns):
        raise ValueError(f"mask must be {[batch, fields * taps, rows, columns]}, got {list(mask.shape)}")

    dtype, wide = x.dtype, torch.promote_types(x.dtype, torch.float32)
    x, offset, weight = (tensor.to(wide) for tensor in (x, offset, weight))
    bias, mask = (None if tensor is None else tensor.to(wide) for tensor in (bias, mask))
    operator = _torchvision_operator() if x.is_cuda else None
    if operator is not None:
        result: Tensor = operator(x, offset, weight, bias, (sy, sx), (py, px), (dy, dx), mask)
        return result.to(dtype)

    # Where each tap of each output pixel lies without offset: y [kh*kw,Ho,1], x [kh*kw,1,Wo].
    tap = torch.arange(taps, device=x.device).view(-1, 1, 1)
    ys = torch.arange(rows, device=x.device).view(1, -1, 1) * sy - py + tap // kw * dy
    xs = torch.arange(columns, device=x.device).view(1, 1, -1) * sx - px + tap % kw * dx
    offset = offset.reshape(batch * fields, taps, 2, rows, columns)
    picture = x.reshape(batch * fields, channels // fields, height, width)
    kernel = weight.reshape(groups, outs // groups, per_group * taps)

    band = max(1, _BAND // (batch * channels * taps * columns))
    bands = []
    for start in range(0, rows, band):
        part = slice(start, min(start + band, rows))
        # grid_sample's pixel p of n lies at (2p + 1) / n - 1, which holds for a side of one pixel too.
        where_y = (2 * (ys[:, part] + offset[:, :, 0, part]) + 1) / height - 1
        where_x = (2 * (xs + offset[:, :, 1, part]) + 1) / width - 1
        grid = torch.stack((where_x, where_y), -1).flatten(1, 2)  # [B*D, kh*kw*rows, Wo, 2]
        sampled = F.grid_sample(picture, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        if mask is not None:
            sampled = sampled * mask[:, :, part].reshape(batch * fields, 1, -1, columns)
        taken = sampled.reshape(batch, groups, per_group * taps, -1)  # [B, groups, C/groups*kh*kw, rows*Wo]
        bands.append((kernel @ taken).view(batch, outs, -1, columns))
    y = torch.cat(bands, 2)
    return (y if bias is None else y + bias.view(-1, 1, 1)).to(dtype)


@lru_cache(maxsize=1)
def _torchvision_operator() -> Any:
    """torchvision is no dependency; and one built for another torch imports with a RuntimeError, or not at all."""
    try:
        return importlib.import_module("torchvision.ops").deform_conv2d
    except (ImportError, RuntimeError, OSError):
        return None


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
