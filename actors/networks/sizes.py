"""The rule for the sides of a network's input."""

from __future__ import annotations

from torch import Tensor


def check_sides(x: Tensor, multiple_of: int) -> None:
    """Raises ValueError unless both sides of x [...,H,W] are multiples of `multiple_of`."""
    height, width = x.shape[-2:]
    if height % multiple_of or width % multiple_of or not height or not width:
        raise ValueError(f"sides must be multiples of {multiple_of}, got {width}x{height}")
