"""What does not fit is refused before anything starts, with the sum."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from cluster.config import PINS, BatchSettings, PinSettings
from cluster.errors import ClusterError, RoomError
from cluster.preflight import check_room, gpu_budget
from cluster.room import Holder, Room
from cluster.session import Session

GIB = 2**30
PAIR = (
    PinSettings(name="upscale", models=("realesr-animevideov3",), micro_batch=1),
    PinSettings(name="matte", models=("rvm-mobilenetv3",)),
)
SMALL = Session(joined=False, cpus=1, gpus=0, object_store_bytes=2 * GIB, submitted=False)


def room(cpus: float = 1, gpus: int = 0, *holders: Holder, free: float | None = None) -> Room:
    """One node; its account of free GPUs is what the holders leave, unless told otherwise."""
    held = sum(holder.gpu for holder in holders if not holder.waiting)
    return Room({"n": cpus}, {"n": gpus}, {"n": gpus - held if free is None else free}, holders)


def holder(name: str, gpu: float = 0, *, cpus: float = 0, application: str = "", waiting: bool = False) -> Holder:
    gpus = {(-1 if waiting else 0): gpu} if gpu else {}
    return Holder(name, application, 0 if waiting else 7, "" if waiting else "n", cpus, gpus, waiting)


def check(pins: tuple[PinSettings, ...], there: Room, *, lanes: int = 1, batch: BatchSettings | None = None) -> None:
    starting = [pin for pin in pins if pin.name not in there.replicas]
    session = replace(SMALL, cpus=sum(there.cpus.values()), gpus=sum(there.gpus.values()))
    budget = gpu_budget(starting, there, {"CUDA_VISIBLE_DEVICES": ""})
    check_room(session, batch or BatchSettings(), pins, lanes, there, budget)


def pins(**shares: float) -> tuple[PinSettings, ...]:
    return tuple(PinSettings(name=name, models=(f"model-{name}",), num_gpus=share) for name, share in shares.items())


@pytest.fixture(autouse=True)
def _no_other_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.preflight.ask_cards", lambda _: ())


def test_the_defaults_fit_one_cpu_without_a_gpu() -> None:
    check(PINS, room())
    check(PAIR, room())


def test_the_defaults_fit_one_gpu() -> None:
    check(PINS, room(8, 1), lanes=2)
    check(PAIR, room(8, 1), lanes=2)


def test_too_many_lanes_for_the_cpus_are_refused_with_the_sum() -> None:
    with pytest.raises(RoomError) as refused:
        check(PAIR, room(), lanes=9)
    text = str(refused.value)
    assert text.startswith("CPUs: 1.3 are needed, and Ray has 1; lower troupe.batch.lanes")
    rows = [line.split() for line in refused.value.table]
    for row in (
        "pin upscale 0.1",
        "pin matte 0.1",
        "9 lanes 0.9",
        "planning and assembly 0.2",
        "in all 1.3",
        "at most 1",
    ):
        assert row.split() in rows


def test_cpus_that_others_hold_are_counted_and_those_of_running_pins_only_once() -> None:
    running = room(1, 0, holder("x", cpus=0.1, application="upscale"), holder("Trainer", cpus=0.5))
    check(PAIR, running)
    with pytest.raises(RoomError, match=r"CPUs: 1\.1 are needed") as refused:
        check(PAIR, running, lanes=2)
    assert ["held", "by", "others", "0.5"] in [line.split() for line in refused.value.table]
    assert "or end what holds the rest" in str(refused.value)


def test_pins_that_share_a_gpu_they_do_not_fit_are_refused() -> None:
    with pytest.raises(ClusterError, match=r"GPU: the pins take 1\.2 of 1 GPU; .*run without pin a"):
        check(pins(a=0.6, b=0.6), room(1, 1))
    check(pins(a=0.6, b=0.6), room())  # without a GPU they run on the CPU


def test_every_replica_takes_its_share() -> None:
    three = tuple(pin.model_copy(update={"replicas": 3}) for pin in pins(a=0.4))
    with pytest.raises(ClusterError, match=r"the pins take 1\.2 of 1 GPU"):
        check(three, room(1, 1))
    check(three, room(1, 2))


def test_share_that_somebody_else_holds_is_refused_with_the_holder() -> None:
    with pytest.raises(RoomError) as refused:
        check(pins(a=0.6), room(1, 1, holder("Trainer", 0.6)))
    text = str(refused.value)
    assert "the pins take 0.6 of 1 GPU, of which others hold 0.6" in text
    assert "actor Trainer (process 7) holds 0.6 GPU" in text


def test_share_that_a_running_pin_holds_is_its_own() -> None:
    check(pins(a=0.6), room(1, 1, holder("x", 0.6, application="a")))
    with pytest.raises(RoomError, match=r"others hold 0\.6"):
        check(pins(b=0.6), room(1, 1, holder("x", 0.6, application="a")))


def test_share_that_tasks_or_placement_groups_hold_is_seen_in_the_node_s_account() -> None:
    with pytest.raises(RoomError, match=r"tasks or placement groups hold 0\.5 GPU"):
        check(pins(a=0.6), room(1, 1, free=0.5))


def test_actor_of_somebody_else_that_waits_is_no_obstacle_and_a_replica_that_waits_is() -> None:
    check(pins(a=0.6), room(1, 1, holder("Dreamer", 5, waiting=True)))
    with pytest.raises(RoomError, match=r"application c waits for 0\.6 GPU"):
        check(pins(a=0.6), room(1, 1, holder("x", 0.6, application="c", waiting=True)))


def test_object_store_that_the_window_would_fill_is_refused_with_the_sum() -> None:
    with pytest.raises(RoomError) as refused:
        check_room(replace(SMALL, object_store_bytes=GIB), BatchSettings(batch_mib=64), PAIR, 1, room(), None)
    text = str(refused.value)
    assert "object store: 768 MiB of frames would be on their way, more than half of its 1024 MiB" in text
    assert "1 lane x 4 batches x 64 MiB, from pin matte" in text


def test_a_job_without_pins_needs_no_object_store() -> None:
    check_room(replace(SMALL, object_store_bytes=0), BatchSettings(), (), 1, room(), None)


def test_refusal_survives_the_way_between_processes() -> None:
    error = RoomError("GPU", "does not fit", ["a table", "of two lines"], remedy="buy another")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is RoomError
    assert str(again) == str(error) == "GPU: does not fit; buy another\n  a table\n  of two lines"
