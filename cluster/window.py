"""A window of calls moving through a row of pins, in order, repeated when a replica is lost.

Stage k works on batch i while stage k-1 works on batch i+1: the unawaited response of one call is the source of the
next, so only references move through the caller. Responses cannot be indexed or nested, so what travels is the whole
result of an earlier call; the pin takes from it what it needs (`actors.pin.Result`).

A replica that dies fails every call it had accepted, and Serve replays none of them. The window therefore keeps the
inputs of all calls whose results are not in, and repeats from the first failed batch on, with the state that this
batch had. A model's own error is never repeated.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentResponse

from cluster.causes import cause_of
from cluster.errors import ClusterError

#: `(source, state) -> response`; source and state are values or earlier responses.
Call = Callable[[Any, Any], "DeploymentResponse[Any]"]

_BACKOFF_SECONDS = (0.2, 1.0, 3.0)


@dataclass(frozen=True, slots=True)
class Stage:
    """One pin of the row.

    Attributes:
        pin: its name, for errors.
        call: sends a batch to it.
        stateful: whether a call needs the result of the call before; stateless calls may run on several replicas.
    """

    pin: str
    call: Call
    stateful: bool


@dataclass(slots=True)
class _Entry:
    source: Any
    responses: list[DeploymentResponse[Any]] = field(default_factory=list)


class Window:
    """Batches in flight through a row of pins; `push` in order, `pop` the oldest result.

    Args:
        stages: the row.
        states: the state before the first batch, one per stage (None at the start of a clip).
        size: most batches in flight.
        timeout_s: longest wait for one result.
        retries: how often a lost batch is repeated.
        on_retry: told of every repetition, with the reason.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        states: Sequence[Any],
        *,
        size: int,
        timeout_s: float,
        retries: int,
        on_retry: Callable[[str], None],
    ) -> None:
        self._stages = stages
        self._states: list[Any] = list(states)
        self._size = size
        self._timeout_s = timeout_s
        self._retries = retries
        self._on_retry = on_retry
        self._entries: deque[_Entry] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def full(self) -> bool:
        """Whether a result must be popped before the next push."""
        return len(self._entries) >= self._size

    def push(self, source: Any) -> None:
        """Sends a batch on its way; returns at once."""
        entry = _Entry(source)
        before = self._entries[-1].responses if self._entries else self._states
        self._send(entry, before)
        self._entries.append(entry)

    def pop(self) -> Any:
        """The last stage's result for the oldest batch.

        Raises:
            TroupeError or the model's own error: the call failed in the model.
            ClusterError: the pin was lost more often than `retries`, or did not answer in time.
        """
        for attempt in range(self._retries + 1):
            entry = self._entries[0]
            try:
                result = entry.responses[-1].result(timeout_s=self._timeout_s)
            except RayTaskError as error:
                # First, because a model's TimeoutError arrives as both.
                raise cause_of(error) from error
            except (RayActorError, BackPressureError, RayServeException, TimeoutError) as error:
                self._repeat(error, attempt)
                continue
            self._entries.popleft()
            self._states = list(entry.responses)
            return result
        raise AssertionError("unreachable")

    def popped(self) -> list[Any]:
        """The results of all stages for the batch popped last; fetching them moves no pixels on one node."""
        return [response.result(timeout_s=self._timeout_s) for response in self._states]

    def cancel(self) -> None:
        """Cancels every stage of every call in flight; queued calls never run."""
        for entry in self._entries:
            for response in entry.responses:
                # A call that has failed answers with its error, whatever that was: there is nothing left to cancel.
                with contextlib.suppress(RayError, RayServeException):
                    response.cancel()

    def _send(self, entry: _Entry, states: Sequence[Any]) -> None:
        value = entry.source
        entry.responses = []
        for stage, state in zip(self._stages, states, strict=True):
            value = stage.call(value, state if stage.stateful else None)
            entry.responses.append(value)

    def _repeat(self, error: Exception, attempt: int) -> None:
        pins = " or ".join(stage.pin for stage in self._stages)
        reason = "no answer in time" if isinstance(error, TimeoutError) else "lost"
        if attempt == self._retries:
            raise ClusterError(
                f"pin {pins}",
                f"{reason}, {attempt + 1} times in a row",
                remedy="see its log in the Ray dashboard; the segment is redone on the next run",
            ) from error
        self.cancel()
        self._on_retry(f"pin {pins}: {reason}, repeating {len(self._entries)} calls")
        time.sleep(_BACKOFF_SECONDS[min(attempt, len(_BACKOFF_SECONDS) - 1)])
        states: Sequence[Any] = self._states
        for entry in self._entries:
            self._send(entry, states)
            states = entry.responses
