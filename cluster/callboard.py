"""The callboard: one small actor that knows what every pin's replica is doing, and survives all of them.

A replica writes down which call it executes before it begins: when it dies, its callers can tell whose call it died
of, which Ray does not say (all calls that it had accepted fail alike). It also tells its state now and then, for
`troupe status` and for a job's progress: a handle reaches some replica of a pin, never all.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

NAME, NAMESPACE = "troupe-callboard", "troupe"

#: A replica that told nothing for so long is gone: it tells every second.
LOST_SECONDS = 10.0
_ASK_SECONDS = 5.0
_REMEMBERED = 256


class _Board:
    """The actor's body.

    `executing` holds the last call that each replica began, newest last; an entry stays after its replica's death, for
    the callers to ask.
    """

    def __init__(self) -> None:
        self._executing: dict[str, str] = {}
        self._states: dict[str, tuple[float, Mapping[str, Any]]] = {}

    def begin(self, replica: str, token: str) -> None:
        self._executing.pop(replica, None)
        self._executing[replica] = token
        while len(self._executing) > _REMEMBERED:
            del self._executing[next(iter(self._executing))]

    def executing(self, tokens: Collection[str]) -> list[str]:
        return [token for token in self._executing.values() if token in tokens]

    def tell(self, replica: str, state: Mapping[str, Any]) -> None:
        self._states[replica] = time.monotonic(), state

    def states(self) -> dict[str, Mapping[str, Any]]:
        now = time.monotonic()
        self._states = {name: entry for name, entry in self._states.items() if now - entry[0] < LOST_SECONDS}
        return {name: state for name, (_, state) in self._states.items()}


class Callboard:
    """This process's end of the callboard of the connected cluster; made there by whoever needs it first.

    What is written is lost when the actor is: then nobody is charged and nothing shown, and the work goes on.
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

    def begin(self, replica: str, token: str) -> None:
        """Writes down that a replica executes a call now; returns when it is written."""
        with _forgiving():
            ray.get(self._board.begin.remote(replica, token), timeout=_ASK_SECONDS)

    def idle(self, replica: str) -> None:
        """Writes down that it executes none; returns at once."""
        with _forgiving():
            self._board.begin.remote(replica, "")

    def executing(self, tokens: Collection[str]) -> set[str]:
        """Which of these calls were the last that their replicas began and did not end."""
        found: set[str] = set()
        with _forgiving():
            found |= set(ray.get(self._board.executing.remote(list(tokens)), timeout=_ASK_SECONDS))
        return found

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
