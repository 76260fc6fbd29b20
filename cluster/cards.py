"""The NVIDIA cards of this machine, as the driver names them. Asks `nvidia-smi`: no CUDA context, no library."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

_QUERY = "--query-gpu=name,memory.total,memory.reserved,memory.used"
_SECONDS = 10  # a driver that has to wake a card takes two


@dataclass(frozen=True, slots=True)
class Card:
    """A card.

    Attributes:
        name: the product's.
        total_mib: what processes can have of it; the driver's own part is not in it.
        used_mib: what they have now.
    """

    name: str
    total_mib: int
    used_mib: int = 0


def local_cards(environ: Mapping[str, str]) -> tuple[Card, ...]:
    """This machine's cards in the driver's order, those that CUDA_VISIBLE_DEVICES leaves; none without a driver.

    A process asks the driver once.
    """
    cards = _ask(environ.get("PATH", ""))
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return cards
    named = [part.strip() for part in visible.split(",")]
    if not all(part.isdecimal() for part in named if not part.startswith("-")) and visible:
        return cards  # UUIDs, or slices of a card: which they are only CUDA knows
    return tuple(cards[int(part)] for part in named if part.isdecimal() and int(part) < len(cards))


@cache
def _ask(path: str) -> tuple[Card, ...]:
    program = shutil.which("nvidia-smi", path=path)
    if program is None:
        return ()
    command = [program, _QUERY, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parse_cards(done.stdout) if done.returncode == 0 else ()


def parse_cards(text: str) -> tuple[Card, ...]:
    """Reads a line a card, `name, total, reserved, used` in MiB; older drivers do not tell what they reserve."""
    cards = []
    for line in text.splitlines():
        name, *numbers = (part.strip() for part in line.rsplit(",", 3))
        total, reserved, used = (int(number) if number.isdecimal() else 0 for number in numbers or ("", "", ""))
        if total:
            cards.append(Card(name, total - reserved, used))
    return tuple(cards)
