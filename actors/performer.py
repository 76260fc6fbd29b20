"""The performer: executes calls on resident models, in turns, on one thread. Knows nothing of Ray.

Everything but the models themselves happens on one event loop. A call has a turn of at most `max_call_s`, stops at the
border of a part, and whoever is first then has the next turn. Batch gives way at the next such border when a request
comes: it waits for a part, not for a call.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch

from actors.device import DeviceBatch, DeviceModel, download, upload
from actors.frames import Carry, FrameBatch
from actors.model import Model, Step
from actors.parts import PartedCall
from actors.residency import Residents
from actors.shrink import SIZES, run_shrinking
from actors.turns import Turns
from cluster.calls import Call
from cluster.errors import ClusterError, DeferredError, UsageError


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
        return [step.key for step in self.steps]


class Watch(Protocol):
    """Who wants to know what happens."""

    def turn_begins(self, work: Work) -> None:
        """A call has the next turn; told on the execution thread, before anything is executed."""
        ...

    def failed(self, error: Exception) -> None:
        """A turn ended with an error; told on the execution thread, before its caller is."""
        ...

    def ended(self, work: Work) -> None:
        """A call is through, failed, or nobody wants it any more; told on the event loop, before its caller is."""
        ...

    def shrunk(self, step: Step, model: Model) -> None:
        """Memory ran out, and the call is tried again with a smaller model; told on the execution thread."""
        ...


class Performer:
    """Turns, residents and the thread that they share.

    Args:
        name: of the pin, for errors.
        residents: the models.
        load: loads a step's model.
        max_call_s: longest turn, where parts are short enough.
        watch: is told of everything.
        share: of a GPU, for errors.
    """

    def __init__(
        self,
        name: str,
        residents: Residents[Model],
        load: Callable[[Step], Model],
        *,
        max_call_s: float,
        watch: Watch,
        share: float = 0.0,
    ) -> None:
        self.residents = residents
        self.turns: Turns[Work] = Turns()
        self._name = name
        self._load = load
        self._max_call_s = max_call_s
        self._watch = watch
        self._share = share
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="performer")
        #: Micro-batch and tile that fitted after memory had run out, by resident: they outlive its unloading.
        self._fitting: dict[str, dict[str, int]] = {}
        self._executing: tuple[Work, float] | None = None
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._giving: asyncio.Task[None] | None = None

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

    def unload_idle(self, unused_s: float) -> Future[bool]:
        """Unloads, between turns, what nobody has used for so long; says whether there was any. From any thread."""
        return self._thread.submit(self._unload_idle, unused_s)

    def hold(self, reason: str) -> None:
        """Begins no batch call any more, or, with an empty reason, goes on. From any thread."""
        if reason != self.turns.held:
            self.turns.held = reason
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._wake.set)

    @property
    def working_s(self) -> float:
        """How long the call that is being executed has been at work without an end of a part; 0 when none is."""
        executing = self._executing
        return 0.0 if executing is None else time.monotonic() - executing[1]

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
        if self._giving is None:
            self._loop = asyncio.get_running_loop()
            self._giving = self._loop.create_task(self._give_turns())
        self._wake.set()
        try:
            await work.future
        finally:
            # Cancelled or sent back while it waited: it never runs. One that has begun is taken out between turns.
            if work.waited is None and work not in self.turns.begun():
                self.turns.remove(work)
                self._watch.ended(work)
        return work

    async def _give_turns(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._end_done()
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
                _release_frames(error)
                _fail(work.future, error)
            finally:
                self._executing = None
            if not work.future.done() and (work.parted is None or work.parted.done):
                work.future.set_result(None)
            # While nothing is to do, the last call's frames would stay in memory with it.
            del work

    def _end_done(self) -> None:
        for begun in self.turns.begun():
            if begun.future.done():
                self._end(begun)

    def _can_run(self, work: Work) -> bool:
        others = [begun for begun in self.turns.begun() if begun is not work]
        if work.call.alone and others:
            return False
        return work.models is not None or self.residents.has_room(work.keys)

    def _turn(self, work: Work) -> None:
        """On the thread: one turn of a call."""
        try:
            self._take_turn(work)
        except Exception as error:
            self._watch.failed(error)
            raise

    def _take_turn(self, work: Work) -> None:
        begun = time.monotonic()
        if work.waited is None:
            work.waited = begun - work.arrived
        self._watch.turn_begins(work)
        if work.models is None:
            by_key = {step.key: step for step in work.steps}
            work.models = self.residents.take(work.keys, lambda key: self._loaded(by_key[key]))
            self._tell_sizes(work)
        if work.parted is not None:
            run, gives_way = partial(self._run_model, work), partial(self._gives_way, work)
            work.parted.work(work.models, run, self._max_call_s, gives_way)
        work.ran += time.monotonic() - begun

    def _gives_way(self, work: Work) -> bool:
        """After each part: whether batch ends its turn because a request came; not one that it has by its share."""
        self._executing = work, time.monotonic()
        return work.call.priority == "batch" and not self.turns.by_share and self.turns.count("interactive") > 0

    def _run_model(
        self, work: Work, model: Model, step: Step, part: FrameBatch | DeviceBatch, carry: Carry
    ) -> tuple[FrameBatch | DeviceBatch, Carry]:
        def call() -> tuple[FrameBatch | DeviceBatch, Carry]:
            if isinstance(model, DeviceModel):
                there = part if isinstance(part, DeviceBatch) else upload(part, model.device)
                return model.on_device(there, carry, step.params)
            return model(download(part) if isinstance(part, DeviceBatch) else part, carry, step.params)

        def told(in_force: str) -> None:
            work.notices.append(f"pin {self._name}: CUDA out of memory, {step.model} goes on with {in_force}")
            self._fitting[step.key] = {name: getattr(model, name) for name in SIZES if hasattr(model, name)}
            self._watch.shrunk(step, model)

        try:
            return run_shrinking(call, model, part.size, make_room=lambda: self._unload_idle(0.0), on_shrink=told)
        except torch.OutOfMemoryError as error:
            width, height = part.size
            raise ClusterError(
                f"pin {self._name}",
                f"CUDA out of memory at batch 1, {width}x{height} ({step.model})",
                remedy=f"lower pins.{self._name}.tile or raise its num_gpus ({self._share:.2f})",
            ) from error

    def _tell_sizes(self, work: Work) -> None:
        """A call on models that were made smaller by an earlier one says so too: its pixels may differ as well."""
        for step in work.steps:
            if sizes := self._fitting.get(step.key):
                in_force = " and ".join(f"{name.replace('_', '-')} {value}" for name, value in sizes.items() if value)
                work.notices.append(f"pin {self._name}: CUDA memory was short before, {step.model} works at {in_force}")

    def _loaded(self, step: Step) -> Model:
        try:
            model = self._load(step)
        except torch.OutOfMemoryError:
            model = None
        if model is None:
            self._unload_idle(0.0)
            try:
                model = self._load(step)
            except torch.OutOfMemoryError as error:
                raise ClusterError(
                    f"pin {self._name}",
                    f"CUDA out of memory while {step.model} was loaded",
                    remedy=f"raise its num_gpus ({self._share:.2f}) or lower its `resident`",
                ) from error
        for name, value in self._fitting.get(step.key, {}).items():
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
        self._watch.ended(work)

    def _deferred(self) -> DeferredError:
        return DeferredError(f"pin {self._name}", "runs a call alone that may end it", remedy="call again in a moment")


def _release_frames(error: BaseException | None) -> None:
    """Lets go of the tensors that a failed call had: its error is kept, and with it every frame of the traceback."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
