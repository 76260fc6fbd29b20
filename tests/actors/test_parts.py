"""A call in parts: the same frames and state however often it stops in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from actors.frames import Carry, FrameBatch
from actors.model import Model, Step
from actors.parts import PartedCall
from tests.models import Trail


class Seeing(Trail):
    """Notes the frames of each part."""

    def __init__(self, micro_batch: int) -> None:
        self.micro_batch = micro_batch
        self.parts: list[list[int]] = []

    def __call__(self, batch: FrameBatch, carry: Carry, params: Mapping[str, Any]) -> tuple[FrameBatch, Carry]:
        self.parts.append(batch.pts.tolist())
        return super().__call__(batch, carry, params)


def plain(model: Model, step: Step, part: FrameBatch, carry: Carry) -> tuple[FrameBatch, Carry]:
    return model(part, carry, step.params)


def batch(cuts: tuple[int, ...] = ()) -> FrameBatch:
    rgb = np.random.default_rng(2).integers(0, 256, (11, 4, 6, 3), np.uint8)
    alpha = np.random.default_rng(3).integers(0, 256, (11, 4, 6), np.uint8)
    return FrameBatch(rgb, np.arange(11), np.isin(np.arange(11), cuts), alpha, {"mask": alpha})


@pytest.mark.parametrize("seconds", [0.0, 1e-5, 60.0])
def test_stopping_in_between_changes_nothing(seconds: float) -> None:
    steps, whole = [Step("trail"), Step("trail")], batch((4,))
    once, carry_once = Trail()(whole, {}, {})
    twice, carry_twice = Trail()(once, {}, {})
    call = PartedCall(steps, whole, [{}, {}])
    turns = 0
    while not call.done:
        call.work([Seeing(3), Seeing(3)], plain, seconds)
        turns += 1
    made, carries = call.result
    np.testing.assert_array_equal(made.rgb, twice.rgb)
    np.testing.assert_array_equal(made.planes["mask"], whole.planes["mask"])
    for found, expected in zip(carries, (carry_once, carry_twice), strict=True):
        np.testing.assert_array_equal(found["trail"], expected["trail"])
    assert turns == (5 if seconds == 0 else 1) or seconds == 1e-5
    assert set(call.seconds) == {"trail"}


def test_parts_are_what_the_network_takes_at_once_and_never_cross_a_cut() -> None:
    model = Seeing(4)
    PartedCall([Step("trail")], batch((2, 7)), [{}]).work([model], plain, 60)
    assert model.parts == [[0, 1], [2, 3, 4, 5], [6], [7, 8, 9, 10]]


def test_model_without_a_micro_batch_is_given_single_frames() -> None:
    model = Seeing(1)
    del model.micro_batch
    PartedCall([Step("trail")], batch(), [{}]).work([model], plain, 60)
    assert model.parts == [[i] for i in range(11)]
