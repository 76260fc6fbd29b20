"""Which databases are taken, and what is said when one is not there, does not answer, or lacks its driver."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import sys
import time
from pathlib import Path

import pytest

from cluster.errors import UsageError
from serve.store import NewTask, Store, StoreBusyError, StoreError
from serve.store import database as database_module
from tests.serve.store.conftest import SESSIONS, Database

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("sqlite:///x.db", "sqlite+aiosqlite:///x.db"),
        ("sqlite+aiosqlite:////x/y.db", "sqlite+aiosqlite:////x/y.db"),
        (Path("/x/y 50%.db"), "sqlite+aiosqlite:////x/y 50%25.db"),
        ("mysql://me@host/name", "mysql+aiomysql://me@host/name"),
        ("mysql+aiomysql://me@host/name", "mysql+aiomysql://me@host/name"),
        ("mariadb://me@host/name", "mysql+aiomysql://me@host/name"),
        ("postgresql://me@host/name", "postgresql+asyncpg://me@host/name"),
        ("postgresql+asyncpg://me@host/name", "postgresql+asyncpg://me@host/name"),
        ("postgres://me@host/name", "postgresql+asyncpg://me@host/name"),
    ],
)
def test_urls_get_the_driver_that_is_used(url: str | Path, wanted: str) -> None:
    assert database_module.parsed(url).render_as_string() == wanted


@pytest.mark.parametrize(
    "url",
    [
        "",
        "tasks.db",
        f"//{SECRET}",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:x?mode=memory&uri=true",
        f"mysql://me:{SECRET}@host",
        f"mysql+pymysql://me:{SECRET}@host/name",
        f"postgresql+psycopg://me:{SECRET}@host/name",
        f"oracle://me:{SECRET}@host/name",
        f"postgresql://me:{SECRET}@host:port/name",
    ],
)
def test_urls_of_anything_else_are_refused_without_their_password(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        Store(url)
    assert "sqlite:///FILE" in caught.value.remedy
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(("url", "extra"), [("mysql://h/n", "mysql"), ("postgresql://h/n", "postgresql")])
def test_a_driver_that_is_not_installed_is_named_with_its_extra(
    url: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("aiomysql", "asyncpg"):
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UsageError, match=rf"not installed; pip install 'troupe\[{extra}\]'"):
        Store(url)


@pytest.mark.parametrize("scheme", ["mysql", "postgresql"])
def test_a_server_that_is_not_there_is_a_named_error(scheme: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, and nobody listens
        url = f"{scheme}://me:{SECRET}@127.0.0.1:{free.getsockname()[1]}/name"
        for what in (Store.open, Store.ping):

            async def work(what: object = what) -> None:
                await what(Store(url))  # type: ignore[operator]

            with pytest.raises(StoreError, match=rf"{scheme}\+\w+://me:\*\*\*@127\.0\.0\.1") as caught:
                asyncio.run(work())
            assert SECRET not in str(caught.value)


@pytest.mark.parametrize("scheme", ["mysql", "postgresql"])
def test_a_server_that_never_answers_is_waited_for_only_so_long(scheme: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"{scheme}://me@127.0.0.1:{silent.getsockname()[1]}/name"
        for what in (Store.open, Store.ping):

            async def work(what: object = what) -> None:
                await what(Store(url, seconds=0.5))  # type: ignore[operator]

            began = time.monotonic()
            with pytest.raises(StoreError, match=r"did not answer within 0\.5 s"):
                asyncio.run(work())
            assert time.monotonic() - began < 9  # the driver's own patience is 10 s


def test_a_file_that_another_process_keeps_locked_is_waited_for_only_so_long(sqlite: Database) -> None:
    holder = sqlite3.connect(sqlite.url.removeprefix("sqlite:///"), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")

    async def work(store: Store) -> None:
        assert (await store.page(None)).tasks == ()  # readers do not wait
        began = time.monotonic()
        with pytest.raises(StoreError, match=r"did not answer|database is locked"):
            await store.submit(NewTask("studio", "restage", {}))
        assert time.monotonic() - began < 30
        holder.execute("ROLLBACK")
        await store.submit(NewTask("studio", "restage", {}))

    sqlite.run(work, seconds=1)


def test_who_comes_in_a_crowd_is_told_so_in_time_and_readers_keep_no_writer_waiting(database: Database) -> None:
    async def work(store: Store) -> None:
        free = asyncio.Event()

        async def slow(_session: object, _now: object) -> None:
            await free.wait()

        reading = [asyncio.create_task(store._database.read(slow)) for _ in range(4)]
        await asyncio.sleep(0)
        began = time.monotonic()
        with pytest.raises(StoreBusyError, match="asked too much"):
            await store.page(None)
        assert time.monotonic() - began < 20
        await store.submit(NewTask("studio", "restage", {}))
        free.set()
        results = await asyncio.gather(*reading, return_exceptions=True)
        assert sum(isinstance(result, StoreBusyError) for result in results) == 3
        assert len((await store.page(None)).tasks) == 1

    database.run(work, connections=2, seconds=6)


def test_a_full_disk_is_a_named_error_and_loses_nothing(sqlite: Database) -> None:
    async def work(store: Store) -> None:
        task = await store.submit(NewTask("studio", "restage", {}))

        async def fill(session: object, _now: object) -> None:
            await session.execute(database_module.text("PRAGMA max_page_count = 1"))  # type: ignore[attr-defined]

        await store._database.read(fill)  # its one connection is used again below
        with pytest.raises(StoreError, match="full"):
            await store.submit(NewTask("studio", "restage", {"x": "y" * 1_000_000}))
        assert (await store.page(None)).tasks == (task,)

    sqlite.run(work, connections=1)


def test_a_database_that_restarts_is_found_again(server: Database) -> None:
    async def work(store: Store) -> None:
        await store.submit(NewTask("studio", "restage", {}))
        other = server.store()
        end = {"mariadb": "KILL {}", "postgresql": "SELECT pg_terminate_backend({})"}[server.kind]
        sessions = await rows_of(other, SESSIONS[server.kind])
        assert sessions
        for (session,) in sessions:
            await rows_of(other, end.format(session))
        await asyncio.sleep(0.1)
        await store.submit(NewTask("studio", "restage", {}))
        assert len((await store.page(None)).tasks) == 2
        await other.close()

    server.run(work, connections=1)


async def rows_of(store: Store, query: str) -> list[tuple[object, ...]]:
    async def work(session: object, _now: object) -> list[tuple[object, ...]]:
        result = await session.execute(database_module.text(query))  # type: ignore[attr-defined]
        return [tuple(row) for row in result.all()] if result.returns_rows else []

    return await store._database.read(work)
