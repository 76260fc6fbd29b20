"""Errors that a user can act on: each names the thing, the place, the reason and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    SOME_FAILED = 1
    BAD_USAGE = 2

    @classmethod
    def of(cls, error: TroupeError) -> Exit:
        """2 for a request that cannot be, 1 for what went wrong."""
        return cls.BAD_USAGE if isinstance(error, UsageError) else cls.SOME_FAILED


class TroupeError(Exception):
    """Base of every error that Troupe raises on purpose.

    Args:
        thing: what it happened to, as the user knows it (a file name, a pin, a setting).
        reason: what is wrong, in one clause.
        place: where inside the thing (`segment 7 (frames 1680-1919)`), if anywhere.
        remedy: what the user can do about it.

    Errors cross process borders (Ray, child processes), so they pickle with all four parts.
    """

    def __init__(self, thing: object, reason: str, *, place: str = "", remedy: str = "") -> None:
        self.thing = str(thing)
        self.reason = reason
        self.place = place
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        head = ": ".join(part for part in (self.thing, self.place, self.reason) if part)
        return f"{head}; {self.remedy}" if self.remedy else head

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.thing, self.reason, self.place, self.remedy)


def _rebuild(kind: type[TroupeError], thing: str, reason: str, place: str, remedy: str) -> TroupeError:
    return kind(thing, reason, place=place, remedy=remedy)


class UsageError(TroupeError):
    """The command or the configuration asks for something that cannot be; nothing was started."""


class MediaError(TroupeError):
    """An input is refused or turned out broken; other inputs are unaffected."""


class WeightsError(TroupeError):
    """A checkpoint is missing, damaged, or not what its name says."""


class ClusterError(TroupeError):
    """Ray, a pin or a resource is not there, does not fit, or does not answer."""


class PinAwayError(ClusterError):
    """A pin is not deployed, does not answer, or is another one than expected; nothing was begun in it."""


class DeferredError(ClusterError):
    """A pin runs a call alone and sent this one back: it is to be made again in a moment, and is nobody's fault."""


class LostStateError(ClusterError):
    """The state before the next frames is gone with the node that held it; a stored one is needed."""


class StoppedError(TroupeError):
    """Somebody asked for it: a task was cancelled, or whoever runs it is to end."""


class RoomError(ClusterError):
    """CPUs, GPU shares or the object store do not suffice; nothing was started.

    Attributes:
        table: the sum, a line each.
    """

    def __init__(self, thing: object, reason: str, table: Sequence[str], *, remedy: str = "") -> None:
        self.table = tuple(table)
        super().__init__(thing, reason, remedy=remedy)

    def __str__(self) -> str:
        return "\n".join((super().__str__(), *(f"  {line}" for line in self.table)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_room, (self.thing, self.reason, self.table, self.remedy)


def _rebuild_room(thing: str, reason: str, table: tuple[str, ...], remedy: str) -> RoomError:
    return RoomError(thing, reason, table, remedy=remedy)


class JobError(TroupeError):
    """A segment or a video of a job failed; the rest of the job goes on."""
