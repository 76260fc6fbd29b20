"""Models that stay loaded: counted while in use, the idle one that was used least recently makes room."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

M = TypeVar("M")


class Residents(Generic[M]):
    """Loaded models by key.

    What is in use is never unloaded. Who uses several asks for all of them at once (`has_room`, then `take`), so two
    users never wait for each other.

    Args:
        room: how many may be loaded at once.
        on_unload: told the key of each that is unloaded, after it is gone.

    Attributes:
        room: as given.
        loads, unloads: how often so far.
    """

    def __init__(self, room: int, on_unload: Callable[[str], None]) -> None:
        self.room = room
        self._on_unload = on_unload
        #: Least recently used first; the time of the last use beside the model.
        self._loaded: OrderedDict[str, tuple[M, float]] = OrderedDict()
        self._users: Counter[str] = Counter()
        self.loads = 0
        self.unloads = 0

    @property
    def keys(self) -> tuple[str, ...]:
        """What is loaded, least recently used first."""
        return tuple(self._loaded)

    def models(self) -> list[M]:
        """All that are loaded."""
        return [model for model, _ in list(self._loaded.values())]

    def has_room(self, keys: Iterable[str]) -> bool:
        """Whether all of these can be resident together without unloading what is in use."""
        wanted = set(keys)
        return len(wanted | set(+self._users)) <= self.room

    def fits(self, keys: Iterable[str]) -> bool:
        """Whether all of these could ever be resident together."""
        return len(set(keys)) <= self.room

    def take(self, keys: Sequence[str], load: Callable[[str], M]) -> list[M]:
        """Marks these as used, loading those that are not there; to be given back with `give_back`.

        Raises:
            Whatever `load` raises; then none of them is marked.
        """
        if not self.has_room(keys):
            raise AssertionError("take() without has_room()")
        self._users.update(keys)
        try:
            return [self._resident(key, load) for key in keys]
        except BaseException:
            self._users.subtract(keys)
            raise

    def give_back(self, keys: Sequence[str]) -> None:
        """Ends a use that `take` began."""
        self._users.subtract(keys)
        for key in keys:
            self._touch(key)

    def unload_idle(self, unused_s: float = 0.0) -> list[str]:
        """Unloads what nobody uses and nobody has used for so long; returns the keys."""
        before = time.monotonic() - unused_s
        idle = [key for key, (_, used) in self._loaded.items() if not self._users[key] and used <= before]
        for key in idle:
            self._unload(key)
        return idle

    def _resident(self, key: str, load: Callable[[str], M]) -> M:
        if key not in self._loaded:
            while len(self._loaded) >= self.room:
                self._unload(next(other for other in self._loaded if not self._users[other]))
            self._loaded[key] = load(key), time.monotonic()
            self.loads += 1
        self._touch(key)
        return self._loaded[key][0]

    def _touch(self, key: str) -> None:
        if key in self._loaded:
            self._loaded[key] = self._loaded[key][0], time.monotonic()
            self._loaded.move_to_end(key)

    def _unload(self, key: str) -> None:
        del self._loaded[key]
        self.unloads += 1
        self._on_unload(key)
