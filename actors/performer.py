"""The performer: executes calls on resident models, in turns, on one thread. Knows nothing of Ray.

Everything but the models themselves happens on one event loop. A call has a turn of at most `max_call_s`, stops at the
border of a part, and whoever is first then has the next turn: a request waits for a turn of batch, not for a call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch

from actors.frames import Carry, FrameBatch
from actors.model import Model, Step
from actors.parts import PartedCall
from actors.residency import Residents
from actors.shrink import SIZES, run_shrinking
from actors.turns import Turns
from cluster.calls import Call
from cluster.errors import ClusterError, DeferredError, UsageError


def key_of(step: Step) -> str:
    """The resident that a step needs: the model's name, and what selects its weights beside that."""
    return f"{step.model} {sorted(step.load.items())}" if step.load else step.model


@dataclass(eq=False, slots=True)
class Work:
    """A call that was accepted.

    Attributes:
        call: what its caller said.
        steps: models of the chain, in order.
        parted: its frames; None when the models are only to be loaded.
        future: done when it is.
        arrived: monotonic time of arrival.
        models: one per step while it uses them; None before its first turn and after its last.
        waited: seconds from arrival to the first turn; None before that.
        ran: seconds of all turns so far.
        notices: what whoever uses the result must know.
    """

    call: Call
    steps: tuple[Step, ...]
    parted: PartedCall | None
    future: asyncio.Future[None]
    arrived: float = field(default_factory=time.monotonic)
    models: list[Model] | None = None
    waited: float | None = None
    ran: float = 0.0
    notices: list[str] = field(default_factory=list)

    @property
    def keys(self) -> list[str]:
        """The residents that it needs."""
        return [key_of(step) for step in self.steps]


class Performer:
    """Turns, residents and the thread that they share.

    Args:
        name: of the pin, for errors.
        residents: the models.
        load: loads a step's model.
        max_call_s: longest turn, where parts are short enough.
        on_turn: told of the call that has the next turn, on the thread, before anything is executed.
        share: of a GPU, for errors.
    """

    def __init__(
        self,
        name: str,
        residents: Residents[Model],
        load: Callable[[Step], Model],
        *,
        max_call_s: float,
        on_turn: Callable[[Work], None],
        on_end: Callable[[Work], None],
        share: float = 0.0,
    ) -> None:
        self.residents = residents
        self.turns: Turns[Work] = Turns()
        self._name = name
        self._load = load
        self._max_call_s = max_call_s
        self._on_turn = on_turn
        self._on_end = on_end
        self._share = share
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="performer")
        #: Micro-batch and tile that fitted after memory had run out, by resident: they outlive its unloading.
        self._fitting: dict[str, dict[str, int]] = {}
        self._executing: tuple[Work, float] | None = None
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    async def perform(self, steps: Sequence[Step], batch: FrameBatch, carries: Sequence[Carry], call: Call) -> Work:
        """Runs a chain on a batch; the result is in the returned work's `parted`.

        Raises:
            DeferredError: a call that must run alone is at work, or begins while this one waits.
            UsageError: the chain needs more models than there is room for.
            ClusterError: GPU memory runs out however small the work is made.
        """
        return await self._do(Work(call, tuple(steps), PartedCall(steps, batch, carries), _future()))

    async def load(self, steps: Sequence[Step]) -> None:
        """Has the steps' models resident; raises what loading raises."""
        await self._do(Work(Call("interactive"), tuple(steps), None, _future()))

    async def unload_idle(self, unused_s: float) -> None:
        """Unloads what nobody has used for so long."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._unload_idle, unused_s)

    @property
    def working_s(self) -> float:
        """How long the call that is being executed has been at work; 0 when none is."""
        executing = self._executing
        return 0.0 if executing is None else executing[0].ran + time.monotonic() - executing[1]

    async def _do(self, work: Work) -> Work:
        if not self.residents.fits(work.keys):
            raise UsageError(
                f"pin {self._name}",
                f"keeps {self.residents.room} models, and this chain needs {len(set(work.keys))} at once",
                remedy="raise its `resident` and deploy it again",
            )
        if any(begun.call.alone for begun in self.turns.begun()):
            raise self._deferred()
        self.turns.add(work, work.call.priority)
        if self._loop is None:
            self._loop = asyncio.create_task(self._give_turns())
        self._wake.set()
        try:
            await work.future
        finally:
            # Cancelled while it waited: it never runs. One that has begun is taken out between turns.
            if work not in self.turns.begun():
                self.turns.remove(work)
        return work

    async def _give_turns(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            for begun in self.turns.begun():
                if begun.future.done():
                    self._end(begun)
            work = self.turns.next(self._can_run)
            if work is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            if work.call.alone:
                for other in self.turns.waiting():
                    self.turns.remove(other)
                    _fail(other.future, self._deferred())
            self._executing = work, time.monotonic()
            try:
                await loop.run_in_executor(self._thread, self._turn, work)
            except Exception as error:
                _fail(work.future, error)
            finally:
                self._executing = None
            if not work.future.done() and (work.parted is None or work.parted.done):
                work.future.set_result(None)

    def _can_run(self, work: Work) -> bool:
        others = [begun for begun in self.turns.begun() if begun is not work]
        if work.call.alone and others:
            return False
        return work.models is not None or self.residents.has_room(work.keys)

    def _turn(self, work: Work) -> None:
        """On the thread: one turn of a call."""
        begun = time.monotonic()
        if work.waited is None:
            work.waited = begun - work.arrived
        self._on_turn(work)
        if work.models is None:
            by_key = {key_of(step): step for step in work.steps}
            work.models = self.residents.take(work.keys, lambda key: self._loaded(by_key[key]))
        if work.parted is not None:
            work.parted.work(work.models, partial(self._run_model, work), self._max_call_s)
        work.ran += time.monotonic() - begun

    def _run_model(
        self, work: Work, model: Model, step: Step, part: FrameBatch, carry: Carry
    ) -> tuple[FrameBatch, Carry]:
        def told(in_force: str) -> None:
            work.notices.append(f"pin {self._name}: CUDA out of memory, {step.model} goes on with {in_force}")
            self._fitting[key_of(step)] = {name: getattr(model, name) for name in SIZES if hasattr(model, name)}

        try:
            return run_shrinking(
                model, part, carry, step.params, make_room=lambda: self._unload_idle(0.0), on_shrink=told
            )
        except torch.OutOfMemoryError as error:
            width, height = part.size
            raise ClusterError(
                f"pin {self._name}",
                f"CUDA out of memory at batch 1, {width}x{height} ({step.model})",
                remedy=f"lower pins.{self._name}.tile or raise its num_gpus ({self._share:.2f})",
            ) from error

    def _loaded(self, step: Step) -> Model:
        model = self._load(step)
        for name, value in self._fitting.get(key_of(step), {}).items():
            setattr(model, name, value)
        return model

    def _unload_idle(self, unused_s: float) -> bool:
        gone = self.residents.unload_idle(unused_s)
        if gone and torch.cuda.is_available():
            torch.cuda.empty_cache()
        return bool(gone)

    def _end(self, work: Work) -> None:
        self.turns.remove(work)
        if work.models is not None:
            work.models = None
            self.residents.give_back(work.keys)
        self._on_end(work)

    def _deferred(self) -> DeferredError:
        return DeferredError(f"pin {self._name}", "runs a call alone that may end it", remedy="call again in a moment")


def _future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
