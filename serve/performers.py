"""One image through one model, answered at once: calls of the interactive class to the resident models."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from actors.catalogue import card
from actors.frames import FrameBatch
from actors.model import Model, Setup, Step
from cluster.calls import Call
from cluster.causes import cause_of
from cluster.config import Config
from cluster.errors import ClusterError, DeferredError
from cluster.pins import handle
from serve.edge.request_id import request_id

_DEFERRED_SECONDS = 0.2
_LOST_SECONDS = (0.2, 1.0, 3.0)


class Performers:
    """Calls pins, and the light models that need none, from one event loop.

    Args:
        config: says which pin hosts a model.
        seconds: longest wait for one answer.
    """

    def __init__(self, config: Config, seconds: float) -> None:
        self._config, self._seconds = config, seconds
        self._handles: dict[str, Any] = {}
        self._light: dict[str, Model] = {}

    async def perform(self, step: Step, batch: FrameBatch) -> FrameBatch:
        """The batch after the step. A caller that is cancelled takes its call out of the pin's queue.

        Raises:
            ClusterError: the pin is not there, was lost again and again, or did not answer in time.
            TroupeError: the model's own error.
        """
        if not card(step.model).resident:
            return await asyncio.to_thread(self._perform_here, step, batch)
        pin = self._config.pin_of(step.model).name
        try:
            async with asyncio.timeout(self._seconds):
                return await self._call(pin, step, batch)
        except TimeoutError as error:
            reason = f"did not answer within {self._seconds:g} s"
            raise ClusterError(f"pin {pin}", reason, remedy="try again when it is less busy") from error

    def _perform_here(self, step: Step, batch: FrameBatch) -> FrameBatch:
        if step.model not in self._light:
            self._light[step.model] = card(step.model).load(Setup(weights=(), options=step.load))
        return self._light[step.model](batch, {}, step.params)[0]

    async def _call(self, pin: str, step: Step, batch: FrameBatch) -> FrameBatch:
        losses = 0
        while True:
            try:
                return await self._ask(pin, step, batch)
            except RayTaskError as error:
                cause = cause_of(error)
                if not isinstance(cause, DeferredError):
                    raise cause from error
                await asyncio.sleep(_DEFERRED_SECONDS)
            except (RayActorError, RayServeException) as error:
                if isinstance(error, BackPressureError) or losses == len(_LOST_SECONDS):
                    raise ClusterError(f"pin {pin}", "is lost or overloaded", remedy="try again in a moment") from error
                await asyncio.sleep(_LOST_SECONDS[losses])
                losses += 1

    async def _ask(self, pin: str, step: Step, batch: FrameBatch) -> FrameBatch:
        if pin not in self._handles:
            self._handles[pin] = await asyncio.to_thread(handle, pin)
        call = Call("interactive", request=request_id.get())
        response = self._handles[pin].run.remote([asdict(step)], batch, None, call)
        try:
            found: FrameBatch = (await response).batch
            return found
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):  # it has ended by itself, one way or the other
                response.cancel()
            raise


async def unless_gone(work: Callable[[], Any], is_gone: Callable[[], Any], *, every_s: float = 0.5) -> Any:
    """The result of `work()`, cancelled when `is_gone()` says that nobody waits for it any more; None then."""
    task = asyncio.ensure_future(work())
    try:
        while not (await asyncio.wait({task}, timeout=every_s))[0]:
            if await is_gone():
                return None
        return await task
    finally:
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
