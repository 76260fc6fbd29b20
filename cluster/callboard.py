"""The callboard: one small actor that knows how every pin's replica is, and survives all of them.

Replicas tell it their state every second, for `troupe status` and for a job's progress: a handle reaches some replica
of a pin, never all.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

NAME, NAMESPACE = "troupe-callboard", "troupe"

#: A replica that told nothing for so long is not shown: it tells every second.
LOST_SECONDS = 10.0
#: One that was silent for so long when another comes up is what that one replaces, which takes three seconds.
_SILENT_SECONDS = 2.5
_ASK_SECONDS = 5.0


class _Board:
    """The actor's body: what each replica told last, and when."""

    def __init__(self) -> None:
        self._states: dict[str, tuple[float, Mapping[str, Any]]] = {}

    def take_over(self, pin: str, replica: str) -> int:
        silent = time.monotonic() - _SILENT_SECONDS
        gone = [
            name
            for name, (told, state) in self._states.items()
            if state["pin"] == pin and name != replica and told < silent
        ]
        for name in gone:
            del self._states[name]
        return len(gone)

    def leave(self, replica: str) -> None:
        self._states.pop(replica, None)

    def tell(self, replica: str, state: Mapping[str, Any]) -> None:
        self._states[replica] = time.monotonic(), state

    def states(self) -> dict[str, Mapping[str, Any]]:
        recent = time.monotonic() - LOST_SECONDS
        return {name: state for name, (told, state) in self._states.items() if told > recent}


class Callboard:
    """This process's end of the callboard of the connected cluster; made there by whoever needs it first.

    What was told is lost when the actor is: nothing is shown then, until replicas tell again; the work goes on.
    """

    def __init__(self) -> None:
        # Detached: pins of a cluster outlive the job that deployed them. A Ray that ends takes it along.
        self._board = (
            ray.remote(_Board)
            .options(
                name=NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=0, max_restarts=-1
            )
            .remote()
        )

    def take_over(self, pin: str, replica: str) -> int:
        """A new replica asks how many of its pin fell silent without leaving; each is counted once."""
        lost: list[int] = []
        with _forgiving():
            lost.append(ray.get(self._board.take_over.remote(pin, replica), timeout=_ASK_SECONDS))
        return sum(lost)

    def leave(self, replica: str) -> None:
        """A replica ends on purpose."""
        with _forgiving():
            self._board.leave.remote(replica)

    def tell(self, replica: str, state: Mapping[str, Any]) -> None:
        """Tells a replica's state; returns at once."""
        with _forgiving():
            self._board.tell.remote(replica, dict(state))

    def states(self) -> dict[str, Mapping[str, Any]]:
        """What every living replica told last, by replica."""
        found: dict[str, Mapping[str, Any]] = {}
        with _forgiving():
            found |= ray.get(self._board.states.remote(), timeout=_ASK_SECONDS)
        return found


@contextlib.contextmanager
def _forgiving() -> Iterator[None]:
    with contextlib.suppress(GetTimeoutError, RayError):
        yield
