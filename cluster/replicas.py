"""The replicas of the pins: where they are (Ray's records, Serve's account) and what they say of themselves."""

from __future__ import annotations

from dataclasses import dataclass

from ray import serve as ray_serve

from cluster.callboard import Callboard
from cluster.room import survey


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
        loading: what it is loading now, empty when nothing.
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
    loading: str = ""
    loads: int | None = None
    unloads: int | None = None
    waiting: int | None = None
    calls: int | None = None
    paused: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A part of the HTTP service: how many of its processes run, and Serve's message when something is wrong."""

    application: str
    name: str
    state: str
    running: int
    wanted: int
    message: str


def read_deployments() -> list[Deployment]:
    """Every deployment of every Serve application that is no pin."""
    try:
        details = ray_serve.context._get_global_client().get_serve_details()
    except ray_serve.exceptions.RayServeException:
        return []
    return [
        Deployment(
            application=name,
            name=part,
            state=deployment["status"],
            running=sum(replica.get("state") == "RUNNING" for replica in deployment["replicas"]),
            wanted=deployment["target_num_replicas"],
            message=deployment["message"],
        )
        for name, application in sorted(details["applications"].items())
        if name not in application["deployments"]
        for part, deployment in sorted(application["deployments"].items())
    ]


def read_replicas() -> list[Replica]:
    """Every replica of every Serve application whose one deployment has its name, as pins have."""
    try:
        details = ray_serve.context._get_global_client().get_serve_details()
    except ray_serve.exceptions.RayServeException:
        return []
    held = {holder.pid: holder for holder in survey().holders}
    said = {(state["pin"], state["pid"]): state for state in Callboard().states().values()}
    found = []
    for name, application in sorted(details["applications"].items()):
        deployment = application["deployments"].get(name)
        if deployment is None:
            continue
        replicas = deployment["replicas"] or [{}]
        for replica in replicas:
            pid = replica.get("pid") or 0
            holder = held.get(pid)
            own = said.get((name, pid), {})
            found.append(
                Replica(
                    pin=name,
                    state=replica.get("state") or application["status"],
                    pid=pid,
                    node=replica.get("node_ip") or "",
                    gpu_ids=tuple(sorted(index for index in (holder.gpus if holder else {}) if index >= 0)),
                    share=holder.gpu if holder else 0.0,
                    models=tuple(own["models"]) if own else None,
                    loading=own.get("loading", ""),
                    loads=own.get("loads"),
                    unloads=own.get("unloads"),
                    waiting=sum(own["waiting"].values()) if own else None,
                    calls=own.get("calls"),
                    paused=own.get("held", ""),
                    message=deployment["message"],
                )
            )
    return found
