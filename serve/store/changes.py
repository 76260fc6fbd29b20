"""What may happen to a task's row inside a transaction that has locked it, and the events that tell of it."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from serve.store.schema import DeliveryRow, EventRow, TaskRow
from serve.store.values import Document, Task, TaskState

#: Progress is told at most so often; what comes in between is seen by whoever asks for the task.
PROGRESS_SECONDS = 1.0

_SAME = tuple({field.name for field in fields(Task)} - {"priority"})


def task_of(row: TaskRow) -> Task:
    """The value of a row."""
    return Task(priority=-row.turn, **{name: getattr(row, name) for name in _SAME})


async def locked(session: AsyncSession, task_id: str, *, skip: bool = False) -> TaskRow | None:
    """A task's row as it is now, nobody else's until the transaction ends; None if there is none.

    Args:
        session, task_id: of the transaction, of the task.
        skip: a row that somebody else has locked counts as none, instead of being waited for.
    """
    query = select(TaskRow).where(TaskRow.id == task_id).with_for_update(skip_locked=skip)
    return (await session.execute(query.execution_options(populate_existing=True))).scalar_one_or_none()


def tell(session: AsyncSession, row: TaskRow, now: datetime, error: Document | None = None) -> None:
    """Adds an event of the row's state."""
    row.last_event += 1
    row.updated = now
    data = {"state": row.state, "attempts": row.attempts, "cancel_requested": row.cancel_requested}
    if error is not None:
        data["error"] = dict(error)
    session.add(EventRow(task_id=row.id, number=row.last_event, kind="state", at=now, data=data))


async def tell_progress(session: AsyncSession, row: TaskRow, now: datetime, progress: Document) -> None:
    """Stores the progress, and tells of it unless that was done within the last second.

    The event of earlier progress becomes this one: nobody needs both, and a task's events stay few.
    """
    if progress == row.progress:
        return
    row.progress = dict(progress)
    row.updated = now
    if row.progress_at is not None and now - row.progress_at < timedelta(seconds=PROGRESS_SECONDS):
        return
    before, row.progress_at = row.progress_event, now
    row.last_event += 1
    row.progress_event = row.last_event
    values = {"number": row.last_event, "kind": "progress", "at": now, "data": row.progress}
    if before:
        mine = (EventRow.task_id == row.id, EventRow.number == before)
        await session.execute(update(EventRow).where(*mine).values(values))
    else:
        session.add(EventRow(task_id=row.id, **values))


def end(
    session: AsyncSession,
    row: TaskRow,
    now: datetime,
    state: TaskState,
    *,
    result: Document | None = None,
    error: Document | None = None,
    cost: Document | None = None,
) -> None:
    """Ends a task, tells of it, and owes its webhook one delivery."""
    row.state = state
    row.finished = now
    row.lease_owner, row.lease_until = "", None
    row.result, row.error, row.cost = result, error, cost
    tell(session, row, now, error)
    if row.webhook:
        session.add(
            DeliveryRow(
                id=f"{row.id}.{row.round}",
                task_id=row.id,
                owner=row.owner,
                url=row.webhook,
                message=_message(row),
                created=now,
                due=now,
            )
        )


def queue_again(session: AsyncSession, row: TaskRow, now: datetime, due: datetime, error: Document | None) -> None:
    """Puts a running task back into its old place in the queue; one that is to be cancelled ends instead."""
    row.lease_owner, row.lease_until, row.token = "", None, ""
    if row.cancel_requested:
        end(session, row, now, TaskState.CANCELLED)
        return
    row.state = TaskState.QUEUED
    row.due = due
    tell(session, row, now, error)


def _message(row: TaskRow) -> Document:
    names = ("id", "kind", "state", "attempts", "result", "error", "cost")
    times = ("created", "started", "finished")
    return {name: getattr(row, name) for name in names} | {name: _iso(getattr(row, name)) for name in times}


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
