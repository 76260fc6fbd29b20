"""Refusing what does not fit before anything starts, with the sum shown."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from cluster.budget import Budget, make_budget, replicas_of
from cluster.cards import Card, local_cards
from cluster.config import BatchSettings, PinSettings
from cluster.errors import RoomError
from cluster.profiles import figures_for, shipped_profile
from cluster.room import Room, ask_cards, survey
from cluster.service_settings import ServiceSettings
from cluster.session import Session
from cluster.tables import as_table, budget_lines

#: One planner and one assembler, with a lane's share of a CPU each, are enough to go on; more wait their turn.
_TASKS = 2
_MIB = 2**20


def check_gpus(budget: Budget, holders: Sequence[str] = ()) -> None:
    """Refuses pins that do not find room on the GPUs.

    Args:
        budget: of the pins that are to start.
        holders: who else has a share, a line each.

    Raises:
        RoomError: with the table of the budget.
    """
    if budget.fits:
        return
    remedy = next((f"{remedy.change} makes it fit" for remedy in budget.remedies if remedy.fits), "")
    remedy = remedy or ("end what holds the rest" if holders else "see `troupe plan`")
    raise RoomError("GPU", budget.problems[0], budget_lines(budget, holders), remedy=remedy)


def check_cpus(
    settings: BatchSettings,
    pins: Sequence[PinSettings],
    lanes: int,
    room: Room,
    service: tuple[str, ServiceSettings] | None = None,
) -> None:
    """Refuses a batch, or pins alone where `lanes` is 0, that the CPUs do not suffice for.

    Args:
        settings: shares of lanes.
        pins: those that are needed, running or not.
        lanes: lanes that will run.
        room: what there is, and who holds CPUs already.
        service: the HTTP service's application and settings, when it starts with the pins.

    Raises:
        RoomError: with the sum.
    """
    cpus, gpus = sum(room.cpus.values()), sum(room.gpus.values())
    parts = {f"pin {pin.name}": pin.num_cpus * replicas_of(pin, gpus) for pin in pins}
    if lanes:
        parts |= {_lanes(lanes): lanes * settings.lane_cpus, "planning and assembly": _TASKS * settings.lane_cpus}
    names = [pin.name for pin in pins]
    if service is not None:
        name, of = service
        parts["HTTP service"] = of.replicas * of.runner_cpus
        names.append(name)
    held = room.held_cpus(without=names)
    if held:
        parts["held by others"] = held
    need = round(sum(parts.values()), 4)
    if need > cpus:
        raise RoomError(
            "CPUs",
            f"{need:g} are needed, and Ray has {cpus:g}",
            _sum_lines("CPUs", parts, cpus),
            remedy="lower troupe.batch.lanes, lane_cpus or a pin's num_cpus"
            + (", or end what holds the rest" * bool(held)),
        )


def check_store(session: Session, settings: BatchSettings, pins: Sequence[PinSettings], lanes: int) -> None:
    """Refuses a batch whose frames on their way would fill the object store.

    Raises:
        RoomError: with the sum.
    """
    # Each stage of each lane holds a window of batches, coming in and going out; Ray frees them within 50 ms.
    parts = {
        f"{_lanes(lanes)} x {settings.window + 1} batches x {settings.batch_mib} MiB, {where}": float(
            lanes * (settings.window + 1) * settings.batch_mib
        )
        for where in ("decoded", *(f"from pin {pin.name}" for pin in pins))
    }
    held, store = sum(parts.values()), session.object_store_bytes // _MIB
    if pins and held > store / 2:
        raise RoomError(
            "object store",
            f"{held:.0f} MiB of frames would be on their way, more than half of its {store} MiB",
            _sum_lines("MiB", parts, store / 2),
            remedy="lower troupe.batch.lanes, window or batch_mib, or give Ray a larger object store",
        )


def check_room(
    session: Session,
    settings: BatchSettings,
    pins: Sequence[PinSettings],
    lanes: int,
    room: Room,
    budget: Budget | None,
) -> None:
    """Checks CPUs, GPUs and object store for a batch.

    Args:
        session: what the cluster has.
        settings: shares and window.
        pins: those that the batch needs.
        lanes: lanes that will run.
        room: what is taken.
        budget: of those pins that are not running; None without a GPU.

    Raises:
        RoomError: with the sum and what would make it fit.
    """
    check_cpus(settings, pins, lanes, room)
    if budget is not None:
        check_gpus(budget, room.gpu_holders())
    check_store(session, settings, pins, lanes)


def gpu_budget(
    pins: Sequence[PinSettings], room: Room, environ: Mapping[str, str] = os.environ, *, replaced: Collection[str] = ()
) -> Budget | None:
    """The budget of pins that are to start on the connected Ray, None when it has no GPU.

    Args:
        pins: those that are to start.
        room: what is taken.
        environ: says where measurements are kept, and which cards of this machine are visible.
        replaced: running pins whose share becomes free.
    """
    free = room.free(without=replaced)
    if not free:
        return None
    card, assumed = card_of(room, environ)
    # What the driver says is used is Ray's own as soon as somebody in Ray holds a share.
    used = 0 if room.gpu_holders() else card.used_mib
    return make_budget(pins, card, figures_for(card.name, environ), free=free, assumed=assumed, used_mib=used)


def placed(pin: PinSettings, peers: Sequence[PinSettings] = ()) -> tuple[PinSettings, Literal["cpu", "cuda"]]:
    """A pin's settings with its share and its number of replicas filled in, and the device that it runs on.

    Args:
        pin: as configured.
        peers: pins that are deployed together with it.

    Raises:
        RoomError: they do not find room beside what others hold.
    """
    room = survey()
    together = [pin, *(peer for peer in peers if peer.name != pin.name)]
    names = [each.name for each in together]
    check_cpus(BatchSettings(), together, 0, room)
    on_cpu = pin.model_copy(update={"replicas": replicas_of(pin, 0)})
    if pin.num_gpus == 0:
        return on_cpu, "cpu"
    budget = gpu_budget(together, room, replaced=names)
    if budget is None:
        return on_cpu, "cpu"
    check_gpus(budget, room.gpu_holders(without=names))
    return budget.resolved(pin.name), "cuda"


def card_of(room: Room, environ: Mapping[str, str]) -> tuple[Card, bool]:
    """The smallest card of the cluster, and whether it is the reference card, assumed because no driver answers."""
    cards = local_cards(environ) or ask_cards(room)
    if cards:
        return min(cards, key=lambda card: card.total_mib), False
    shipped = shipped_profile()
    return Card(shipped.device, shipped.total_mib), True


def _lanes(count: int) -> str:
    return f"{count} lane{'s' * (count != 1)}"


def _sum_lines(unit: str, parts: Mapping[str, float], limit: float) -> list[str]:
    rows = [(name, f"{value:.10g}") for name, value in parts.items()]
    total = round(sum(parts.values()), 4)
    return as_table(("", unit), [*rows, ("in all", f"{total:.10g}"), ("at most", f"{limit:.10g}")])
