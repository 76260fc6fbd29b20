"""Pins in this process that answer in any order: for tests of who calls them, without a replica."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import ray

from actors.catalogue import card
from actors.frames import Carry, FrameBatch
from actors.model import Model, Setup, Step
from actors.result import Result


@dataclass(eq=False)
class Response:
    """What `handle.run.remote` gives: a value that may be waited for, or passed to the next call as it is."""

    pins: Pins
    steps: Sequence[Step]
    replica: dict[str, Model]
    source: Any
    state: Any
    value: Result | None = None
    cancelled: bool = field(default=False)

    @property
    def ready(self) -> bool:
        """Whether what it needs is there."""
        return all(before.value is not None for before in (self.source, self.state) if isinstance(before, Response))

    def result(self, timeout_s: float | None = None) -> Result:  # noqa: ARG002 - it is never late
        return self.pins.wait_for(self)

    def cancel(self) -> None:
        self.cancelled = True


class Pins:
    """All pins of a cluster. Calls are executed while somebody waits for one of them, those that can be in any order.

    Args:
        seed: of the order, and of which replica has a call.
        replicas: of every pin.
    """

    def __init__(self, seed: int, replicas: int) -> None:
        self._dice = random.Random(seed)
        self._count = replicas
        self._replicas: dict[str, list[dict[str, Model]]] = {}
        self._pending: list[Response] = []
        self._lock = threading.Lock()
        #: In how many cases a later call was executed before an earlier one of the same pin.
        self.overtaken = 0

    def handle(self, pin: str) -> Any:
        """Stands in for `cluster.pins.handle`."""
        return SimpleNamespace(run=SimpleNamespace(remote=partial(self._send, pin)))

    def wait_for(self, response: Response) -> Result:
        """Executes calls until this one's result is there."""
        while True:
            with self._lock:
                if response.value is not None:
                    return response.value
                self._pending = [one for one in self._pending if not one.cancelled]
                able = [one for one in self._pending if one.ready]
                chosen = self._dice.choice(able)
                self.overtaken += chosen is not able[0]
                self._pending.remove(chosen)
                chosen.value = _execute(chosen)

    def _send(self, pin: str, steps: Sequence[dict[str, Any]], source: Any, state: Any, *_: Any) -> Response:
        with self._lock:
            replicas = self._replicas.setdefault(pin, [{} for _ in range(self._count)])
            response = Response(self, [Step(**step) for step in steps], self._dice.choice(replicas), source, state)
            self._pending.append(response)
        return response


def _execute(call: Response) -> Result:
    batch, before = _value(call.source), _value(call.state)
    if isinstance(batch, Result):
        batch = batch.batch
    assert isinstance(batch, FrameBatch)
    carries: Sequence[Carry] = before.carries if isinstance(before, Result) else before or [{}] * len(call.steps)
    after: list[Carry] = []
    for step, carry in zip(call.steps, carries, strict=True):
        if step.model not in call.replica:
            call.replica[step.model] = card(step.model).load(Setup(()))
        batch, state = call.replica[step.model](batch, carry, step.params)
        after.append(state)
    return Result(batch, tuple(after), {step.model: 0.0 for step in call.steps})


def _value(given: Any) -> Any:
    if isinstance(given, Response):
        return given.value
    return ray.get(given) if isinstance(given, ray.ObjectRef) else given
