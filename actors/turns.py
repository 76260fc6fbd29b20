"""Whose turn it is in a pin: interactive before batch, first come first served in a class, batch never starved."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar, get_args

from cluster.calls import Priority

T = TypeVar("T")

#: Under a constant stream of requests batch has 2 of any 20 turns: one after at most nine others.
_MOST_IN_A_ROW = 9


class Turns(Generic[T]):
    """Two queues. What has begun stays first of its class, over as many turns as it takes, until it is removed.

    Not for several threads: it lives on one event loop.

    Attributes:
        by_share: whether the last turn went to batch though a request waited.
        held: why nothing of the batch class begins now; empty when it may. What has begun goes on.
    """

    def __init__(self) -> None:
        self._waiting: dict[Priority, deque[T]] = {priority: deque() for priority in get_args(Priority)}
        self._begun: dict[Priority, T] = {}
        self._in_a_row = 0
        self.by_share = False
        self.held = ""

    def add(self, item: T, priority: Priority) -> None:
        """Puts an item at the end of its class."""
        self._waiting[priority].append(item)

    def remove(self, item: T) -> None:
        """Takes an item out, waiting or begun; nothing when it is not here."""
        for priority, queue in self._waiting.items():
            if self._begun.get(priority) is item:
                del self._begun[priority]
            if item in queue:
                queue.remove(item)

    def next(self, can_run: Callable[[T], bool]) -> T | None:
        """The item whose turn it is, which has begun now; None when there is none.

        Args:
            can_run: False for an item that has to wait for the one that has begun in the other class.
        """
        for priority in self._order():
            begun = self._begun.get(priority)
            queue = self._waiting[priority]
            if begun is None and (not queue or (priority == "batch" and self.held)):
                continue
            item = queue[0] if begun is None else begun
            if not can_run(item):
                continue
            if begun is None:
                self._begun[priority] = queue.popleft()
            self.by_share = priority == "batch" and self._in_a_row >= _MOST_IN_A_ROW
            batch_waits = priority == "interactive" and self._batch_may_run()
            self._in_a_row = self._in_a_row + 1 if batch_waits else 0
            return item
        return None

    def count(self, priority: Priority) -> int:
        """How many of a class wait or have begun."""
        return len(self._waiting[priority]) + (priority in self._begun)

    def begun(self) -> list[T]:
        """Those that had a turn and are not through, at most one of each class."""
        return list(self._begun.values())

    def waiting(self) -> list[T]:
        """All that had no turn yet."""
        return [item for queue in self._waiting.values() for item in queue]

    def _order(self) -> tuple[Priority, Priority]:
        aged = self._in_a_row >= _MOST_IN_A_ROW and self._batch_may_run()
        return ("batch", "interactive") if aged else ("interactive", "batch")

    def _batch_may_run(self) -> bool:
        return "batch" in self._begun or bool(self._waiting["batch"] and not self.held)
