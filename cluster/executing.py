"""What every replica executes, written down where its death does not reach: which call it died of is asked afterwards.

Ray fails all calls of a dead replica alike. So a replica writes a call's token into a small file of its node before it
begins, which takes microseconds and outlives the process. The file stays as the death left it, with the reason behind
the token when the replica knew that it would end.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import ray

from cluster.errors import ClusterError
from cluster.nodes import on_nodes, working_nodes

log = logging.getLogger(__name__)

_TOKEN_BYTES = 32
_REASON_BYTES = 400
#: Files of replicas that died so long ago interest nobody.
_KEPT_SECONDS = 24 * 3600.0
_ANSWER_SECONDS = 30.0


class Executing:
    """A replica's own file.

    Args:
        replica: its name, unique among all.
    """

    def __init__(self, replica: str) -> None:
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in folder.iterdir():
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _KEPT_SECONDS:
                    path.unlink()
        self._path = folder / replica
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self._written = ""
        self.write("")

    def write(self, token: str) -> None:
        """Names the call that is executed from now on; empty for none."""
        if token != self._written or not token:
            os.pwrite(self._file, token.encode()[:_TOKEN_BYTES].ljust(_TOKEN_BYTES + _REASON_BYTES), 0)
            self._written = token

    def ends(self, reason: str) -> None:
        """Says why the replica will not survive the call that it executes."""
        os.pwrite(self._file, reason.encode()[:_REASON_BYTES], _TOKEN_BYTES)

    def keep(self) -> None:
        """Shows that the replica lives: files that nobody touches are removed, here and by many systems."""
        with suppress(OSError):
            os.utime(self._path)

    def remove(self) -> None:
        """The replica ends on purpose."""
        self._path.unlink(missing_ok=True)


def executing(tokens: Collection[str]) -> dict[str, str]:
    """Which of these calls their replicas were executing when they wrote last, on any node of the connected cluster,
    and why they ended; an empty reason where a replica did not know.

    A node that is gone, or does not answer, says nothing: what was lost with it is nobody's fault.
    """
    here = ray.get_runtime_context().get_node_id()
    found = _named(list(tokens))
    for node in working_nodes():
        if node.id != here and not found:
            try:
                found |= on_nodes([node], _named, list(tokens), seconds=_ANSWER_SECONDS)[node.id]
            except ClusterError as error:
                log.warning("a call that was lost is charged to nobody: %s", error)
    return found


def _named(tokens: list[str]) -> dict[str, str]:
    """Those of the calls that a file of this node names, and the reason there."""
    named = {}
    for path in _folder().glob("*"):
        with suppress(OSError):
            content = path.read_bytes()
            token, reason = content[:_TOKEN_BYTES], content[_TOKEN_BYTES:]
            named[token.decode(errors="replace").strip()] = reason.decode(errors="replace").strip()
    return {token: named[token] for token in tokens if token in named}


def _folder() -> Path:
    return Path(tempfile.gettempdir()) / f"troupe-{os.getuid()}" / "executing"
