"""What a caller says of a call to a pin beside its frames."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Literal

Priority = Literal["interactive", "batch"]


@dataclass(frozen=True, slots=True)
class Call:
    """A call's class and identity.

    Attributes:
        priority: `interactive` goes before `batch`.
        key: whose work it is, e.g. a segment: what is charged when the pin dies of it. Empty when nobody is.
        alone: nothing else waits in the replica while it runs, so that nobody else's call dies with it.
        request: id of the HTTP request that it is for, for logs; empty when there is none.
        token: this one call among all; the callboard shows it while it is executed.
    """

    priority: Priority = "batch"
    key: str = ""
    alone: bool = False
    request: str = ""
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
