"""What processes cost, from /proc: the tree below one, its memory and its CPU time. Linux only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Process:
    """One process at one moment.

    Attributes:
        pid, started: together they name it; pids come again.
        name: what it runs, in a word.
        cpu: seconds, user and system, of its own.
    """

    pid: int
    started: int
    name: str
    cpu: float


def tree(root: int) -> list[Process]:
    """`root` and everything below it, threads apart."""
    found: dict[int, Process] = {}
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (entry := _read(folder)) is not None:
            parent, process = entry
            found[process.pid] = process
            children.setdefault(parent, []).append(process.pid)
    below, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        if pid in found:
            below.append(found[pid])
            waiting += children.get(pid, [])
    return below


def cpu_by_name(root: int) -> dict[tuple[int, int], tuple[str, float]]:
    """CPU seconds of every process below `root`, by what names it."""
    return {(p.pid, p.started): (p.name, p.cpu) for p in tree(root)}


def pss_by_name(root: int) -> dict[str, int]:
    """Proportional set sizes in bytes of `root` and everything below it, summed by name.

    Each page is divided by the number of processes that map it, so the sum counts shared memory once.
    """
    sizes: dict[str, int] = {}
    for process in tree(root):
        sizes[process.name] = sizes.get(process.name, 0) + pss_bytes(process.pid)
    return sizes


def pss_bytes(pid: int) -> int:
    """Proportional set size of one process in bytes; 0 when it is no more."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # A process that is ending still has a file, but no memory.
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024


def _read(folder: Path) -> tuple[int, Process] | None:
    try:
        stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        command = (folder / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    cpu = (int(fields[11]) + int(fields[12])) * _TICK
    return int(fields[1]), Process(int(folder.name), int(fields[19]), _name(command), cpu)


def _name(command: bytes) -> str:
    """`ray::Lane`, `raylet`, `actors.video.fork_server`…: what a person recognises in a command line."""
    words = [word.decode(errors="replace") for word in command.split(b"\0") if word]
    if not words:
        return "?"
    if words[0].startswith("ray::"):
        return words[0].split("(")[0].split(".")[0]
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1]
    scripts = [word for word in words[1:] if word.endswith(".py")]
    return Path(scripts[0] if "python" in words[0] and scripts else words[0]).name
