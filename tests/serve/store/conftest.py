"""Databases for the tests: each test that takes `database` runs on SQLite, MariaDB and PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from serve.store import Store
from serve.store.database import parsed
from serve.store.schema import Base
from tests.serve.store.servers import MissingServerError, mariadb, postgresql

T = TypeVar("T")
KINDS = ("sqlite", "mariadb", "postgresql")
_STARTERS = {"mariadb": mariadb, "postgresql": postgresql}
_ADMINISTRATORS = {"mariadb": "mysql", "postgresql": "postgres"}
#: Others may stop the machine for a while; the tests measure no patience unless they say so.
SECONDS = 120.0


class Servers:
    """The servers of a test session, each started when a test first asks for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._urls: dict[str, str] = {}
        self._ready: dict[str, str] = {}
        self._numbers = count()

    def close(self) -> None:
        self._stack.close()

    def fresh(self, kind: str) -> str:
        """URL of a database without any tables."""
        name = f"t{next(self._numbers)}"
        if kind == "sqlite":
            return f"sqlite:///{self._folder / name}.db"
        asyncio.run(
            _execute(self._server(kind).format(name=_ADMINISTRATORS[kind]), f"CREATE DATABASE {name}", own=True)
        )
        return self._server(kind).format(name=name)

    def ready(self, kind: str) -> str:
        """URL of a database with all tables, and nothing in them."""
        if kind not in self._ready:
            self._ready[kind] = self.fresh(kind)
            asyncio.run(_opened(self._ready[kind]))
        elif kind != "sqlite":
            tables = reversed(Base.metadata.sorted_tables)
            asyncio.run(_execute(self._ready[kind], *(f"DELETE FROM {table.name}" for table in tables)))
        if kind != "sqlite":
            return self._ready[kind]
        url = self.fresh(kind)
        shutil.copy(self._ready[kind].removeprefix("sqlite:///"), url.removeprefix("sqlite:///"))
        return url

    def _server(self, kind: str) -> str:
        if kind not in self._urls:
            try:
                self._urls[kind] = self._stack.enter_context(_STARTERS[kind]())
            except MissingServerError as error:
                if os.environ.get("TROUPE_SOAK") == "full":
                    raise
                pytest.skip(str(error))
        return self._urls[kind]


async def _opened(url: str) -> None:
    async with Store(url, seconds=SECONDS):
        pass


async def _execute(url: str, *statements: str, own: bool = False) -> None:
    engine = create_async_engine(parsed(url), isolation_level="AUTOCOMMIT" if own else None)
    async with engine.connect() as connection, connection.begin():
        for statement in statements:
            await connection.execute(text(statement))
    await engine.dispose()


async def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    """What a query finds, past the store."""
    engine = create_async_engine(parsed(url))
    async with engine.connect() as connection:
        found = [tuple(row) for row in (await connection.execute(text(query))).all()]
    await engine.dispose()
    return found


#: Other connections to the same database, by their numbers.
SESSIONS = {
    "mariadb": "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()",
    "postgresql": "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
}


@dataclass
class Clock:
    """A time that passes when the test says so."""

    now: datetime = datetime(2026, 3, 29, 0, 59, 59, 250_001, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class Database:
    """One empty database with all tables."""

    kind: str
    url: str
    clock: Clock

    def store(self, *, ticking: bool = False, **options: Any) -> Store:
        """A store that goes by this clock, or by its own if `ticking`; it takes silent runners for dead at once."""
        chosen = {"seconds": SECONDS, "silence_s": 0} | options
        return Store(self.url, clock=None if ticking else self.clock, **chosen)

    def run(self, work: Callable[[Store], Awaitable[T]], *, ticking: bool = False, **options: Any) -> T:
        """Runs `work` with a store."""

        async def main() -> T:
            store = self.store(ticking=ticking, **options)
            try:
                return await work(store)
            finally:
                await store.close()

        return asyncio.run(main())

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What a query finds, past the store."""
        return asyncio.run(rows(self.url, query))


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Servers that last as long as the session."""
    found = Servers(tmp_path_factory.mktemp("databases"))
    yield found
    found.close()


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, servers: Servers) -> Database:
    """An empty database of each kind."""
    return Database(request.param, servers.ready(request.param), Clock())


@pytest.fixture(params=KINDS[1:])
def server(request: pytest.FixtureRequest, servers: Servers) -> Database:
    """An empty database of each kind that has a server."""
    return Database(request.param, servers.ready(request.param), Clock())


@pytest.fixture
def sqlite(servers: Servers) -> Database:
    """An empty SQLite database."""
    return Database("sqlite", servers.ready("sqlite"), Clock())
