"""What is taken in the connected Ray, and by whom: GPUs and CPUs that actors hold, pins of ours among them.

Read from Ray's own records (the table of actors, and each node's free resources), which takes milliseconds and starts
nothing. Needs a connected Ray.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.cards import Card, local_cards

#: Nodes tell what is free a moment after they gave it away or got it back.
_SETTLE_SECONDS = 0.5
_ASK_SECONDS = 5  # a new process imports for a second or two
_TINY = 0.0005


@dataclass(frozen=True, slots=True)
class Holder:
    """An actor that holds CPUs or GPUs, or is about to.

    Attributes:
        name: its own name, or its class's.
        application: the Serve application whose replica it is, a pin's name as a rule; empty for anything else.
        pid: its process, 0 before it has one.
        node: id of its node, empty before it has one.
        cpus: what it holds.
        gpus: what it holds, by the GPU's number on its node; of an actor that waits, all under -1.
        waiting: True when it has no place yet.
    """

    name: str
    application: str
    pid: int
    node: str
    cpus: float
    gpus: Mapping[int, float]
    waiting: bool

    @property
    def gpu(self) -> float:
        """Of all GPUs together."""
        return sum(self.gpus.values())


@dataclass(frozen=True, slots=True)
class Room:
    """What there is and who holds it.

    Attributes:
        cpus, gpus: by node.
        free_gpus: what each node says is free.
        holders: actors.
    """

    cpus: Mapping[str, float]
    gpus: Mapping[str, int]
    free_gpus: Mapping[str, float] = field(default_factory=dict)
    holders: tuple[Holder, ...] = ()

    @property
    def replicas(self) -> dict[str, int]:
        """Replicas that run or are starting, by Serve application."""
        return dict(Counter(holder.application for holder in self.holders if holder.application))

    def held_cpus(self, *, without: Collection[str] = ()) -> float:
        """CPUs that actors hold, those of the named pins not counted."""
        return round(sum(holder.cpus for holder in self._others(without)), 4)

    def free(self, *, without: Collection[str] = ()) -> tuple[float, ...]:
        """Of each GPU the share that is free for pins that are to start.

        Args:
            without: pins that will be replaced; what they hold counts as free.
        """
        room = {(node, index): 1.0 for node, count in self.gpus.items() for index in range(count)}
        for holder in self._others(without):
            for index, share in holder.gpus.items():
                # Somebody else's actor that waits may wait for ever; a pin's replica is on its way.
                if not holder.waiting or holder.application:
                    _take(room, holder.node, index, share)
        for node, share in self.unexplained.items():
            _take(room, node, -1, share)
        return tuple(round(max(0.0, share), 4) for share in room.values())

    def gpu_holders(self, *, without: Collection[str] = ()) -> list[str]:
        """Who has a share, a line each, the named pins not counted."""
        lines = []
        for holder in self._others(without):
            if holder.gpu > _TINY:
                what = f"application {holder.application}" if holder.application else f"actor {holder.name}"
                state = "waits for" if holder.waiting else f"(process {holder.pid}) holds"
                lines.append(f"{what} {state} {holder.gpu:g} GPU")
        return [*lines, *(f"tasks or placement groups hold {share:g} GPU" for share in self.unexplained.values())]

    def _others(self, without: Collection[str]) -> Iterator[Holder]:
        return (holder for holder in self.holders if not holder.application or holder.application not in without)

    @property
    def unexplained(self) -> dict[str, float]:
        """GPU shares by node that tasks or placement groups hold: taken, and by no actor in the table."""
        found = {}
        for node, count in self.gpus.items():
            if node in self.free_gpus:
                by_actors = sum(holder.gpu for holder in self.holders if holder.node == node)
                rest = count - self.free_gpus[node] - by_actors
                if rest > _TINY:
                    found[node] = round(rest, 4)
        return found


def _take(room: dict[tuple[str, int], float], node: str, index: int, share: float) -> None:
    if index >= 0:
        if (node, index) in room:
            room[node, index] -= share
        return
    # Which GPU is not known: Ray fills them from the first on.
    for key in [key for key in room if not node or key[0] == node]:
        taken = min(room[key], share)
        room[key] -= taken
        share -= taken


def survey() -> Room:
    """The room in the connected Ray.

    Where a node's own account and the table of actors differ, it is asked again for half a second: an actor that has
    just ended is still in the one or the other.
    """
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        room = _survey()
        if not room.unexplained or time.monotonic() > deadline:
            return room
        time.sleep(0.05)


def _survey() -> Room:
    import ray
    from ray._private.state import state

    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    free = state.available_resources_per_node()
    return Room(
        cpus={node: float(resources.get("CPU", 0)) for node, resources in nodes.items()},
        gpus={node: int(resources.get("GPU", 0)) for node, resources in nodes.items()},
        free_gpus={node: float(free.get(node, {}).get("GPU", 0)) for node in nodes if node in free},
        holders=tuple(_holders(state)),
    )


def _holders(state: Any) -> Iterator[Holder]:
    """Actors of all jobs, from the protocol messages: Ray's own Python view of them leaves the resources out."""
    from ray.core.generated.gcs_pb2 import ActorTableData

    accessor = state._connect_and_get_accessor()
    for message in accessor.get_actor_table(None, None):
        actor = ActorTableData.FromString(message)
        if actor.state not in (ActorTableData.ALIVE, ActorTableData.PENDING_CREATION, ActorTableData.RESTARTING):
            continue
        wanted = dict(actor.required_resources)
        gpu = sum(amount for name, amount in wanted.items() if _is_gpu(name))
        gpus = {
            unit.index: unit.quantity
            for entry in actor.resource_mapping
            if _is_gpu(entry.name)
            for unit in entry.resource_ids
        }
        waiting = actor.state != ActorTableData.ALIVE
        yield Holder(
            name=actor.name or actor.class_name,
            application=_application_of(actor.name),
            pid=actor.pid,
            node="" if waiting else actor.node_id.hex(),
            cpus=float(wanted.get("CPU", 0)),
            gpus=gpus or ({-1: gpu} if gpu else {}),
            waiting=waiting,
        )


def _application_of(actor: str) -> str:
    """The Serve application of a replica, from the name that Serve gives its actor."""
    prefix, _, rest = actor.partition("::")
    return rest.partition("#")[0] if prefix == "SERVE_REPLICA" else ""


def ask_cards(room: Room) -> tuple[Card, ...]:
    """The cards of one other node with a GPU, told by a task there; none when there is no such node, or no answer."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    node = next((node for node, count in room.gpus.items() if count and node != here), None)
    if node is None:
        return ()
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    ask = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_cards_here).remote()
    try:
        cards: tuple[Card, ...] = ray.get(ask, timeout=_ASK_SECONDS)
    except (RayError, TimeoutError):
        ray.cancel(ask, force=True)
        return ()
    return cards


def _cards_here() -> tuple[Card, ...]:
    return local_cards(os.environ)


def _is_gpu(resource: str) -> bool:
    """Whether it is `GPU`, or that of a placement group, `GPU_group_<id>`; `GPU_group_<n>_<id>` is the same again."""
    return resource == "GPU" or (resource.startswith("GPU_group_") and resource.count("_") == 2)
