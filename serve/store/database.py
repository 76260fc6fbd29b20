"""One way to talk to three databases: short transactions, bounded, repeated where the database says so.

Whoever writes locks the rows it read (`FOR UPDATE`; on SQLite `BEGIN IMMEDIATE` locks the whole file instead, and its
compiler leaves the clause out), so the same code is right on all of them.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool

from cluster.errors import TroupeError, UsageError
from serve.store.errors import StoreBusyError, StoreError
from serve.store.schema import from_microseconds

T = TypeVar("T")
Clock = Callable[[], datetime]
Work = Callable[[AsyncSession, datetime], Awaitable[T]]

SQLITE, MYSQL, POSTGRESQL = "sqlite", "mysql", "postgresql"

#: Driver, package to import, extra that installs it, by what a URL may begin with.
_DRIVERS = {
    SQLITE: ("sqlite+aiosqlite", "aiosqlite", ""),
    MYSQL: ("mysql+aiomysql", "aiomysql", "mysql"),
    "mariadb": ("mysql+aiomysql", "aiomysql", "mysql"),
    POSTGRESQL: ("postgresql+asyncpg", "asyncpg", "postgresql"),
    "postgres": ("postgresql+asyncpg", "asyncpg", "postgresql"),
}
_CONNECT_SECONDS = 10
_LOCK_SECONDS = 10
#: A machine that died in a transaction holds its locks no longer than this; connections idle so long are replaced.
_IDLE_SECONDS = 60
_TRIES = 6
#: Of the time that a transaction may take, this is for waiting until others of the process have had theirs.
_QUEUE_PART = 1 / 3
_NOW = {
    POSTGRESQL: text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)"),
    MYSQL: text("SELECT timestampdiff(MICROSECOND, '1970-01-01', utc_timestamp(6))"),
}
#: Deadlock, lock wait, changed row (MySQL, MariaDB); serialization failure, deadlock, lock not available (PostgreSQL).
_PASSING: frozenset[object] = frozenset({1213, 1205, 1020, "40001", "40P01", "55P03"})
_SQLITE_BUSY = frozenset({5, 6})  # SQLITE_BUSY, SQLITE_LOCKED


def parsed(url: str | Path) -> URL:
    """A database's URL with the driver that Troupe uses; a path is an SQLite file.

    Raises:
        UsageError: it is no URL of one of the three databases, names no database, or its driver is not installed.
    """
    forms = "sqlite:///FILE, mysql://USER:PASSWORD@HOST/NAME or postgresql://USER:PASSWORD@HOST/NAME"
    if isinstance(url, Path):
        return URL.create(_DRIVERS[SQLITE][0], database=str(url.absolute()))
    try:
        found = make_url(url)
    except (ArgumentError, ValueError) as error:
        # The text may hold a password, and is no URL that one could hide it in.
        raise UsageError("database", "is not a URL", remedy=f"write {forms}") from error
    name, _, driver = found.drivername.partition("+")
    full, package, extra = _DRIVERS.get(name, ("", "", ""))
    shown = found.render_as_string(hide_password=True)
    if not full or (driver and full != f"{name.replace('mariadb', MYSQL)}+{driver}"):
        raise UsageError(shown, f"{found.drivername} is not supported", remedy=f"write {forms}")
    if not found.database or found.database == ":memory:" or found.database.startswith("file:"):
        raise UsageError(shown, "names no database that several processes can share", remedy=f"write {forms}")
    if find_spec(package) is None:
        raise UsageError(
            shown, f"needs {package}, which is not installed", remedy=f"pip install 'troupe[{extra}]'" if extra else ""
        )
    return found.set(drivername=full)


def make_engine(url: URL, *, connections: int | None, seconds: float) -> AsyncEngine:
    """An engine with the settings that the store counts on.

    Args:
        url: of `parsed`.
        connections: most connections kept and opened at once, None to keep none.
        seconds: longest wait for a free connection or an answer.
    """
    kind = url.get_backend_name()
    options: dict[str, Any] = {"hide_parameters": True}  # payloads are nobody's business in a traceback
    if connections is None:
        options["poolclass"] = NullPool
    else:
        pool = {"pool_size": connections, "max_overflow": 0, "pool_timeout": seconds}
        options |= {"poolclass": AsyncAdaptedQueuePool, **pool}
    if kind == SQLITE:
        # Shorter than the whole patience, so that whoever waits for the file is told so.
        options["connect_args"] = {"timeout": seconds * 2 / 3, "isolation_level": None}
    else:
        # Locks follow single rows only if readers hold none between them.
        options |= {"isolation_level": "READ COMMITTED"}
        if connections is not None:
            options |= {"pool_pre_ping": True, "pool_recycle": _IDLE_SECONDS * 3 // 4}
    if kind == MYSQL:
        options["connect_args"] = {
            "connect_timeout": _CONNECT_SECONDS,
            "charset": "utf8mb4",
            # What does not fit is refused, not cut off.
            "init_command": f"SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', time_zone = '+00:00', "
            f"wait_timeout = {_IDLE_SECONDS}, innodb_lock_wait_timeout = {_LOCK_SECONDS}",
        }
    elif kind == POSTGRESQL:
        settings = {"lock_timeout": f"{_LOCK_SECONDS}s", "idle_in_transaction_session_timeout": f"{_IDLE_SECONDS}s"}
        options["connect_args"] = {
            "timeout": _CONNECT_SECONDS,
            "command_timeout": seconds,
            "server_settings": {"application_name": "troupe", "timezone": "UTC", **settings},
        }
    engine = create_async_engine(url, **options)
    if kind == SQLITE:
        event.listen(engine.sync_engine, "connect", _set_up_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    # An accepted task survives a power cut: the log is synced at each commit, which NORMAL leaves to the checkpoints.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later can be refused in the middle; one that says so first waits.
    writing = connection.get_execution_options().get("troupe_writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def prepare_file(url: URL) -> None:
    """Makes an SQLite database's folder and file, for its owner only.

    Raises:
        StoreError: that cannot be.
    """
    path = Path(url.database or "")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreError(
            path, f"cannot be written: {error.strerror or error}", remedy="set troupe.service.data to another folder"
        ) from error


class Database:
    """Connections to one database, for one event loop.

    Args:
        url: of `parsed`.
        clock: what time it is, aware; by default the server's clock (machines need not agree), or with SQLite, which
            is on this machine, ours.
        connections: most connections at once.
        seconds: longest time that a transaction takes with everything that it waits for.
    """

    def __init__(self, url: URL, *, clock: Clock | None = None, connections: int = 8, seconds: float = 30) -> None:
        self.url = url
        self.name = url.render_as_string(hide_password=True)
        self._kind = url.get_backend_name()
        self._clock = clock
        self._seconds = seconds
        self._engine = make_engine(url, connections=connections, seconds=seconds)
        self._writing = self._engine.execution_options(troupe_writing=True)
        # SQLite has one writer; in a process they take turns, instead of sleeping until the file happens to be free.
        # Readers are many and keep no writer waiting: what writes ends requests, what reads repeats them.
        writers = 1 if self._kind == SQLITE else max(1, connections // 2)
        self._writers, self._readers = asyncio.Semaphore(writers), asyncio.Semaphore(max(1, connections - writers))

        self._begun = set[asyncio.Task[Any]]()

    async def close(self) -> None:
        """Closes all connections, once what was begun has ended."""
        if self._begun:
            await asyncio.wait(self._begun, timeout=self._seconds)
        await self._engine.dispose()

    async def read(self, work: Work[T]) -> T:
        """Does `work` with a session that it only reads from, and the time.

        Raises:
            StoreError: the database is not there, does not answer in time, or answers with an error.
            StoreBusyError: too many others of this process are waiting for it.
        """

        async def transaction(_gone: asyncio.Event) -> T:
            async with asyncio.timeout(self._seconds), AsyncExitStack() as stack:
                await self._await(stack, self._readers)
                session = await stack.enter_async_context(AsyncSession(self._engine))
                await stack.enter_async_context(session.begin())
                return await work(session, await self._now(session))

        with self._named():
            return await self._to_its_end(transaction)

    async def write(self, work: Work[T]) -> T:
        """Does `work` in one transaction: all of it or nothing. It may be done again after a deadlock. For a
        caller that is cancelled it is nothing, unless it was being committed already.

        Raises:
            StoreError: as `read`. After a lost connection nobody knows whether the transaction was.
            IntegrityError: a row with the same key exists.
        """

        async def transactions(gone: asyncio.Event) -> T:
            async with asyncio.timeout(self._seconds):
                for delay in (0.01 * 2**turn for turn in range(_TRIES - 1)):
                    try:
                        return await self._transaction(work, gone)
                    except DBAPIError as error:
                        if not _passes(error):
                            raise
                    await asyncio.sleep(random.uniform(delay, 2 * delay))
                return await self._transaction(work, gone)

        with self._named():
            return await self._to_its_end(transactions)

    async def _transaction(self, work: Work[T], gone: asyncio.Event) -> T:
        async with AsyncExitStack() as stack:
            await self._await(stack, self._writers)
            session = await stack.enter_async_context(AsyncSession(self._writing, expire_on_commit=False))
            await stack.enter_async_context(session.begin())
            if gone.is_set():
                raise asyncio.CancelledError
            done = await work(session, await self._now(session))
            if gone.is_set():
                raise asyncio.CancelledError
            return done

    async def _to_its_end(self, transaction: Callable[[asyncio.Event], Coroutine[Any, Any, T]]) -> T:
        """Has a transaction end by itself when its caller is cancelled, told by the event.

        A statement that is cut off leaves SQLite's file locked for 40 s: its thread goes on, and so does what it began.
        """
        gone = asyncio.Event()
        task = asyncio.create_task(transaction(gone))
        self._begun.add(task)
        task.add_done_callback(self._on_end)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            gone.set()
            raise

    def _on_end(self, task: asyncio.Task[Any]) -> None:
        self._begun.discard(task)
        if not task.cancelled():
            task.exception()  # of which nobody may have heard

    async def _await(self, stack: AsyncExitStack, places: asyncio.Semaphore) -> None:
        """Takes a place among those that use the database. Who comes in a crowd is told so before its patience ends: it
        can come again, while one that waited to the end could not tell a busy database from a dead one."""
        try:
            async with asyncio.timeout(self._seconds * _QUEUE_PART):
                await stack.enter_async_context(places)
        except TimeoutError as error:
            raise StoreBusyError("the service", "is asked too much just now", remedy="try again in a moment") from error

    async def _now(self, session: AsyncSession) -> datetime:
        if self._clock is not None:
            return self._clock()
        if self._kind == SQLITE:
            return datetime.now(UTC)
        return from_microseconds((await session.execute(_NOW[self._kind])).scalar_one())

    @contextmanager
    def _named(self) -> Iterator[None]:
        with named_errors(self.name, self._seconds):
            yield


@contextmanager
def named_errors(name: str, seconds: float) -> Iterator[None]:
    """Turns what drivers raise into a StoreError that names the database; IntegrityError passes."""
    try:
        yield
    except IntegrityError:
        raise
    except TimeoutError as error:
        reason = f"did not answer within {seconds:g} s"
        raise StoreError(name, reason, remedy="look whether it is overloaded or its disk is full") from error
    except StatementError as error:
        if isinstance(error.orig, TroupeError):
            raise error.orig from None
        raise StoreError(name, _first_line(error.orig or error), remedy=_REMEDY) from error
    except (SQLAlchemyError, OSError) as error:
        raise StoreError(name, _first_line(error), remedy=_REMEDY) from error


_REMEDY = "see whether the database runs, and what its own log says"


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _passes(error: DBAPIError) -> bool:
    """Whether the same transaction may succeed when it is done again; the database has rolled it back or will."""
    orig = error.orig
    if getattr(orig, "sqlite_errorcode", 0) & 0xFF in _SQLITE_BUSY:
        return True
    code = getattr(orig, "sqlstate", None) or (orig.args[0] if orig is not None and orig.args else None)
    return code in _PASSING
