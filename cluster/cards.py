"""The NVIDIA cards of this machine, as the driver names them. Asks `nvidia-smi`: no CUDA context, no library."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

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
    """This machine's cards in the driver's order; none without a driver, or when CUDA_VISIBLE_DEVICES hides all."""
    program = shutil.which("nvidia-smi")
    if program is None or environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
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
