"""Several nodes: whether all see the files of a job, and weights that one has and another lacks. One node pays nothing.

Needs a connected Ray.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import ClusterError, UsageError, WeightsError
from cluster.files import partial_path, publish, sha256_of

#: A new process of a node imports for seconds, longer where many start at once.
_ANSWER_SECONDS = 30
#: A weight is at most some hundred MB.
_COPY_SECONDS = 300
#: Inputs whose folders are looked for; one of each folder, since a folder is what is mounted.
_MOST_INPUTS = 64


@dataclass(frozen=True, slots=True)
class Node:
    """A node that lanes and pins may run on: its id, and what a person knows it by."""

    id: str
    name: str


def working_nodes() -> list[Node]:
    """Living nodes that have CPUs to give."""
    return [
        Node(node["NodeID"], f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})")
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) > 0
    ]


def check_shared(root: Path, inputs: Iterable[Path]) -> None:
    """Whether every node sees this process's output folder and inputs under the same paths.

    A file is put into the output folder, and a task on each node looks for it and for an input of every folder.

    Raises:
        UsageError: a node does not see one; names both.
        ClusterError: a node does not answer.
    """
    nodes = working_nodes()
    if len(nodes) < 2:
        return
    by_folder = {path.parent: path for path in inputs}
    sample = [path.absolute() for path in list(by_folder.values())[:_MOST_INPUTS]]
    marker = root.absolute() / f".seen-{secrets.token_hex(8)}"
    root.mkdir(parents=True, exist_ok=True)
    marker.touch()
    try:
        unseen = on_nodes(nodes, _unseen, [str(marker), *map(str, sample)], seconds=_ANSWER_SECONDS)
    finally:
        marker.unlink(missing_ok=True)
    for node in nodes:
        for path in unseen[node.id]:
            seen_as = root if path == str(marker) else path
            raise UsageError(
                seen_as,
                f"is not there on node {node.name}",
                remedy="inputs and results must lie on a file system that every node mounts under the same path",
            )


def spread_weights(weights: Mapping[Path, str]) -> list[str]:
    """Copies checkpoints of this process to every node that lacks them, once a node however many pins wait there.

    Nothing is downloaded: the bytes come from here, through Ray, and are checked before they get their name.

    Args:
        weights: SHA-256 of files; each goes under the same path.

    Returns:
        What was copied, a line each.

    Raises:
        WeightsError: a node cannot keep one; names the node and the command for it.
        ClusterError: a node does not answer.
    """
    nodes = working_nodes()
    if len(nodes) < 2 or not weights:
        return []
    # An imported file's record lies beside it, and says which bytes are meant.
    records = [record for path in weights if (record := path.with_name(f"{path.name}.json")).is_file()]
    hashes = {
        **{path.absolute(): digest for path, digest in weights.items()},
        **{r.absolute(): sha256_of(r) for r in records},
    }
    lacking = on_nodes(nodes, _unseen, list(map(str, hashes)), seconds=_ANSWER_SECONDS)
    told = []
    for path, digest in hashes.items():
        targets = [node for node in nodes if str(path) in lacking[node.id]]
        if not targets:
            continue
        content = ray.put(path.read_bytes())
        problems = on_nodes(targets, _keep, str(path), digest, content, seconds=_COPY_SECONDS)
        for node in targets:
            if problems[node.id]:
                raise WeightsError(
                    path.name,
                    f"is not on node {node.name} and cannot be copied there: {problems[node.id]}",
                    remedy="run `troupe weights fetch` there, into the folder that TROUPE_WEIGHTS names here",
                )
            told.append(f"{path.name} copied to node {node.name}")
    return told


def on_nodes(nodes: Sequence[Node], work: Callable[..., Any], *arguments: Any, seconds: float) -> dict[str, Any]:
    """The work's answer from each node, by its id; all at once."""
    remote = ray.remote(num_cpus=0, max_retries=0)(work)
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        asked[remote.options(scheduling_strategy=there).remote(*arguments)] = node
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
    for ref in late:
        with suppress(RayError):
            ray.cancel(ref, force=True)
        raise ClusterError(
            f"node {asked[ref].name}", f"did not answer within {seconds:.0f} s", remedy="see `ray status`"
        )
    answers = {}
    for ref in ready:
        try:
            answers[asked[ref].id] = ray.get(ref)
        except RayError as error:
            reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
            raise ClusterError(
                f"node {asked[ref].name}", f"failed: {reason}", remedy="install the same Troupe on every node"
            ) from error
    return answers


def _unseen(paths: Sequence[str]) -> list[str]:
    return [path for path in paths if not Path(path).exists()]


def _keep(path: str, digest: str, content: bytes) -> str:
    """Writes a checkpoint under its name unless it has come meanwhile; why it could not, empty if it could."""
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(target.parent, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two jobs that start at once copy it once
            if target.exists():
                return ""
            partial = partial_path(target)
            try:
                partial.write_bytes(content)
                if sha256_of(partial) != digest:
                    return "it arrived damaged"
                publish(partial, target)
            finally:
                partial.unlink(missing_ok=True)
        finally:
            os.close(lock)
    except OSError as error:
        return error.strerror or str(error)
    return ""
