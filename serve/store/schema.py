"""The tables. `migrations/` makes them; a test holds both to each other on every database."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, MetaData, String, Text
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from cluster.errors import UsageError
from serve.store.values import MAX_URL, TaskState

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
MAX_DOCUMENT = 1 << 20  # bytes; MySQL's default packet holds sixteen of them


def from_microseconds(count: int) -> datetime:
    """The aware time so many microseconds after 1970 in UTC."""
    return _EPOCH + count * _MICROSECOND


def to_microseconds(at: datetime) -> int:
    """The other way; TypeError for a time without a zone."""
    return (at - _EPOCH) // _MICROSECOND


class Utc(TypeDecorator[datetime]):
    """An aware time, kept as microseconds since 1970 in UTC.

    The three databases differ in zones, precision (MySQL rounds to seconds unless told) and daylight saving; an
    integer means the same on all of them, and sorts.
    """

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:  # noqa: ARG002 - its form
        return None if value is None else to_microseconds(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - its form
        return None if value is None else from_microseconds(value)


class State(TypeDecorator[TaskState]):
    """A task's state, kept as its word."""

    impl = String(16)
    cache_ok = True

    def process_bind_param(self, value: TaskState | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - its form
        return None if value is None else TaskState(value).value

    def process_result_value(self, value: str | None, dialect: Dialect) -> TaskState | None:  # noqa: ARG002 - its form
        return None if value is None else TaskState(value)


class Json(TypeDecorator[Any]):
    """A document as JSON text, byte by byte the same on all three databases.

    Their own JSON types sort keys, change numbers or refuse some characters, each another way; nothing here asks them
    to look inside.

    Raises:
        UsageError: it is larger than 1 MiB, or holds what JSON has no word for (NaN, bytes, times).
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        # MySQL's TEXT ends at 64 KiB.
        return mysql.MEDIUMTEXT() if dialect.name == "mysql" else super().load_dialect_impl(dialect)

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002 - its form
        return None if value is None else encoded(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002 - its form
        return None if value is None else json.loads(value)


def encoded(document: Any) -> str:
    """A document as the store keeps it: ASCII, so that no database's own ideas of characters matter."""
    try:
        text = json.dumps(dict(document), allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError("document", f"cannot be JSON: {error}") from error
    if len(text) > MAX_DOCUMENT:
        raise UsageError("document", f"has {len(text):,} bytes of JSON; at most {MAX_DOCUMENT:,} are kept")
    return text


class Base(DeclarativeBase):
    """All tables. On MySQL names are compared byte by byte, as the other two do."""

    metadata = MetaData(naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s"})


_MYSQL = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}
_MYSQL |= {key.replace("mysql", "mariadb"): value for key, value in _MYSQL.items()}


class TaskRow(Base):
    """A task. `turn` is its priority with the sign turned, so that one ascending index is the queue's order.

    `due` is the earliest moment of its next claim. `token` is its latest claim's; it stays when the task ends, so that
    whoever ended it learns that it did when it asks again.
    """

    __tablename__ = "tasks"
    __table_args__ = (
        Index(None, "state", "turn", "created", "id"),
        Index(None, "state", "lease_until"),
        Index(None, "owner", "created", "id"),
        Index(None, "created", "id"),
        Index(None, "state", "finished"),
        _MYSQL,
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(32))
    payload: Mapped[Any] = mapped_column(Json)
    turn: Mapped[int]
    webhook: Mapped[str] = mapped_column(String(MAX_URL))
    upload_bytes: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[TaskState] = mapped_column(State)
    created: Mapped[datetime] = mapped_column(Utc)
    updated: Mapped[datetime] = mapped_column(Utc)
    due: Mapped[datetime] = mapped_column(Utc)
    started: Mapped[datetime | None] = mapped_column(Utc)
    finished: Mapped[datetime | None] = mapped_column(Utc)
    attempts: Mapped[int] = mapped_column(default=0)
    round: Mapped[int] = mapped_column(default=0)
    lease_owner: Mapped[str] = mapped_column(String(128), default="")
    lease_until: Mapped[datetime | None] = mapped_column(Utc)
    token: Mapped[str] = mapped_column(String(32), default="")
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    progress: Mapped[Any | None] = mapped_column(Json)
    result: Mapped[Any | None] = mapped_column(Json)
    error: Mapped[Any | None] = mapped_column(Json)
    cost: Mapped[Any | None] = mapped_column(Json)
    last_event: Mapped[int] = mapped_column(default=0)
    progress_event: Mapped[int] = mapped_column(default=0)
    progress_at: Mapped[datetime | None] = mapped_column(Utc)


class EventRow(Base):
    """One change of a task. A task has one row for its latest progress, and one for each change of its state."""

    __tablename__ = "events"
    __table_args__ = (_MYSQL,)

    task_id: Mapped[str] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(16))
    at: Mapped[datetime] = mapped_column(Utc)
    data: Mapped[Any] = mapped_column(Json)


class DeliveryRow(Base):
    """One webhook. Its id is made of the task's id and round: the database itself allows one row for each end.

    `due` is None once it is settled, delivered or given up.
    """

    __tablename__ = "deliveries"
    __table_args__ = (Index(None, "due"), Index(None, "task_id"), _MYSQL)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    task_id: Mapped[str] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"))
    owner: Mapped[str] = mapped_column(String(64))
    url: Mapped[str] = mapped_column(String(MAX_URL))
    message: Mapped[Any] = mapped_column(Json)
    created: Mapped[datetime] = mapped_column(Utc)
    due: Mapped[datetime | None] = mapped_column(Utc)
    attempts: Mapped[int] = mapped_column(default=0)
    token: Mapped[str] = mapped_column(String(32), default="")
    delivered: Mapped[bool] = mapped_column(default=False)
    answer: Mapped[Any | None] = mapped_column(Json)


class KeyRow(Base):
    """An idempotency key; its id is a hash of owner and key. `answer` is None while the request is in flight."""

    __tablename__ = "idempotency"
    __table_args__ = (Index(None, "expires"), _MYSQL)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    token: Mapped[str] = mapped_column(String(32))
    fingerprint: Mapped[str] = mapped_column(String(128), default="")
    task_id: Mapped[str] = mapped_column(String(36), default="")
    answer: Mapped[Any | None] = mapped_column(Json)
    created: Mapped[datetime] = mapped_column(Utc)
    expires: Mapped[datetime] = mapped_column(Utc)


class OwnerRow(Base):
    """An owner; its row is locked while its tasks are counted against its quota."""

    __tablename__ = "owners"
    __table_args__ = (_MYSQL,)

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
