"""`troupe status`: the pins of the running Ray, where their replicas are and what they are doing, and the service."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cli.manners import exit_codes, print_json
from cluster.errors import ClusterError
from cluster.session import connect, joins, messages_on_stderr
from cluster.standing import join_standing
from cluster.tables import as_table

if TYPE_CHECKING:
    from cluster.replicas import Replica


def status(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False) -> None:
    """Show every replica of every pin, state, node, GPU, share, models loaded, queue, and the HTTP service."""
    with exit_codes():
        if not (join_standing(os.environ) or joins(os.environ)):
            raise ClusterError("Ray", "none was started by `troupe up` here", remedy="run it, or set RAY_ADDRESS")
        with connect() as session, messages_on_stderr():
            from cluster.replicas import read_deployments, read_replicas

            logging.getLogger("ray.serve").setLevel(logging.ERROR)
            replicas, service = read_replicas(), read_deployments()
    if as_json:
        ray = {"address": os.environ["RAY_ADDRESS"], "cpus": session.cpus, "gpus": session.gpus}
        found = {"replicas": [asdict(each) for each in replicas], "service": [asdict(each) for each in service]}
        print_json({"ray": ray, **found})
        return
    print(f"Ray at {os.environ['RAY_ADDRESS']}: {session.cpus:g} CPUs, {session.gpus:g} GPUs")
    head = ("pin", "state", "process", "node", "GPU", "share", "models loaded", "loads", "unloads", "waiting", "calls")
    rows = [
        (
            replica.pin,
            replica.state + (" (paused)" if replica.paused else ""),
            str(replica.pid or "-"),
            replica.node or "-",
            ", ".join(map(str, replica.gpu_ids)) or "-",
            f"{replica.share:g}",
            _models(replica),
            _number(replica.loads),
            _number(replica.unloads),
            _number(replica.waiting),
            _number(replica.calls),
        )
        for replica in replicas
    ]
    print("\n".join(as_table(head, rows)) if rows else "no pins")
    if service:
        parts = [(each.name, each.state, f"{each.running} of {each.wanted}", each.message) for each in service]
        print("", *as_table(("HTTP service", "state", "processes", ""), parts), sep="\n")


def _models(replica: Replica) -> str:
    if replica.models is None:
        return "?"
    loading = [f"loading {replica.loading}"] if replica.loading else []
    return ", ".join([*replica.models, *loading])


def _number(value: int | None) -> str:
    return "?" if value is None else str(value)
