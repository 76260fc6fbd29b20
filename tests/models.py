"""Models for tests alone: put into this process's catalogue, and by Ray's set-up hook into that of every worker."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from actors.catalogue import CARDS
from actors.frames import Carry, FrameBatch
from actors.model import Card, Model, Setup


class Trail:
    """A stateful model: every result depends on every frame since the last cut.

    Params that make it misbehave, each at the batch that holds the frame with this time in ticks: `die_at` ends the
    process, `raise_at` raises ValueError, `lose_at` raises what CUDA raises when it is lost, `sleep_at` sleeps for
    `seconds`; with `once`, the path of a file that it makes then, only while that file is not there; with `while`,
    only while that file is there. With `pause` every frame takes that many seconds more.

    Carry:
        trail: uint16 [H,W,3].
    """

    def __call__(self, batch: FrameBatch, carry: Carry, params: Mapping[str, Any]) -> tuple[FrameBatch, Carry]:
        _misbehave(batch, params)
        trail = carry.get("trail")
        rgb = np.empty_like(batch.rgb)
        for i, frame in enumerate(batch.rgb):
            state = frame.astype(np.uint16)
            if trail is not None and not batch.cut[i]:
                state = (state + 3 * trail) % 251
            rgb[i] = state
            trail = state
        assert trail is not None
        return batch.with_pixels(rgb), {"trail": trail}


class Echo:
    """A stateless model that can misbehave like `Trail`."""

    def __call__(self, batch: FrameBatch, carry: Carry, params: Mapping[str, Any]) -> tuple[FrameBatch, Carry]:
        _misbehave(batch, params)
        return batch.with_pixels(255 - batch.rgb), carry


def _misbehave(batch: FrameBatch, params: Mapping[str, Any]) -> None:
    time.sleep(params.get("pause", 0) * len(batch))
    for act in ("die_at", "raise_at", "lose_at", "sleep_at"):
        if params.get(act) not in batch.pts.tolist():
            continue
        if "while" in params and not Path(params["while"]).exists():
            continue
        once = params.get("once")
        if once is not None:
            if Path(once).exists():
                continue
            Path(once).touch()
        if act == "die_at":
            os._exit(7)
        if act == "raise_at":
            raise ValueError(f"frame at {params[act]} is not to its taste")
        if act == "lose_at":
            _lose_cuda()
        time.sleep(params["seconds"])


def _lose_cuda() -> None:
    from actors import cuda  # torch, which a pin has and other workers need not wait for

    cuda.is_lost = lambda: True
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more lines")


def _trail(setup: Setup) -> Model:  # noqa: ARG001 - nothing to set up
    return Trail()


def _echo(setup: Setup) -> Model:  # noqa: ARG001 - nothing to set up
    return Echo()


TEST_CARDS = (
    Card("trail", "matte", (), resident=False, load=_trail, stateful=True),
    Card("echo", "matte", (), resident=False, load=_echo),
    Card("pinned-trail", "upscale", (), resident=True, load=_trail, stateful=True),
    Card("pinned-trail-too", "matte", (), resident=True, load=_trail, stateful=True),
    Card("pinned-echo", "upscale", (), resident=True, load=_echo),
)


def install() -> None:
    """Adds the test models to the catalogue of this process."""
    CARDS.update({card.name: card for card in TEST_CARDS})


@contextmanager
def with_test_models() -> Iterator[None]:
    """The test models in the catalogue of this process, for a while."""
    before = dict(CARDS)
    install()
    try:
        yield
    finally:
        CARDS.clear()
        CARDS.update(before)
