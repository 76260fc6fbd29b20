"""Brings a database to this version's schema, with Alembic, in one process at a time.

The steps are the files under `migrations/versions`. SQLite and PostgreSQL take a step wholly or not at all; MySQL
cannot, so steps look at what a killed one has left behind (`migrations.tables`).
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, text

from serve.store.database import MYSQL, POSTGRESQL, SQLITE, make_engine, named_errors, prepare_file
from serve.store.errors import StoreError

#: Other applications of the same database may use Alembic too, under its own name for this.
VERSION_TABLE = "troupe_schema"

_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK_KEY = int.from_bytes(hashlib.sha256(VERSION_TABLE.encode()).digest()[:8], signed=True)
_POLL_SECONDS = 0.05
#: For all steps together: one over a large table may take long. Whoever comes meanwhile waits as long.
STEP_SECONDS = 3600.0
_alembic = threading.Lock()
"""Alembic keeps the migration in progress in a global of the process."""


def upgrade(url: URL, seconds: float) -> None:
    """Applies the steps that are missing. Blocks; not for a thread that runs an event loop.

    Args:
        url: of `database.parsed`.
        seconds: longest wait for the database.

    Raises:
        StoreError: see `Store.open`.
    """
    kind = url.get_backend_name()
    name = url.render_as_string(hide_password=True)
    _wait(partial(_alembic.acquire, blocking=False), name)
    try:
        with named_errors(name, seconds):
            if kind == SQLITE:
                prepare_file(url)
                with _file_lock(Path(url.database or ""), name):
                    _use_wal(Path(url.database or ""), name, seconds)
                    asyncio.run(_upgrade(url, name, seconds))
            else:
                asyncio.run(_upgrade(url, name, seconds))
    finally:
        _alembic.release()


async def _upgrade(url: URL, name: str, seconds: float) -> None:
    # SQLite's own wait is for the file, which nobody keeps long; a server's is for the answer to a step.
    longest = seconds if url.get_backend_name() == SQLITE else STEP_SECONDS
    engine = make_engine(url, connections=None, seconds=longest).execution_options(troupe_writing=True)
    try:
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(seconds):
                connection = await stack.enter_async_context(engine.connect())
                await stack.enter_async_context(connection.begin())
            async with asyncio.timeout(STEP_SECONDS):
                await connection.run_sync(_steps, name)
    finally:
        await engine.dispose()


def _steps(connection: Connection, name: str) -> None:
    kind = connection.dialect.name
    if kind == POSTGRESQL:
        lock = text("SELECT pg_try_advisory_xact_lock(:key)").bindparams(key=_LOCK_KEY)
        _wait(lambda: connection.execute(lock).scalar_one(), name)
    elif kind == MYSQL:
        # Its locks are the server's, not the database's.
        lock = text("SELECT get_lock(concat('troupe.', left(sha1(database()), 40)), 0)")
        _wait(lambda: connection.execute(lock).scalar_one(), name)
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    script = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()
    if current == script.get_current_head():
        return
    try:
        if current is not None:
            script.get_revision(current)
    except CommandError as error:
        raise StoreError(
            name,
            f"was made by a newer version of Troupe (schema {current}, here {script.get_current_head()})",
            remedy="install that version again; a database never goes back",
        ) from error
    command.upgrade(config, "head")


@contextmanager
def _file_lock(path: Path, name: str) -> Iterator[None]:
    """Holds a lock beside an SQLite file: SQLite itself does not wait when two processes set WAL mode at once."""
    with path.with_name(f".{path.name}.upgrade").open("ab") as file:

        def taken() -> bool:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        _wait(taken, name)
        yield


def _wait(taken: Callable[[], object], name: str) -> None:
    """Waits for a lock of whoever is at it already; it goes with its process or connection."""
    deadline = time.monotonic() + STEP_SECONDS
    while not taken():
        if time.monotonic() > deadline:
            reason = f"is being upgraded by another process for {STEP_SECONDS:g} s"
            raise StoreError(name, reason, remedy="see what that process waits for")
        time.sleep(_POLL_SECONDS)  # the loop of this thread has nothing else to do


def _use_wal(path: Path, name: str, seconds: float) -> None:
    """Readers and the writer no longer wait for each other; the file itself remembers this."""
    try:
        with closing(sqlite3.connect(path, timeout=seconds)) as connection:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    except sqlite3.Error as error:
        raise StoreError(
            name, str(error), remedy="see whether it is an SQLite file, and nothing else uses it"
        ) from error
    if mode != "wal":
        raise StoreError(
            name, f"cannot use a write-ahead log here (it keeps to {mode!r})", remedy="put it on a local disk"
        )
