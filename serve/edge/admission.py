"""So many at once: whoever comes later is told to come again, and nobody alone has all the places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serve.edge.problems import busy

_LONGEST_SECONDS = 60.0


class Places:
    """Places of requests, on one event loop.

    Args:
        most: how many there are.
        code: of the refusal.
        what: those who have the places, for the refusal.
        shared: whether several owners ask. Then the last free place is for one who holds none.
        seconds: after which whoever is refused may come again; more, up to a minute, the more were refused since a
            place was taken.
    """

    def __init__(self, most: int, code: str, what: str, *, shared: bool = False, seconds: float = 2.0) -> None:
        self._most, self._code, self._what, self._shared, self._seconds = most, code, what, shared, seconds
        self._taken: Counter[str] = Counter()
        self._refused = 0

    def check(self, owner: str) -> None:
        """Refuses who would get no place now.

        Raises:
            Problem: 429.
        """
        now = self._taken.total()
        if now < self._most - (self._shared and self._taken[owner] > 0):
            return
        wait = min(_LONGEST_SECONDS, self._seconds * (1 + self._refused / self._most))
        self._refused += 1
        raise busy(self._code, f"{now} {self._what} already", wait)

    @contextmanager
    def taken(self, owner: str) -> Iterator[None]:
        """Holds a place; raises as `check`."""
        self.check(owner)
        self._refused = 0
        self._taken[owner] += 1
        try:
            yield
        finally:
            self._taken[owner] -= 1
            if not self._taken[owner]:
                del self._taken[owner]
