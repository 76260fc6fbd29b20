"""A chain at work: light models run in the lane, resident ones in their pins, several batches at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import ray

from actors.catalogue import card
from actors.frames import Carry, FrameBatch
from actors.model import Model, Setup, Step
from cluster.calls import Call
from cluster.config import Config
from cluster.errors import UsageError
from jobs.plan import Segment
from jobs.strikes import RunStrikes

#: A hung pin fails three health checks, is given time to end, and another one loads its models.
_REPLACED_SECONDS = 60.0
_BATCH = Call()

# Serve takes half a second to import, in every process of a job: it is imported where a pin is called.
if TYPE_CHECKING:
    from cluster.window import Stage, Window


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A batch on its way through a lane.

    Attributes:
        segment: which segment it belongs to.
        batch: its frames.
        first: plan index of its first frame.
        ends: True for the last batch of the segment.
        seconds: what decoding it took.
    """

    segment: Segment
    batch: FrameBatch
    first: int
    ends: bool
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """A piece after the chain, with what its segment's end must keep.

    Attributes:
        piece: the piece, its batch replaced by the chain's result.
        carries: the state after it, one per step; only for a segment's last piece.
        seconds: work by stage: `decode`, and the models' names.
        retries: calls repeated since the piece before.
        notices: what the pins say of these frames.
    """

    piece: Piece
    carries: tuple[Carry, ...] | None
    seconds: dict[str, float]
    retries: int
    notices: tuple[str, ...] = ()


class Chain:
    """Runs pieces through the steps, in order.

    Steps that run in the lane may come before and after those of the pins, not between them: frames would travel
    back and forth.

    Args:
        steps: the chain.
        config: says which pin hosts a model, and the window.
        on_retry: told of every repetition of lost calls, with the reason.
        strikes: counts what pins died of.
        call: the class and request of its calls.
        stop: asked again and again while a pin is waited for; what it raises ends the stream.

    Raises:
        UsageError: a lane step stands between pin steps.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        config: Config,
        on_retry: Callable[[str], None],
        strikes: RunStrikes,
        call: Call = _BATCH,
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        resident = [card(step.model).resident for step in steps]
        order = [place for place, _ in groupby(resident)]
        if order.count(True) > 1:
            raise UsageError(
                " → ".join(step.model for step in steps), "a model of the lane stands between models of pins"
            )
        head = resident.index(True) if True in resident else len(steps)
        tail = len(resident) - resident[::-1].index(True) if True in resident else len(steps)
        self._steps = tuple(steps)
        self._before = tuple(steps[:head])
        self._pinned = tuple(steps[head:tail])
        self._after = tuple(steps[tail:])
        self._config = config
        self._on_retry = on_retry
        self._strikes = strikes
        self._call = call
        self._stop = stop
        self._models: dict[int, Model] = {}
        self._retries = 0

    def stream(self, pieces: Iterator[Piece], carries: Sequence[Carry]) -> Iterator[Done]:
        """Results in the order of the pieces.

        Args:
            pieces: in order of time.
            carries: the state before the first piece, one per step.

        Raises:
            TroupeError: a model failed, or a pin was lost too often.
        """
        state = list(carries)
        if not self._pinned:
            for piece in pieces:
                yield self._finish(piece, piece.batch, state, {"decode": piece.seconds}, {}, ())
            return
        window = self._window(state)
        waiting: deque[tuple[Piece, dict[str, float], dict[int, Carry]]] = deque()
        try:
            for piece in pieces:
                if window.full:
                    yield self._pop(window, waiting, state)
                seconds = {"decode": piece.seconds}
                batch = self._run(self._before, 0, piece.batch, state, seconds)
                # The state of the lane's first steps runs ahead of the pins by the window: keep the one of this piece.
                snapshot = {k: state[k] for k in range(len(self._before))} if piece.ends else {}
                # One copy into the object store, however many calls are repeated with it.
                window.push(ray.put(batch), self._strikes.key(piece.segment))
                waiting.append((piece, seconds, snapshot))
            while waiting:
                yield self._pop(window, waiting, state)
        finally:
            window.cancel()

    def _pop(
        self, window: Window, waiting: deque[tuple[Piece, dict[str, float], dict[int, Carry]]], state: list[Carry]
    ) -> Done:
        result = window.pop()
        piece, seconds, snapshot = waiting.popleft()
        for model, spent in result.seconds.items():
            seconds[model] = seconds.get(model, 0.0) + spent
        if piece.ends:
            carries = [carry for stage in window.popped() for carry in stage.carries]
            snapshot |= dict(enumerate(carries, len(self._before)))
        return self._finish(piece, result.batch, state, seconds, snapshot, result.notices)

    def _finish(
        self,
        piece: Piece,
        batch: FrameBatch,
        state: list[Carry],
        seconds: dict[str, float],
        snapshot: dict[int, Carry],
        notices: tuple[str, ...],
    ) -> Done:
        local = self._after if self._pinned else self._steps
        batch = self._run(local, len(self._steps) - len(local), batch, state, seconds)
        carries = tuple(snapshot.get(k, state[k]) for k in range(len(self._steps))) if piece.ends else None
        retries, self._retries = self._retries, 0
        return Done(replace(piece, batch=batch), carries, seconds, retries, notices)

    def _run(
        self, steps: Sequence[Step], offset: int, batch: FrameBatch, state: list[Carry], seconds: dict[str, float]
    ) -> FrameBatch:
        for index, step in enumerate(steps, offset):
            if index not in self._models:
                self._models[index] = card(step.model).load(Setup(weights=(), options=step.load))
            begun = time.perf_counter()
            batch, state[index] = self._models[index](batch, state[index], step.params)
            seconds[step.model] = seconds.get(step.model, 0.0) + time.perf_counter() - begun
        return batch

    def _window(self, state: Sequence[Carry]) -> Window:
        from cluster.window import Window

        stages, states = [], []
        index = len(self._before)
        timeout_s = 0.0
        for name, group in groupby(self._pinned, key=lambda step: self._config.pin_of(step.model).name):
            steps = [asdict(step) for step in group]
            stateful = any(card(step["model"]).stateful for step in steps)
            stages.append(_stage(name, steps, stateful))
            states.append([dict(state[index + k]) for k in range(len(steps))])
            index += len(steps)
            # A hung pin is found and replaced by its health check; who waits here gives up only after that.
            timeout_s += self._config.pin_of(steps[0]["model"]).call_timeout_s + _REPLACED_SECONDS
        return Window(
            stages,
            states,
            size=self._config.troupe.batch.window,
            timeout_s=timeout_s,
            retries=self._config.troupe.batch.retries,
            on_retry=self._retried,
            strikes=self._strikes,
            call=self._call,
            stop=self._stop,
        )

    def _retried(self, reason: str) -> None:
        self._retries += 1
        self._on_retry(reason)


def _stage(pin: str, steps: list[dict[str, Any]], stateful: bool) -> Stage:
    from cluster.pins import await_ready, handle
    from cluster.window import Stage

    target = handle(pin)

    def call(source: Any, state: Any, call: Call) -> Any:
        return target.run.remote(steps, source, state, call)

    return Stage(pin, call, stateful, partial(await_ready, pin))
