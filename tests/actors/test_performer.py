"""The performer: requests wait for a turn of batch and no longer, models in use stay, suspects go alone."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from actors.device import DeviceBatch, DeviceModel
from actors.frames import Carry, FrameBatch
from actors.model import Model, Step
from actors.performer import Performer, Work
from actors.residency import Residents
from cluster.calls import Call
from cluster.errors import ClusterError, DeferredError, UsageError

T = TypeVar("T")


class Fake:
    """Negates frames; says which it was given, and can be made to wait."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log
        self.loaded = True
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, batch: FrameBatch, carry: Carry, params: Mapping[str, Any]) -> tuple[FrameBatch, Carry]:
        assert self.loaded, f"{self.name} was unloaded in use"
        assert self.gate.wait(20)
        if params.get("fails"):
            raise ValueError("not to its taste")
        self.log.append(f"{params.get('who', '')}{batch.pts[0]}")
        assert self.loaded, f"{self.name} was unloaded in use"
        return batch.with_pixels(255 - batch.rgb), carry


class Stage:
    """A performer with fake models, and what happened on it."""

    def __init__(self, room: int = 2, max_call_s: float = 0.0) -> None:
        self.log: list[str] = []
        self.models: dict[str, Fake] = {}
        self.turns: list[str] = []
        self.finished: list[str] = []
        self.gates: dict[str, threading.Event] = {}
        self.performer = Performer(
            "test",
            Residents(room, self._unload),
            self._load,
            max_call_s=max_call_s,
            watch=self,
            share=0.3,
        )

    def turn_begins(self, work: Work) -> None:
        self.turns.append(work.call.key)

    def failed(self, error: Exception) -> None:
        self.log.append(f"a turn failed: {type(error).__name__}")

    def ended(self, work: Work) -> None:
        self.finished.append(work.call.key)

    def shrunk(self, step: Step, model: Model) -> None:
        self.log.append(f"{step.model} shrunk to {model.micro_batch}")  # type: ignore[attr-defined]

    def _load(self, step: Step) -> Model:
        model = self.models[step.model] = Fake(step.model, self.log)
        if step.model in self.gates:
            model.gate = self.gates[step.model]
        return model

    def _unload(self, key: str) -> None:
        self.models[key].loaded = False

    async def call(
        self, who: str, model: str = "a", frames: int = 1, priority: str = "batch", alone: bool = False, **params: Any
    ) -> Work:
        chain = [Step(name, {}, {"who": who, **params}) for name in model]
        rgb = np.full((frames, 2, 2, 3), 7, np.uint8)
        batch = FrameBatch(rgb, np.arange(frames), np.zeros(frames, np.bool_))
        return await self.performer.perform(chain, batch, [{}] * len(chain), Call(priority, who, alone))  # type: ignore[arg-type]

    def closed(self, model: str) -> threading.Event:
        """A model that waits inside its call until this is set."""
        return self.gates.setdefault(model, threading.Event())


def run(body: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return asyncio.run(asyncio.wait_for(body(), 60))


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_request_goes_between_the_turns_of_a_batch_call() -> None:
    stage = Stage()
    gate = stage.closed("a")

    async def body() -> None:
        batch = asyncio.create_task(stage.call("b", frames=3))
        await until(lambda: stage.turns)
        request = asyncio.create_task(stage.call("i", "c", priority="interactive"))
        other = asyncio.create_task(stage.call("o"))
        await asyncio.sleep(0)
        gate.set()
        works = await asyncio.gather(batch, request, other)
        assert [work.waited is not None and work.ran > 0 for work in works] == [True] * 3
        made, _ = works[0].parted.result  # type: ignore[union-attr]
        assert (made.rgb == 248).all()

    run(body)
    assert stage.log == ["b0", "i0", "b1", "b2", "o0"]
    assert stage.turns == ["b", "i", "b", "b", "o"]
    assert stage.finished == ["i", "b", "o"]


def test_batch_gives_way_to_a_request_at_the_border_of_a_part_but_not_in_a_turn_of_its_share() -> None:
    stage = Stage(max_call_s=60)
    gate = stage.closed("a")

    async def body() -> None:
        batch = asyncio.create_task(stage.call("b", frames=3))
        await until(lambda: stage.turns)
        requests = [asyncio.create_task(stage.call(f"i{n}-", "c", priority="interactive")) for n in range(12)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(batch, *requests)

    run(body)
    # One part, nine requests, and then all that is left in the one turn that is its share.
    assert stage.log == ["b0", *(f"i{n}-0" for n in range(9)), "b1", "b2", *(f"i{n}-0" for n in range(9, 12))]


def test_long_turns_do_as_many_parts_as_fit() -> None:
    stage = Stage(max_call_s=60)
    run(lambda: stage.call("b", frames=5))
    assert stage.turns == ["b"]
    assert len(stage.log) == 5


def test_three_models_with_room_for_two_under_a_thousand_calls_never_lose_one_in_use() -> None:
    stage, dice = Stage(room=2), random.Random(1)

    async def body() -> None:
        calls = [
            stage.call(
                str(number),
                dice.choice(("a", "b", "c", "ab", "ca")),
                frames=dice.randint(1, 3),
                priority=dice.choice(("interactive", "batch")),
            )
            for number in range(1000)
        ]
        await asyncio.gather(*calls)

    run(body)
    assert sorted(stage.finished, key=int) == [str(number) for number in range(1000)]
    residents = stage.performer.residents
    assert residents.loads - residents.unloads == len(residents.keys) == 2
    assert residents.unloads > 2


def test_request_whose_model_has_no_room_waits_for_the_batch_call_and_goes_next() -> None:
    stage = Stage(room=2)
    gate = stage.closed("a")

    async def body() -> None:
        batch = asyncio.create_task(stage.call("b", "ab", frames=2))
        await until(lambda: stage.turns)
        rest = [stage.call("o", "ab"), stage.call("i", "c", priority="interactive")]
        tasks = [asyncio.create_task(each) for each in rest]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(batch, *tasks)

    run(body)
    assert stage.finished == ["b", "i", "o"]


def test_chain_of_more_models_than_there_is_room_for_is_refused() -> None:
    with pytest.raises(UsageError, match="pin test: keeps 2 models, and this chain needs 3 at once; raise its `res"):
        run(lambda: Stage(room=2).call("b", "abc"))


def test_cancelled_call_that_waits_never_runs_and_one_at_work_ends_after_its_turn() -> None:
    stage = Stage()
    gate = stage.closed("a")

    async def body() -> None:
        first = asyncio.create_task(stage.call("x", frames=9))
        await until(lambda: stage.turns)
        second, third = asyncio.create_task(stage.call("y")), asyncio.create_task(stage.call("z"))
        await asyncio.sleep(0)
        first.cancel()
        second.cancel()
        await asyncio.sleep(0)
        gate.set()
        await third

    run(body)
    assert stage.log == ["x0", "z0"]
    assert stage.performer.turns.begun() == []
    assert stage.performer.residents.unload_idle() == ["a"]


def test_error_of_a_model_is_its_caller_s_alone() -> None:
    stage = Stage()

    async def body() -> None:
        failing, fine = stage.call("x", fails=True), stage.call("y")
        failed, done = await asyncio.gather(failing, fine, return_exceptions=True)
        assert isinstance(failed, ValueError)
        assert isinstance(done, Work)
        assert "a turn failed: ValueError" in stage.log

    run(body)


def test_frames_of_a_failed_call_are_let_go_though_its_error_is_kept() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    class Failing(DeviceModel):
        device = torch.device("cpu")

        def on_device(self, batch: DeviceBatch, carry: Carry, params: Mapping[str, Any]) -> Any:  # noqa: ARG002
            buffer = torch.zeros(1000)
            kept.append(weakref.ref(buffer))
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    stage = Stage()
    stage.performer._load = lambda _: Failing()

    async def body() -> BaseException:
        (error,) = await asyncio.gather(stage.call("x"), return_exceptions=True)
        assert isinstance(error, RuntimeError)
        return error

    error = run(body)
    assert "illegal memory access" in str(error)
    assert kept[0]() is None


def test_suspect_runs_alone_and_the_others_are_sent_back() -> None:
    stage = Stage()
    gate = stage.closed("a")

    async def body() -> list[Any]:
        before = asyncio.create_task(stage.call("b", frames=2))
        await until(lambda: stage.turns)
        waiting = [asyncio.create_task(each) for each in (stage.call("s", alone=True, frames=2), stage.call("o"))]
        await asyncio.sleep(0)
        gate.set()
        await before
        gate.clear()
        await until(lambda: stage.turns[-1] == "s")
        late = asyncio.create_task(stage.call("l", priority="interactive"))
        await asyncio.sleep(0)
        gate.set()
        return await asyncio.gather(*waiting, late, return_exceptions=True)

    suspect, other, late = run(body)
    assert isinstance(suspect, Work)
    assert isinstance(other, DeferredError)
    assert isinstance(late, DeferredError)
    assert stage.log == ["b0", "b1", "s0", "s1"]


def test_out_of_memory_at_the_floor_names_the_pin_the_size_and_the_remedy() -> None:
    class Full:
        micro_batch, tile = 2, 128

        def __call__(self, *_: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

    performer = Performer(
        "upscale",
        Residents(1, lambda _: None),
        lambda _: Full(),
        max_call_s=1,
        watch=Stage(),
        share=0.3,
    )
    batch = FrameBatch(np.zeros((1, 1080, 1920, 3), np.uint8), np.zeros(1, np.int64), np.zeros(1, np.bool_))
    said = (
        r"pin upscale: CUDA out of memory at batch 1, 1920x1080 \(net\); "
        r"lower pins.upscale.tile or raise its num_gpus \(0.30\)"
    )
    with pytest.raises(ClusterError, match=said):
        run(lambda: performer.perform([Step("net")], batch, [{}], Call()))


def test_working_size_is_told_and_outlives_an_unloading() -> None:
    class Tight(Fake):
        micro_batch = 8

        def __call__(self, batch: FrameBatch, carry: Carry, params: Mapping[str, Any]) -> tuple[FrameBatch, Carry]:
            if self.micro_batch > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().__call__(batch, carry, params)

    stage = Stage()
    loaded: list[Tight] = []

    def load(step: Step) -> Model:
        loaded.append(Tight(step.model, stage.log))
        stage.models[step.model] = loaded[-1]
        return loaded[-1]

    stage.performer._load = load

    async def body() -> tuple[Work, Work]:
        first = await stage.call("x")
        await asyncio.wrap_future(stage.performer.unload_idle(0))
        return first, await stage.call("y")

    first, second = run(body)
    assert first.notices == [f"pin test: CUDA out of memory, a goes on with micro-batch {size}" for size in (4, 2)]
    # The frames of later calls may differ too: they say so as well.
    assert second.notices == ["pin test: CUDA memory was short before, a works at micro-batch 2"]
    assert [model.micro_batch for model in loaded] == [2, 2]


def test_frames_stay_on_the_device_between_the_models_of_a_chain() -> None:
    passed: list[torch.Tensor] = []

    class Inverting(DeviceModel):
        device = torch.device("cpu")

        def on_device(self, batch: DeviceBatch, carry: Carry, _: Mapping[str, Any]) -> tuple[DeviceBatch, Carry]:
            made = batch.with_pixels(255 - batch.rgb)
            passed.extend((batch.rgb, made.rgb))
            return made, carry

    stage = Stage(room=3)
    load = stage.performer._load
    stage.performer._load = lambda step: load(step) if step.model == "a" else Inverting()
    work = run(lambda: stage.call("x", "dea"))
    assert passed[1] is passed[2], "the second model was given another tensor than the first one made"
    assert work.parted is not None
    assert (work.parted.result[0].rgb == 248).all()


def test_held_batch_waits_requests_do_not_and_it_goes_on_when_released() -> None:
    stage = Stage()

    async def body() -> None:
        await stage.call("first")
        stage.performer.hold("GPU 0 at 90 °C, over 83")
        batch = asyncio.create_task(stage.call("b"))
        await stage.call("i", priority="interactive")
        assert not batch.done()
        await asyncio.to_thread(stage.performer.hold, "")
        await batch

    run(body)
    assert stage.finished == ["first", "i", "b"]


def test_time_at_work_counts_the_call_s_own_turns_alone() -> None:
    stage = Stage()
    gate = stage.closed("a")

    async def body() -> None:
        assert stage.performer.working_s == 0
        task = asyncio.create_task(stage.call("x"))
        await until(lambda: stage.turns)
        begun = time.monotonic()
        while stage.performer.working_s < 0.05:
            await asyncio.sleep(0.001)
        assert stage.performer.working_s < time.monotonic() - begun + 1
        gate.set()
        await task
        assert stage.performer.working_s == 0

    run(body)
