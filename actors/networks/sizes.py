"""The rule for the sides of a network's input."""

from __future__ import annotations

from torch import Tensor


def check_sides(x: Tensor, multiple_of: int | tuple[int, int], minimum: int = 1) -> None:
    """Raises ValueError, stating the rule, unless the sides of x [...,H,W] follow it.

    Args:
        multiple_of: of what both sides must be multiples, or height and width each.
        minimum: the smallest side.
    """
    height, width = x.shape[-2:]
    tall, wide = (multiple_of, multiple_of) if isinstance(multiple_of, int) else multiple_of
    if not height % tall and not width % wide and min(height, width) >= minimum:
        return
    rule = f"sides must be multiples of {tall}"
    if tall != wide:
        rule = f"the height must be a multiple of {tall} and the width of {wide}"
    at_least = f" and at least {minimum}" if minimum > 1 else ""
    raise ValueError(f"{rule}{at_least}, got {width}x{height}")
