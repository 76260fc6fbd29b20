"""Going on after CUDA out-of-memory: half the micro-batch, then half the tile, until it fits or can be no smaller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from actors.frames import Carry, FrameBatch
from actors.model import Model

#: Attributes of a model that can be made smaller.
SIZES = ("micro_batch", "tile")
#: Smaller tiles are mostly margin.
_SMALLEST_TILE = 64


def run_shrinking(
    model: Model,
    batch: FrameBatch,
    carry: Carry,
    params: Mapping[str, Any],
    *,
    make_room: Callable[[], bool],
    on_shrink: Callable[[str], None],
) -> tuple[FrameBatch, Carry]:
    """Calls a model, and again with smaller work each time that memory runs out. The smaller size stays with the model.

    Args:
        model, batch, carry, params: the call.
        make_room: unloads what is idle; says whether that freed anything. Tried before anything is made smaller.
        on_shrink: told what is in force now, e.g. `micro-batch 2`.

    Raises:
        torch.OutOfMemoryError: nothing is left to make smaller.
    """
    while True:
        try:
            return model(batch, carry, params)
        except torch.OutOfMemoryError:
            # Outside of the handler, whose traceback keeps the frames of the call, and their tensors, alive.
            pass
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if make_room():
            continue
        smaller = shrink(model, batch.size)
        if smaller is None:
            return model(batch, carry, params)
        on_shrink(smaller)


def shrink(model: Model, size: tuple[int, int]) -> str | None:
    """Halves the model's micro-batch, else its tile; what is in force now, None when both are as small as they get.

    Args:
        model: with `micro_batch` (frames at once) and `tile` (pixels, 0 for never) if it can be made smaller.
        size: width and height of the frames.
    """
    micro_batch = getattr(model, "micro_batch", 1)
    if micro_batch > 1:
        model.micro_batch = micro_batch // 2  # type: ignore[attr-defined]
        return f"micro-batch {micro_batch // 2}"
    tile = getattr(model, "tile", None)
    if tile is None:
        return None
    smaller = (tile or max(size)) // 2 // 8 * 8
    if smaller < _SMALLEST_TILE:
        return None
    model.tile = smaller  # type: ignore[attr-defined]
    return f"tile {smaller}"
