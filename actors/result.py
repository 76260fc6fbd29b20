"""What a call of a pin returns.

Apart from the pin, because a process that is given one imports this module: a lane needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from actors.frames import Carry, FrameBatch


@dataclass(frozen=True, slots=True)
class Result:
    """What a call returns. It travels whole: a later call takes it as its source (the batch) or as its state (the
    carries), unawaited.

    Attributes:
        batch: the frames after the last step.
        carries: each step's state after them.
        seconds: work by model, that of the calls that made its source included.
        waited, ran: of this call alone: seconds from its arrival in the replica to its first turn, and of all turns.
        notices: what whoever uses the frames must know, e.g. that memory ran out and work was made smaller.
    """

    batch: FrameBatch
    carries: tuple[Carry, ...]
    seconds: Mapping[str, float]
    waited: float = 0.0
    ran: float = 0.0
    notices: tuple[str, ...] = ()
