"""Models that only take time or room, in real pins: what the way to a model costs is measured with these."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from actors import pin
from actors.catalogue import CARDS
from actors.frames import Carry, FrameBatch
from actors.model import Card, Model, Setup


class Fake:
    """Gives copies of its frames, and takes as long as it is told.

    Params: `ms`, milliseconds of sleep for a frame.

    Carry:
        count: int64 [1], frames so far.
    """

    def __call__(self, batch: FrameBatch, carry: Carry, params: Mapping[str, Any]) -> tuple[FrameBatch, Carry]:
        time.sleep(params.get("ms", 0) * len(batch) / 1000)
        before = int(carry["count"][0]) if carry else 0
        return batch.with_pixels(batch.rgb.copy()), {"count": np.array([before + len(batch)])}


def _load(_: Setup) -> Model:
    return Fake()


FIRST, SECOND = "bench-first", "bench-second"
_CARDS = {
    FIRST: Card(FIRST, "upscale", (), resident=True, load=_load, stateful=True),
    SECOND: Card(SECOND, "matte", (), resident=True, load=_load, stateful=True),
}


def install() -> None:
    """Adds the fakes to the catalogue of this process."""
    CARDS.update(_CARDS)


class FakePin(pin.Pin):
    """A pin whose process knows the fakes."""

    def __init__(self, settings: Mapping[str, Any], device: str, weights: str) -> None:
        install()
        super().__init__(settings, device, weights)


@contextmanager
def faking() -> Iterator[None]:
    """Pins that are built here know the fakes, and so does this process meanwhile."""
    with mock.patch.dict(CARDS, _CARDS), mock.patch.object(pin, "Pin", FakePin):
        yield
