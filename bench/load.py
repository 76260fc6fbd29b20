"""Load on a pin: batch jobs that keep it busy, and requests that come at random; each in a process of its own.

Ray is imported where it is needed: not before whoever measures has found the cluster's token.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from actors.frames import FrameBatch
from actors.model import Step
from cluster.calls import Call

#: A batch of frames for whoever asks is as good as any.
_SEED = 3


@dataclass(frozen=True, slots=True)
class Served:
    """One call, in seconds.

    Attributes:
        ended: when its answer was there, on the clock of `time.monotonic`, which all processes of a machine share.
        waited: in the replica, from its arrival to its first turn.
        ran: in the pin, all turns together.
        latency: for its caller, from sending it to the answer.
    """

    ended: float
    waited: float
    ran: float
    latency: float

    @classmethod
    def of(cls, result: Any, sent: float) -> Served:
        """What a pin's result says of a call that was sent then."""
        now = time.monotonic()
        return cls(now, result.waited, result.ran, now - sent)


def frames_of(count: int, size: tuple[int, int]) -> FrameBatch:
    """Noise."""
    width, height = size
    rgb = np.random.default_rng(_SEED).integers(0, 256, (count, height, width, 3), np.uint8)
    return FrameBatch(rgb, np.arange(count), np.zeros(count, np.bool_))


@dataclass(frozen=True, slots=True)
class Target:
    """What is called: the pin, the steps, the frames of a batch call and those of a request."""

    pin: str
    steps: tuple[Step, ...]
    batch: FrameBatch
    request: FrameBatch


class BatchJob:
    """An actor's body: a lane with prepared frames, which keeps its window full until it is told to stop."""

    def __init__(self, target: Target, window: int) -> None:
        self._target, self._window = target, window
        self._stop = asyncio.Event()
        self._begun = asyncio.Event()

    async def run(self) -> list[Served]:
        """Its calls, those in flight at the end left out."""
        import ray

        from cluster.pins import handle

        run, steps = handle(self._target.pin).run, [asdict(step) for step in self._target.steps]
        source = ray.put(self._target.batch)
        flight: deque[tuple[float, Any]] = deque()
        served = []
        while not self._stop.is_set():
            while len(flight) < self._window:
                flight.append((time.monotonic(), run.remote(steps, source, None, Call("batch"))))
            sent, response = flight.popleft()
            served.append(Served.of(await response, sent))
            self._begun.set()
        for _, response in flight:
            response.cancel()
        return served

    async def begun(self) -> None:
        """Returns when its first call is through."""
        await self._begun.wait()

    async def stop(self) -> None:
        """Has `run` return."""
        self._stop.set()


class Requests:
    """An actor's body: a front desk that sends single calls."""

    def __init__(self, target: Target) -> None:
        from cluster.pins import handle

        self._target = target
        self._run = handle(target.pin).run
        self._steps = [asdict(step) for step in target.steps]

    async def stream(self, rate: float, count: int, seed: int) -> list[Served]:
        """So many requests, `rate` a second on average, each at a random moment whatever became of those before it."""
        dice = random.Random(seed)
        at = time.monotonic()
        calls = []
        for _ in range(count):
            at += dice.expovariate(rate)
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            calls.append(asyncio.create_task(self._ask()))
        return list(await asyncio.gather(*calls))

    async def burst(self, count: int) -> list[Served]:
        """All at once."""
        return list(await asyncio.gather(*(self._ask() for _ in range(count))))

    async def _ask(self) -> Served:
        sent = time.monotonic()
        return Served.of(await self._run.remote(self._steps, self._target.request, None, Call("interactive")), sent)


class Load:
    """The actors on a connected Ray; entered, batch jobs are at work, as many as are wanted."""

    def __init__(self, target: Target, jobs: int, window: int) -> None:
        import ray

        actor = ray.remote(num_cpus=0, max_restarts=0)
        self._jobs = [actor(BatchJob).remote(target, window) for _ in range(jobs)]
        self._runs: list[Any] = []
        self.served: list[Served] = []

    def __enter__(self) -> Load:
        import ray

        self._runs = [job.run.remote() for job in self._jobs]
        ray.get([job.begun.remote() for job in self._jobs])
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.get([job.stop.remote() for job in self._jobs])
        self.served = [one for run in ray.get(self._runs) for one in run]
        for job in self._jobs:
            ray.kill(job)


def quantile(values: Sequence[float], q: float) -> float:
    """The value that the share `q` of them does not exceed."""
    return float(np.quantile(np.array(values), q, method="inverted_cdf"))
