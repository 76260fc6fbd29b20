"""Limits that a desktop needs: batch work waits while the card is too hot or the disk too full, and goes on by itself.

A limit has two ends, so that work does not start and stop every second: it holds when one is passed, until the other
is. Requests are not held; they are few, and somebody waits for them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.config import GovernorSettings
from cluster.nvml import Card

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Limit:
    """Where work is held, and where it goes on.

    Attributes:
        hold: past this value work is held.
        release: at this value it goes on.
        above: whether past means above (a temperature) or below (room).
        state: what is said of a value, e.g. `GPU at {:.0f} °C`.
    """

    hold: float
    release: float
    above: bool
    state: str

    def holds(self, value: float, held: bool) -> bool:
        """Whether work is held at this value, when it was `held` before."""
        edge = self.release if held else self.hold
        return value > edge if self.above else value < edge

    def reason(self, value: float) -> str:
        """Why it is held, in one clause."""
        if self.holds(value, False):
            return f"{self.state.format(value)}, {'over' if self.above else 'under'} {self.hold:g}"
        return f"{self.state.format(value)}, goes on at {self.release:g}"


class Governor:
    """Says whether new batch work has to wait.

    `check` is for one thread. It takes as long as the reading does: milliseconds, and where a driver hangs a second
    (`cluster.nvml`), so an event loop asks through a thread.

    Args:
        limit: when.
        read: the value now; None when nothing tells, and then nothing is held: work does not wait for a sensor.
    """

    def __init__(self, limit: Limit, read: Callable[[], float | None]) -> None:
        self._limit = limit
        self._read = read
        self._held = False

    def check(self) -> str | None:
        """Why batch work has to wait, or None when it may go on."""
        value = self._read()
        self._held = value is not None and self._limit.holds(value, self._held)
        return self._limit.reason(value) if self._held and value is not None else None


def heat_governor(settings: GovernorSettings, card: Card) -> Governor:
    """Holds while the card is hotter than `max_temperature_c`; for the process that computes on it."""
    limit = Limit(
        hold=settings.max_temperature_c,
        release=settings.max_temperature_c - settings.cool_by_c,
        above=True,
        state=f"GPU {card.which} at {{:.0f}} °C",
    )
    return Governor(limit, card.temperature)


def disk_governor(settings: GovernorSettings, folder: Path, read: Callable[[], float | None] | None = None) -> Governor:
    """Holds while the disk of a folder has less than `min_free_gib` free; for the process that writes there.

    Args:
        settings: the limits.
        folder: must exist.
        read: free GiB; by default the folder's disk is asked.
    """
    limit = Limit(
        hold=settings.min_free_gib,
        release=settings.min_free_gib + settings.free_by_gib,
        above=False,
        state="{:.1f} GiB free on " + str(folder).replace("{", "{{").replace("}", "}}"),
    )
    return Governor(limit, read or (lambda: free_gib(folder)))


def free_gib(folder: Path) -> float | None:
    """GiB that may still be written to a folder's disk; None when it cannot be asked."""
    try:
        return shutil.disk_usage(folder).free / _GIB
    except OSError:
        return None
