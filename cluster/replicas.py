"""The replicas of the pins: where they are (Ray's records, Serve's account) and what they say of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray import serve as ray_serve

from cluster.errors import TroupeError
from cluster.pins import describe
from cluster.room import survey

_ASK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Replica:
    """One process of a pin; None where it did not say.

    Attributes:
        pin: its name.
        state: Serve's: STARTING, RUNNING, STOPPING, …
        pid: its process.
        node: the address of its node.
        gpu_ids: the GPUs that Ray gave it, as their node counts.
        share: of a GPU.
        models: what it has loaded.
        loads, unloads: of models, since it started.
        waiting: calls in its queue.
        calls: done since it started.
        paused: why it takes no batch calls, empty when it does.
        message: Serve's, when something is wrong.
    """

    pin: str
    state: str
    pid: int
    node: str
    gpu_ids: tuple[int, ...]
    share: float
    models: tuple[str, ...] | None = None
    loads: int | None = None
    unloads: int | None = None
    waiting: int | None = None
    calls: int | None = None
    paused: str = ""
    message: str = ""


def read_replicas() -> list[Replica]:
    """Every replica of every Serve application whose one deployment has its name, as pins have."""
    try:
        details = ray_serve.context._get_global_client().get_serve_details()
    except ray_serve.exceptions.RayServeException:
        return []
    held = {holder.pid: holder for holder in survey().holders}
    found = []
    for name, application in sorted(details["applications"].items()):
        deployment = application["deployments"].get(name)
        if deployment is None:
            continue
        said = _told(name) if application["status"] == "RUNNING" else {}
        replicas = deployment["replicas"] or [{}]
        for replica in replicas:
            pid = replica.get("pid") or 0
            holder = held.get(pid)
            own = said.get(pid, {})
            found.append(
                Replica(
                    pin=name,
                    state=replica.get("state") or application["status"],
                    pid=pid,
                    node=replica.get("node_ip") or "",
                    gpu_ids=tuple(sorted(index for index in (holder.gpus if holder else {}) if index >= 0)),
                    share=holder.gpu if holder else 0.0,
                    message=deployment["message"],
                    **own,
                )
            )
    return found


def _told(pin: str) -> Mapping[int, dict[str, Any]]:
    """What replicas say of themselves, by process: one of them is asked."""
    try:
        answer = describe(pin, (), _ASK_SECONDS)
    except TroupeError:
        return {}
    own = {
        "models": tuple(answer["models"]),
        "loads": answer.get("loads"),
        "unloads": answer.get("unloads"),
        "calls": answer.get("calls"),
        "waiting": answer.get("waiting"),
        "paused": answer.get("paused") or "",
    }
    return {answer["pid"]: own}
