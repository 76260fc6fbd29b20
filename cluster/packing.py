"""Whether replicas find a GPU wherever Ray puts the others. Pure.

Ray puts a replica on any GPU with room, two of one pin on the same where both fit, and never moves one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache

#: Ray counts resources in ten-thousandths.
UNITS = 10_000


def blocked_by_packing(shares: Mapping[str, tuple[float, int]], free: Sequence[float]) -> str | None:
    """A pin of which a replica may find no GPU when Ray places the other replicas as badly as it can, None if none.

    Ray puts each replica on any GPU with room, and none is ever moved.

    Args:
        shares: share and number of replicas, by pin.
        free: of each GPU.
    """
    kinds = [(name, round(UNITS * share), count) for name, (share, count) in shares.items() if share and count]
    rooms = tuple(sorted(round(UNITS * room) for room in free))
    for index, (name, share, _) in enumerate(kinds):
        sizes = tuple(other for _, other, _ in kinds)
        others = tuple(count - (k == index) for k, (_, _, count) in enumerate(kinds))
        if _can_fill(rooms, sizes, others, share):
            return name
    return None


@cache
def _can_fill(rooms: tuple[int, ...], sizes: tuple[int, ...], counts: tuple[int, ...], share: int) -> bool:
    """Whether some of the replicas can be placed so that every GPU has less than `share` left."""
    if not rooms:
        return True
    return any(
        _can_fill(rooms[1:], sizes, tuple(c - used for c, used in zip(counts, taken, strict=True)), share)
        for taken in _fillings(rooms[0], sizes, counts)
        if rooms[0] - sum(size * used for size, used in zip(sizes, taken, strict=True)) < share
    )


def _fillings(room: int, sizes: tuple[int, ...], counts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Every way to put replicas into one GPU, as counts by kind."""
    if not sizes:
        yield ()
        return
    for used in range(min(counts[0], room // sizes[0]) + 1):
        for rest in _fillings(room - used * sizes[0], sizes[1:], counts[1:]):
            yield used, *rest
