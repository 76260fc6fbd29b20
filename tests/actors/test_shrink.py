"""Out of memory: smaller work gives the same frames, and the smaller size stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from actors.frames import Carry, FrameBatch
from actors.shrink import run_shrinking


class Hungry:
    """Negates frames; needs a megabyte a frame of its micro-batch and tile."""

    def __init__(self, room: int, micro_batch: int = 8, tile: int | None = 0) -> None:
        self.room, self.micro_batch = room, micro_batch
        if tile is not None:
            self.tile = tile
        self.tried: list[tuple[int, int]] = []

    def __call__(self, batch: FrameBatch, carry: Carry, _: Mapping[str, Any]) -> tuple[FrameBatch, Carry]:
        side = getattr(self, "tile", 0) or max(batch.size)
        self.tried.append((self.micro_batch, side))
        if self.micro_batch * side > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return batch.with_pixels(255 - batch.rgb), carry


def batch() -> FrameBatch:
    return FrameBatch(np.zeros((2, 400, 640, 3), np.uint8), np.arange(2), np.zeros(2, np.bool_))


def run(model: Hungry, make_room: bool = False) -> list[str]:
    told: list[str] = []
    room = iter([make_room])
    made, _ = run_shrinking(model, batch(), {}, {}, make_room=lambda: next(room, False), on_shrink=told.append)
    assert (made.rgb == 255).all()
    return told


def test_micro_batch_is_halved_first_then_the_tile() -> None:
    model = Hungry(room=200)
    assert run(model) == ["micro-batch 4", "micro-batch 2", "micro-batch 1", "tile 320", "tile 160"]
    assert (model.micro_batch, model.tile) == (1, 160)
    tries = len(model.tried)
    assert run(model) == []
    assert len(model.tried) == tries + 1


def test_idle_models_make_room_before_anything_gets_smaller() -> None:
    model = Hungry(room=2 * 640, micro_batch=4)
    assert run(model, make_room=True) == ["micro-batch 2"]
    assert [size for size, _ in model.tried] == [4, 4, 2]


@pytest.mark.parametrize("tile", [0, None])
def test_when_nothing_can_get_smaller_the_error_stays(tile: int | None) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        run(Hungry(room=0, micro_batch=2, tile=tile))


def test_other_errors_are_not_tried_again() -> None:
    class Broken(Hungry):
        def __call__(self, *_: Any) -> tuple[FrameBatch, Carry]:
            self.tried.append((0, 0))
            raise RuntimeError("CUDA error: device-side assert triggered")

    model = Broken(room=0)
    with pytest.raises(RuntimeError, match="device-side"):
        run(model)
    assert len(model.tried) == 1
