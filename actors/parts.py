"""A call on a chain of resident models, done part by part, so that it can stop between parts and go on later."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from actors.device import DeviceBatch, download
from actors.frames import Carry, FrameBatch
from actors.model import Model, Step

#: Calls one model on a part: `(model, step, part, carry) -> (part, carry)`; between models of one device, frames stay.
Run = Callable[[Model, Step, FrameBatch | DeviceBatch, Carry], tuple[FrameBatch | DeviceBatch, Carry]]


def _never() -> bool:
    return False


class PartedCall:
    """Steps of a chain on one batch.

    A part is what the models' networks take at once (their `micro_batch`, one frame where they have none) and never
    crosses a cut. Parts are the same whenever the call stops in between: so are the pixels, to the last bit.

    Args:
        steps: in order.
        batch: what the first step is given.
        carries: the state before the batch, one per step.

    Attributes:
        seconds: work so far, by model.
    """

    def __init__(self, steps: Sequence[Step], batch: FrameBatch, carries: Sequence[Carry]) -> None:
        self.steps = tuple(steps)
        self.seconds: dict[str, float] = {}
        self._batch = batch
        self._carries = list(carries)
        self._made: list[FrameBatch] = []
        self._next = 0

    @property
    def frames(self) -> int:
        """How many there are in all."""
        return len(self._batch)

    @property
    def done(self) -> bool:
        """Whether all frames went through."""
        return self._next == len(self._batch)

    @property
    def result(self) -> tuple[FrameBatch, tuple[Carry, ...]]:
        """The whole batch after the last step, and the state after it."""
        return joined(self._made), tuple(self._carries)

    def work(self, models: Sequence[Model], run: Run, seconds: float, gives_way: Callable[[], bool] = _never) -> None:
        """Does parts until all are done, or until another one would take longer than `seconds` in all; at least one.

        Args:
            models: one per step.
            gives_way: asked after each part whether to stop all the same.
        """
        begun = time.perf_counter()
        longest = spent = 0.0
        while not self.done and spent + longest <= seconds:
            before = spent
            self._do_part(models, run)
            spent = time.perf_counter() - begun
            longest = max(longest, spent - before)
            if gives_way():
                return

    def _do_part(self, models: Sequence[Model], run: Run) -> None:
        first = self._next
        last = _part_end(self._batch, first, max(getattr(model, "micro_batch", 1) for model in models))
        part: FrameBatch | DeviceBatch = self._batch.part(first, last)
        for index, (step, model) in enumerate(zip(self.steps, models, strict=True)):
            begun = time.perf_counter()
            part, self._carries[index] = run(model, step, part, self._carries[index])
            self.seconds[step.model] = self.seconds.get(step.model, 0.0) + time.perf_counter() - begun
        self._made.append(download(part) if isinstance(part, DeviceBatch) else part)
        self._next = last


def _part_end(batch: FrameBatch, first: int, most: int) -> int:
    last = min(first + most, len(batch))
    cuts = np.flatnonzero(batch.cut[first + 1 : last])
    return first + 1 + int(cuts[0]) if len(cuts) else last


def joined(parts: Sequence[FrameBatch]) -> FrameBatch:
    """Consecutive batches as one; a single one is returned as it is."""
    if len(parts) == 1:
        return parts[0]
    alphas = [part.alpha for part in parts if part.alpha is not None]
    planes: Mapping[str, Any] = {
        name: np.concatenate([part.planes[name] for part in parts]) for name in parts[0].planes
    }
    return FrameBatch(
        np.concatenate([part.rgb for part in parts]),
        np.concatenate([part.pts for part in parts]),
        np.concatenate([part.cut for part in parts]),
        np.concatenate(alphas) if alphas else None,
        planes,
    )
