"""Processes that end with those that started them, and ending what this one started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

_PROC = Path("/proc")
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Has the kernel kill this process when the one that started it ends, however it ends (Linux; nothing elsewhere).

    Ray's workers notice that their raylet is gone by looking, which one that is stuck in native code does not do.

    Args:
        parent: who it should be; if it is another already, the parent has died and this process ends at once.
    """
    if not sys.platform.startswith("linux"):
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if parent is not None and os.getppid() != parent:
        raise SystemExit(0)


def end_descendants() -> int:
    """Kills all processes that this one started, and theirs; says how many. Finds none where there is no /proc.

    They are stopped before they are killed: what is stopped starts no others while the list is made.
    """
    stopped: set[int] = set()
    while new := _descendants(os.getpid()) - stopped:
        for pid in new:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        stopped |= new
    for pid in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(stopped)


def started_at(pid: int) -> int | None:
    """When a living process started, in ticks since boot: with its number it names one process for ever."""
    try:
        state, *fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])


def end_tree(pid: int, patience: float) -> None:
    """Asks a process to end, and kills it and all that it started once that takes longer than `patience` seconds."""
    below = {(child, started_at(child)) for child in _descendants(pid)} | {(pid, started_at(pid))}

    def living() -> list[int]:
        return [child for child, start in below if start is not None and started_at(child) == start]

    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while living() and time.monotonic() < deadline:
        time.sleep(0.05)
    for child in living():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _descendants(root: int) -> set[int]:
    parents = {}
    for folder in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # `pid (name) state parent …`; the name may hold anything, parentheses too.
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                parents[int(folder.name)] = int(parent)
    found: set[int] = set()
    edge = {root}
    while edge:
        edge = {pid for pid, parent in parents.items() if parent in edge} - found
        found |= edge
    return found
