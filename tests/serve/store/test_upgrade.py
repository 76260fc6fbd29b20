"""Migrations: from nothing, by many processes at once, never back, never into somebody else's tables."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine

from serve.store import NewTask, Store, StoreError
from serve.store.database import parsed
from serve.store.schema import Base
from serve.store.upgrade import VERSION_TABLE
from tests.serve.store.conftest import KINDS, SECONDS, Servers, rows

ROOT = Path(__file__).resolve().parents[3]
_OPEN = """
import asyncio, sys
from serve.store import NewTask, Store
async def main():
    async with Store(sys.argv[1], seconds=120) as store:
        await store.submit(NewTask("studio", "restage", {}))
sys.stdin.readline()
asyncio.run(main())
"""


async def statement(url: str, query: str) -> None:
    engine = create_async_engine(parsed(url))
    async with engine.begin() as connection:
        await connection.execute(text(query))
    await engine.dispose()


async def opened(url: str | Path, seconds: float = SECONDS) -> None:
    async with Store(url, seconds=seconds) as store:
        await store.ping()


async def missing(url: str) -> list[object]:
    """Opens a database twice; returns where it then differs from the models."""

    def differences(connection: Connection) -> list[object]:
        options = {"version_table": VERSION_TABLE, "compare_type": True, "target_metadata": Base.metadata}
        found: list[object] = compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)
        return found

    await opened(url)
    await opened(url)  # nothing to do
    engine = create_async_engine(parsed(url))
    async with engine.connect() as connection:
        found = await connection.run_sync(differences)
    await engine.dispose()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_database_gets_the_schema_of_the_models(servers: Servers, kind: str) -> None:
    url = servers.fresh(kind)
    assert asyncio.run(missing(url)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_upgrade_at_once_and_both_work(servers: Servers, kind: str) -> None:
    url = servers.fresh(kind)
    command = [sys.executable, "-c", _OPEN, url]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in processes:  # both have imported what they need, or soon will
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    assert asyncio.run(rows(url, "SELECT count(*) FROM tasks")) == [(2,)]
    assert asyncio.run(rows(url, f"SELECT count(*) FROM {VERSION_TABLE}")) == [(1,)]


@pytest.mark.parametrize("kind", KINDS)
def test_many_stores_of_one_process_open_at_once(servers: Servers, kind: str) -> None:
    url = servers.fresh(kind)

    async def work() -> None:
        await asyncio.gather(*(opened(url) for _ in range(4)))

    asyncio.run(work())


@pytest.mark.parametrize("kind", KINDS)
def test_a_database_of_a_newer_version_is_refused_and_left_alone(servers: Servers, kind: str) -> None:
    url = servers.fresh(kind)
    asyncio.run(opened(url))
    asyncio.run(statement(url, f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(StoreError, match=r"newer version of Troupe \(schema 9999, here 0001\)"):
        asyncio.run(opened(url))
    assert asyncio.run(rows(url, f"SELECT version_num FROM {VERSION_TABLE}")) == [("9999",)]


@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_somebody_else_are_refused_and_left_alone(servers: Servers, kind: str) -> None:
    url = servers.fresh(kind)
    asyncio.run(statement(url, "CREATE TABLE deliveries (id INTEGER, pizza INTEGER)"))
    asyncio.run(statement(url, "INSERT INTO deliveries VALUES (1, 2)"))
    with pytest.raises(StoreError, match="table deliveries: is there already and not Troupe's"):
        asyncio.run(opened(url))
    assert asyncio.run(rows(url, "SELECT * FROM deliveries")) == [(1, 2)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_upgrade_that_was_killed_half_way_is_done_again(servers: Servers, kind: str) -> None:
    # As MySQL leaves it, where each statement is a transaction of its own.
    url = servers.fresh(kind)
    asyncio.run(opened(url))
    for query in (f"DELETE FROM {VERSION_TABLE}", "DROP TABLE idempotency", "DROP TABLE owners"):
        asyncio.run(statement(url, query))
    on = " ON tasks" if kind == "mariadb" else ""
    asyncio.run(statement(url, f"DROP INDEX ix_tasks_state_finished{on}"))
    assert asyncio.run(missing(url)) == []


def test_an_upgrade_waits_for_another_one_as_long_as_that_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.store.upgrade.STEP_SECONDS", 0.5)
    path = tmp_path / "troupe.db"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl,sys; f=open(sys.argv[1],'a'); fcntl.flock(f,2); print(flush=True); input()",
            str(tmp_path / ".troupe.db.upgrade"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    began = time.monotonic()
    with pytest.raises(StoreError, match="being upgraded by another process"):
        asyncio.run(opened(path, seconds=0.1))
    assert time.monotonic() - began >= 0.5
    holder.communicate(b"\n")
    asyncio.run(opened(path))


def test_the_file_is_its_owners_alone_and_in_wal_mode(tmp_path: Path) -> None:
    path = tmp_path / "new folder 50% ü?#" / "troupe.db"

    async def work() -> None:
        async with Store(path) as store:
            await store.submit(NewTask("studio", "restage", {}))
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
            assert {mode for name, mode in modes.items() if name.startswith("troupe.db")} == {0o600}
            assert {"troupe.db", "troupe.db-wal", "troupe.db-shm"} <= set(modes)

    asyncio.run(work())
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert sqlite3.connect(path).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"not a database " * 1000)
    with pytest.raises(StoreError, match="file is not a database"):
        asyncio.run(opened(path))
    assert path.read_bytes() == b"not a database " * 1000


def test_a_place_that_cannot_be_written_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        asyncio.run(opened(tmp_path / "file" / "troupe.db"))
    with pytest.raises(StoreError, match="cannot be written"):
        asyncio.run(opened(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
