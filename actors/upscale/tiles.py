"""Running an upscaling network on a large frame in tiles, so that its memory is bounded by the tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Of a tile whose network sees further than any margin, this many input pixels at each inner edge are thrown away
#: (they know least of what lies beyond) and as many more are blended into the neighbour.
BLEND_MARGIN = 16
BLEND_RAMP = 16


@dataclass(frozen=True, slots=True)
class Span:
    """One tile along one axis, in input pixels.

    Attributes:
        start, stop: what of the frame this tile gives; neighbours overlap by the ramp.
        outer_start, outer_stop: what the network sees, `start..stop` grown by the margin and clamped to the frame.
    """

    start: int
    stop: int
    outer_start: int
    outer_stop: int


def cut(length: int, tile: int, margin: int, ramp: int, multiple_of: int) -> list[Span]:
    """Covers `length` pixels with about equal tiles of at most `tile` pixels (never less than `ramp`, so that no more
    than two overlap), not counting what they overlap and see beyond.

    Margins end at the frame's edge, where the network itself pads as it does for a whole frame. All borders lie on
    multiples of `multiple_of`, if `length` does.
    """

    def up(n: int) -> int:
        return -(-n // multiple_of) * multiple_of

    margin, ramp = up(margin), up(ramp)
    count = -(-length // up(tile))
    step = max(ramp, up(-(-length // count)))
    spans = []
    for start in range(0, length, step):
        stop = min(length, start + step + (ramp if start + step < length else 0))
        spans.append(Span(start, stop, max(0, start - margin), min(length, stop + margin)))
    return spans


def run_tiled(
    network: Callable[[Tensor], Tensor], x: Tensor, *, tile: int, scale: int, exact_margin: int | None, multiple_of: int
) -> Tensor:
    """Applies `network` to [B,3,H,W] in tiles; H and W are multiples of `multiple_of`.

    With `exact_margin`, the network's receptive field, tiles are set side by side and the result equals the whole
    frame's. Without, the network sees too far for that: tiles overlap and are blended by linear ramps.

    Args:
        tile: longest side of a tile without its margin, in input pixels.

    Returns:
        [B,3,H*scale,W*scale], channels last.
    """
    batch, _, height, width = x.shape
    margin, ramp = (BLEND_MARGIN, BLEND_RAMP) if exact_margin is None else (exact_margin, 0)
    rows = cut(height, tile, margin, ramp, multiple_of)
    columns = cut(width, tile, margin, ramp, multiple_of)
    out = x.new_zeros((batch, 3, height * scale, width * scale)).to(memory_format=torch.channels_last)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            patch = x[:, :, row.outer_start : row.outer_stop, column.outer_start : column.outer_stop]
            y = network(patch.contiguous(memory_format=torch.channels_last))
            y = y[:, :, _inner(row, scale), _inner(column, scale)]
            target = out[:, :, _scaled(row, scale), _scaled(column, scale)]
            if ramp:
                vertical = _weights(rows, i, scale, x).view(1, 1, -1, 1)
                target.add_(y * vertical * _weights(columns, j, scale, x).view(1, 1, 1, -1))
            else:
                target.copy_(y)
    return out


def _weights(spans: list[Span], i: int, scale: int, like: Tensor) -> Tensor:
    """One over a tile's own pixels, falling to zero over each overlap; two neighbours' ramps add up to one."""
    span = spans[i]
    weights = torch.ones((span.stop - span.start) * scale, dtype=torch.float32, device=like.device)
    if i > 0:
        weights[: (spans[i - 1].stop - span.start) * scale] *= _ramp((spans[i - 1].stop - span.start) * scale, like)
    if i + 1 < len(spans):
        overlap = (span.stop - spans[i + 1].start) * scale
        weights[-overlap:] *= 1 - _ramp(overlap, like)
    return weights.to(like.dtype)


def _ramp(length: int, like: Tensor) -> Tensor:
    return (torch.arange(length, dtype=torch.float32, device=like.device) + 0.5) / length


def _inner(span: Span, scale: int) -> slice:
    return slice((span.start - span.outer_start) * scale, (span.stop - span.outer_start) * scale)


def _scaled(span: Span, scale: int) -> slice:
    return slice(span.start * scale, span.stop * scale)
