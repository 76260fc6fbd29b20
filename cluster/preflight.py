"""Refusing what does not fit before anything starts, with the sum shown."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.config import BatchSettings, PinSettings
from cluster.errors import ClusterError
from cluster.session import Session

#: One planner and one assembler, with a lane's share of a CPU each, are enough to go on; more wait their turn.
_TASKS = 2
_MIB = 2**20


def check_room(session: Session, settings: BatchSettings, pins: Sequence[PinSettings], lanes: int) -> None:
    """Checks CPUs, GPUs and object store for a batch.

    Args:
        session: what the cluster has.
        settings: shares and window.
        pins: those that the batch will start; running ones are counted already.
        lanes: lanes that will run.

    Raises:
        ClusterError: with the sum and what would make it fit.
    """
    parts = {f"pin {pin.name}": pin.num_cpus * pin.replicas for pin in pins}
    parts |= {f"{lanes} lanes": lanes * settings.lane_cpus, "planning and assembly": _TASKS * settings.lane_cpus}
    need = sum(parts.values())
    if need > session.cpus:
        total = " + ".join(f"{name} {cpus:g}" for name, cpus in parts.items())
        raise ClusterError(
            "CPUs",
            f"{total} = {need:g} are more than the {session.cpus:g} that Ray has",
            remedy="lower troupe.batch.lanes, lane_cpus or a pin's num_cpus",
        )
    gpus = sum(pin.num_gpus * pin.replicas for pin in pins)
    if session.gpus and gpus > session.gpus:
        raise ClusterError(
            "GPUs",
            f"the pins ask for {gpus:g} of {session.gpus:g}",
            remedy="lower their num_gpus or replicas, or give one pin all models",
        )
    # Each stage of each lane holds a window of batches, coming in and going out; Ray frees them within 50 ms.
    held = lanes * (settings.window + 1) * (len(pins) + 1) * settings.batch_mib
    store = session.object_store_bytes // _MIB
    if pins and held > store / 2:
        raise ClusterError(
            "object store",
            f"{lanes} lanes x {settings.window + 1} batches x {len(pins) + 1} hops x {settings.batch_mib} MiB = "
            f"{held} MiB are more than half of its {store} MiB",
            remedy="lower troupe.batch.lanes, window or batch_mib, or give Ray a larger object store",
        )
