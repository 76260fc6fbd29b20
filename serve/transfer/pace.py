"""How slow a peer may be: bounds on silence, on slowness and on the whole of one transfer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class TooSlowError(Exception):
    """The peer kept to none of the bounds; the text says which, as a clause about the peer."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a transfer may take.

    Attributes:
        silence_seconds: longest wait for the next bytes.
        bytes_per_second: least rate, over each window.
        window_seconds: time spent waiting for the peer over which the rate is taken.
        total_seconds: longest transfer, our own waits included.
    """

    silence_seconds: float = 30.0
    bytes_per_second: float = 4096.0
    window_seconds: float = 20.0
    total_seconds: float = 3600.0


class Pace:
    """Measures one transfer from now on. Only waiting for the peer counts towards its rate, not our own disk."""

    def __init__(self, patience: Patience, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._clock = patience, clock
        self._deadline = clock() + patience.total_seconds
        self._waited, self._bytes = 0.0, 0

    async def wait(self, more: Awaitable[T], size: Callable[[T], int] | None = None) -> T:
        """The peer's next piece; without a `size` it is an answer, which counts towards no rate.

        Raises:
            TooSlowError: it did not come in time, or too little came.
        """
        patience, began = self._patience, self._clock()
        left = self._deadline - began
        try:
            async with asyncio.timeout(max(0.0, min(patience.silence_seconds, left))):
                piece = await more
        except TimeoutError as error:
            if left <= patience.silence_seconds:
                raise self._over() from error
            raise TooSlowError(f"was silent for {patience.silence_seconds:g} s") from error
        if self._clock() > self._deadline:  # a piece that is there at once is never timed out
            raise self._over()
        if size is None:
            return piece
        self._waited += self._clock() - began
        self._bytes += size(piece)
        if self._waited >= patience.window_seconds:
            rate = self._bytes / self._waited
            if rate < patience.bytes_per_second:
                raise TooSlowError(f"sent {rate:.0f} bytes a second, at least {patience.bytes_per_second:.0f} needed")
            self._waited, self._bytes = 0.0, 0
        return piece

    def _over(self) -> TooSlowError:
        return TooSlowError(f"took longer than {self._patience.total_seconds:g} s")
