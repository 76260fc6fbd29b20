"""A window of calls moving through a row of pins, in order, repeated when a replica is lost.

Stage k works on batch i while stage k-1 works on batch i+1: the unawaited response of one call is the source of the
next, so only references move through the caller. Responses cannot be indexed or nested, so what travels is the whole
result of an earlier call; the pin takes from it what it needs (`actors.result.Result`).

A replica that dies fails every call it had accepted, and Serve replays none of them. The window therefore keeps the
inputs of all calls whose results are not in, and repeats from the first failed batch on, with the state that this
batch had. Where that state itself went down with a node, `LostStateError` says so: the caller begins again from what it
has stored. A model's own error is never repeated. Replicas write down what they execute (`cluster.executing`): only the
work that one died of gets a strike, and from then on goes alone, so that nobody else's calls can die with it.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ray.exceptions import ActorDiedError, ObjectLostError, RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentResponse

from cluster.callboard import Callboard
from cluster.calls import Call
from cluster.causes import cause_of
from cluster.errors import ClusterError, DeferredError, LostStateError
from cluster.executing import executing
from cluster.metrics import CallerMetrics

_BATCH = Call()
_BACKOFF_SECONDS = (0.2, 1.0, 3.0)
_DEFERRED_SECONDS = 0.2
#: Losses that are nobody's fault, of one batch, for each repetition that it has when they are its own.
_PATIENCE = 4
#: All calls of a dead replica fail within some 20 ms on a quiet machine.
_LOOK_SECONDS = 0.02
_DYING_SECONDS = 2.0
#: How often a caller that waits looks whether it is to stop, and whether a pin earlier in the row has died.
_SLICE_SECONDS = 2.0
#: An answer that is not there after so long though no pin of the row has a call is lost.
_IDLE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Stage:
    """One pin of the row.

    Attributes:
        pin: its name, for errors.
        call: `(source, state, call) -> response`; source and state are values or earlier responses.
        stateful: whether a call needs the result of the call before; stateless calls may run on several replicas.
        await_ready: returns when a replica takes calls; raises ClusterError when none does in bounded time.
    """

    pin: str
    call: Callable[[Any, Any, Call], DeploymentResponse[Any]]
    stateful: bool
    await_ready: Callable[[], None]


class Strikes(Protocol):
    """Who counts what pins died of."""

    def suspect(self, key: str) -> bool:
        """Whether this work has a strike, and goes alone."""
        ...

    def charge(self, key: str, reason: str) -> None:
        """Counts a strike; raises a TroupeError when it was the last."""
        ...


@dataclass(slots=True)
class _Entry:
    source: Any
    key: str
    calls: list[Call] = field(default_factory=list)
    responses: list[DeploymentResponse[Any]] = field(default_factory=list)


class Window:
    """Batches in flight through a row of pins; `push` in order, `pop` the oldest result.

    Args:
        stages: the row.
        states: the state before the first batch, one per stage (None at the start of a clip).
        size: most batches in flight.
        timeout_s: longest wait for a pin that does not show that it lives; one that does may work through its queue.
        retries: how often a batch is repeated that was lost for unknown reasons.
        on_retry: told of every repetition, with the reason.
        strikes: counts what pins died of.
        call: the calls' class and request.
        stop: asked again and again while an answer is waited for; what it raises ends the wait.
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
        strikes: Strikes,
        call: Call = _BATCH,
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._stages = stages
        self._states: list[Any] = list(states)
        self._any_popped = False
        self._at_work = 0.0
        self._size = size
        self._timeout_s = timeout_s
        self._retries = retries
        self._on_retry = on_retry
        self._strikes = strikes
        self._call = call
        self._stop = stop
        self._board = Callboard()
        self._metrics = {stage.pin: CallerMetrics(stage.pin) for stage in stages}
        self._entries: deque[_Entry] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def full(self) -> bool:
        """Whether a result must be popped before the next push."""
        return len(self._entries) >= self._size

    def push(self, source: Any, key: str) -> None:
        """Sends a batch on its way; returns at once.

        Args:
            source: the batch.
            key: whose work it is.
        """
        self._entries.append(_Entry(source, key))
        self._send_waiting()

    def pop(self) -> Any:
        """The last stage's result for the oldest batch.

        Raises:
            TroupeError or the model's own error: the call failed in the model, or had its last strike.
            LostStateError: the work cannot go on from here.
            ClusterError: the pin was lost too often, or did not answer in time.
        """
        losses = 0
        begun = self._at_work = time.monotonic()
        while True:
            entry = self._entries[0]
            try:
                result = entry.responses[-1].result(timeout_s=min(_SLICE_SECONDS, self._timeout_s))
            except RayTaskError as error:
                # First, because a model's TimeoutError arrives as both.
                cause = cause_of(error)
                if isinstance(cause, DeferredError) and self._may_wait(begun):
                    self.cancel()
                    time.sleep(_DEFERRED_SECONDS)
                    self._send_again()
                    continue
                if not isinstance(cause, ObjectLostError):
                    raise cause from error
                lost: Exception = cause
            except (RayActorError, ObjectLostError, BackPressureError, RayServeException, TimeoutError) as error:
                if not _is_loss(error):
                    raise
                self._stop()
                earlier_died = any(_died(response) for response in entry.responses[:-1])
                if isinstance(error, TimeoutError) and not earlier_died and self._may_wait(begun):
                    continue
                lost = error
            else:
                self._entries.popleft()
                self._states, self._any_popped = list(entry.responses), True
                self._send_waiting()
                return result
            losses += 1
            self._repeat(lost, losses)
            begun = self._at_work = time.monotonic()

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

    def _send_waiting(self) -> None:
        """Sends what is not on its way: a suspect only as the oldest, and nothing behind it."""
        states = self._states
        for index, entry in enumerate(self._entries):
            suspect = self._strikes.suspect(entry.key)
            if suspect and index > 0:
                return
            if not entry.responses:
                self._send(entry, states, alone=suspect)
            if suspect:
                return
            states = entry.responses

    def _send(self, entry: _Entry, states: Sequence[Any], *, alone: bool) -> None:
        value = entry.source
        if alone:
            # Everybody whom a suspect had sent back gets a chance between two of its calls.
            time.sleep(2 * _DEFERRED_SECONDS)
        for stage, state in zip(self._stages, states, strict=True):
            call = Call(self._call.priority, entry.key, alone, self._call.request)
            value = stage.call(value, state if stage.stateful else None, call)
            entry.calls.append(call)
            entry.responses.append(value)

    def _send_again(self) -> None:
        for entry in self._entries:
            entry.calls, entry.responses = [], []
        self._send_waiting()

    def _repeat(self, error: Exception, losses: int) -> None:
        pins = " or ".join(stage.pin for stage in self._stages)
        reason = "no answer in time" if isinstance(error, TimeoutError) else "lost"
        self._charge()
        # Of losses that are others' fault there may be many: each of their suspects has its strikes.
        if losses > self._retries * (1 if isinstance(error, TimeoutError) else _PATIENCE):
            raise ClusterError(
                f"pin {pins}",
                f"{reason}, {losses} times in a row",
                remedy="see its log in the Ray dashboard; the segment is redone on the next run",
            ) from error
        self.cancel()
        if _is_loss_of_object(error):
            self._check_states(pins)
        self._on_retry(f"pin {pins}: {reason}, repeating {len(self._entries)} calls")
        for metrics in self._metrics.values():
            metrics.retried(len(self._entries))
        time.sleep(_BACKOFF_SECONDS[min(losses, len(_BACKOFF_SECONDS)) - 1])
        for stage in self._stages:
            stage.await_ready()
        self._send_again()

    def _may_wait(self, begun: float) -> bool:
        """Whether an answer may still come: every pin lives, and one works through its queue, or the time is not over.

        A call that hangs is found by the pin's health check, and a queue is as long as its callers' windows together.
        Where nobody has a call ours was lost on its way.
        """
        now, pins = time.monotonic(), {stage.pin for stage in self._stages}
        states = [state for state in self._board.states().values() if state["pin"] in pins]
        if {state["pin"] for state in states} != pins:
            return now - begun < self._timeout_s
        if any(state["waiting"][self._call.priority] for state in states):
            self._at_work = now
        return now - self._at_work < _IDLE_SECONDS

    def _check_states(self, pins: str) -> None:
        try:
            if self._any_popped:
                self.popped()
        except (RayError, RayServeException, TimeoutError) as error:
            raise LostStateError(
                f"pin {pins}", "the state before the next frames is gone with a node", remedy="run the job again"
            ) from error

    def _charge(self) -> None:
        """A strike for the work whose call a replica died of, if it was one of ours."""
        lost = {
            call.token: (entry.key, stage.pin, response)
            for entry in self._entries
            for stage, call, response in zip(self._stages, entry.calls, entry.responses, strict=False)
            if entry.key
        }
        for token, why in executing(lost).items() if lost else ():
            key, pin, response = lost[token]
            if _died(response, _DYING_SECONDS):
                self._metrics[pin].strike()
                self._strikes.charge(key, f"pin {pin} was lost while it executed it" + (f": {why}" if why else ""))


def _died(response: DeploymentResponse[Any], seconds: float = _LOOK_SECONDS) -> bool:
    """Whether the very replica that had this call is gone; a call behind it in the row fails in another way."""
    try:
        response.result(timeout_s=seconds)
    except ActorDiedError:
        return True
    except Exception:  # its own error, or an answer that is still to come
        return False
    return False


def _is_loss_of_object(error: BaseException | None) -> bool:
    """Whether a value is gone that was on a node, rather than a replica."""
    return error is not None and (isinstance(error, ObjectLostError) or _is_loss_of_object(error.__cause__))


def _is_loss(error: BaseException | None) -> bool:
    """Whether the same call may succeed elsewhere: a replica died, here or earlier in the row, or did not answer."""
    if isinstance(error, RayServeException) and not isinstance(error, BackPressureError):
        return _is_loss(error.__cause__)
    return isinstance(error, RayActorError | ObjectLostError | BackPressureError | TimeoutError)
