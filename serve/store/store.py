"""The store as one object."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from cluster.errors import UsageError
from serve.store.database import Clock, Database, parsed
from serve.store.deliveries import Deliveries
from serve.store.keys import Keys
from serve.store.queue import Queue
from serve.store.tasks import Tasks
from serve.store.upgrade import upgrade


class Store(Tasks, Queue, Deliveries, Keys):
    """Tasks and what belongs to them, for any number of processes at once.

    One object serves one event loop; every process and loop has its own. Usage:

        async with Store(url) as store:
            task = await store.submit(NewTask(owner="studio", kind="restage", payload={"input": "0"}))

    Everything may raise StoreError when the database is not there, does not answer within `seconds`, or is full. What
    a method does, it does wholly or not at all; a caller that is cancelled may not know which.

    Args:
        url: `sqlite:///FILE`, `mysql://…`, `postgresql://…`, or a path (SQLite).
        attempts: how often a task is claimed before it counts as failed.
        clock: see `Database`; for tests.
        connections: most connections to the database at once.
        seconds: longest time for one call.
        silence_s: how long ago a lease must have been seen to have run out, before somebody else gets the task. More
            than two heartbeats.

    Raises:
        UsageError: the URL is not one of those, or its driver is not installed.
    """

    def __init__(
        self,
        url: str | Path,
        *,
        attempts: int = 3,
        clock: Clock | None = None,
        connections: int = 8,
        seconds: float = 30,
        silence_s: float = 3,
    ) -> None:
        if attempts < 1:
            raise UsageError("attempts", f"{attempts} is less than 1")
        self._attempts = attempts
        self._seconds = seconds
        self._silence_s, self._silent = silence_s, {}
        self._database = Database(parsed(url), clock=clock, connections=connections, seconds=seconds)

    @property
    def name(self) -> str:
        """The database's URL without its password."""
        return self._database.name

    async def open(self) -> None:
        """Brings the tables to this version's schema, once among all processes that start at the same time.

        Raises:
            StoreError: the database cannot be reached or written, has been made by a newer version, or holds other
                tables of the same names.
        """
        await asyncio.to_thread(upgrade, self._database.url, self._seconds)

    async def close(self) -> None:
        """Closes all connections."""
        await self._database.close()

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def ping(self) -> datetime:
        """The time by which leases run, as a sign that the database answers and takes writes."""

        async def work(session: AsyncSession, now: datetime) -> datetime:
            await session.execute(text("UPDATE owners SET name = name WHERE name = ''"))
            return now

        return await self._database.write(work)
