"""Tasks as their owners see them: accepted, looked at, listed, cancelled, retried, removed."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Collection, Iterable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import Select, and_, delete, exists, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from cluster.errors import UsageError
from serve.store.changes import end, locked, task_of, tell
from serve.store.database import Database
from serve.store.errors import CursorError, QuotaError, TaskStateError
from serve.store.keys import fulfil
from serve.store.schema import DeliveryRow, EventRow, OwnerRow, TaskRow, from_microseconds, to_microseconds
from serve.store.values import (
    DAY_SECONDS,
    Document,
    Event,
    NewTask,
    Page,
    Quota,
    Reservation,
    Task,
    TaskState,
    Usage,
    is_id,
)

MAX_PAGE = 500
S = TypeVar("S", bound=Select[*tuple[Any, ...]])

_ACTIVE = (TaskState.QUEUED, TaskState.RUNNING)
_ENDED = tuple(state for state in TaskState if state.ended)


class Tasks:
    """The part of the store that the front desk uses. See `Store`."""

    _database: Database

    async def submit(
        self,
        new: NewTask,
        *,
        quota: Quota | None = None,
        reservation: Reservation | None = None,
        fingerprint: str = "",
        answer: Callable[[Task], Document] | None = None,
    ) -> Task:
        """Accepts a task; when this returns, it is on disk.

        Args:
            new: the task.
            quota: what its owner may have, this task included; exact however many are submitted at once.
            reservation: the idempotency key of the request (`reserve`). Task and key are kept together or not at all.
            fingerprint: of the request, for the key.
            answer: what the request is answered, for the key.

        Raises:
            QuotaError: the owner has too much already.
            KeyBusyError: the reservation ran out, and another request took the key.
            UsageError: the id is in use, or the payload is too large or no JSON.
        """

        async def work(session: AsyncSession, now: datetime) -> Task:
            if quota is not None:
                await _check_quota(session, now, new.owner, quota, new.upload_bytes)
            row = TaskRow(
                id=new.id,
                owner=new.owner,
                kind=new.kind,
                payload=dict(new.payload),
                turn=-new.priority,
                webhook=new.webhook,
                upload_bytes=new.upload_bytes,
                state=TaskState.QUEUED,
                created=now,
                updated=now,
                due=now,
            )
            session.add(row)
            await session.flush()
            tell(session, row, now)
            task = task_of(row)
            if reservation is not None:
                await fulfil(session, now, reservation, fingerprint, task.id, answer(task) if answer else {})
            return task

        try:
            return await self._database.write(work)
        except IntegrityError as error:
            raise UsageError(f"task {new.id}", "is there already", remedy="take a new id for a new task") from error

    async def get(self, task_id: str, owner: str | None) -> Task | None:
        """A task by its id; None if there is none, or its owner is another (`owner` None sees all)."""

        async def work(session: AsyncSession, _now: datetime) -> Task | None:
            row = (await session.execute(_of(select(TaskRow), owner).where(TaskRow.id == task_id))).scalar_one_or_none()
            return None if row is None else task_of(row)

        return await self._database.read(work)

    async def page(
        self,
        owner: str | None,
        *,
        state: TaskState | None = None,
        kind: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page:
        """Tasks, newest first. Pages that follow each other by their cursors show each task at most once, and every
        task that was there from the first page to the last, whatever is added or removed meanwhile.

        Args:
            owner: whose, None for all.
            state, kind: only such.
            cursor: of the page before, with the same owner, state and kind.
            limit: most tasks, 1 to 500.

        Raises:
            CursorError: the cursor was not given out here.
            UsageError: the limit is out of range.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise UsageError("limit", f"{limit} is not within 1 to {MAX_PAGE}")
        query = _of(select(TaskRow), owner).order_by(TaskRow.created.desc(), TaskRow.id.desc()).limit(limit + 1)
        if state is not None:
            query = query.where(TaskRow.state == state)
        if kind is not None:
            query = query.where(TaskRow.kind == kind)
        if cursor is not None:
            created, task_id = _position(cursor)
            # Spelled so that every planner walks the index from there.
            older = or_(TaskRow.created < created, TaskRow.id < task_id)
            query = query.where(TaskRow.created <= created, older)

        async def work(session: AsyncSession, _now: datetime) -> Page:
            rows = (await session.execute(query)).scalars().all()
            return Page(
                tuple(task_of(row) for row in rows[:limit]), _cursor(rows[limit - 1]) if len(rows) > limit else None
            )

        return await self._database.read(work)

    async def request_cancel(self, task_id: str, owner: str | None) -> Task | None:
        """Cancels a queued task at once, and one whose runner fell silent; asks the runner of any other to stop.

        An ended task stays as it is. What is returned says which it was by its state; None as `get`.
        """

        async def work(session: AsyncSession, now: datetime) -> Task | None:
            row = await locked(session, task_id)
            if row is None or owner not in (None, row.owner):
                return None
            abandoned = row.lease_until is not None and row.lease_until <= now
            if row.state is TaskState.QUEUED or (row.state is TaskState.RUNNING and abandoned):
                row.cancel_requested, row.token = True, ""
                end(session, row, now, TaskState.CANCELLED)
            elif row.state is TaskState.RUNNING and not row.cancel_requested:
                row.cancel_requested = True
                tell(session, row, now)
            return task_of(row)

        return await self._database.write(work)

    async def retry(self, task_id: str, owner: str | None, *, quota: Quota | None = None) -> Task | None:
        """Queues a failed or cancelled task again, with all its attempts; its end is told to its webhook anew.

        Raises:
            TaskStateError: it is queued, running or done.
            QuotaError: as `submit`.
        """

        async def work(session: AsyncSession, now: datetime) -> Task | None:
            if quota is not None and owner is not None:
                await _check_quota(session, now, owner, quota, 0)
            row = await locked(session, task_id)
            if row is None or owner not in (None, row.owner):
                return None
            if row.state not in (TaskState.FAILED, TaskState.CANCELLED):
                raise TaskStateError(
                    f"task {row.id}", f"is {row.state}", remedy="only failed and cancelled tasks are retried"
                )
            row.state, row.due = TaskState.QUEUED, now
            row.round += 1
            row.attempts, row.cancel_requested, row.token = 0, False, ""
            row.started = row.finished = None
            row.progress = row.result = row.error = row.cost = None
            tell(session, row, now)
            return task_of(row)

        return await self._database.write(work)

    async def events_since(self, task_id: str, number: int = 0, *, limit: int = 200) -> tuple[Event, ...]:
        """A task's events with greater numbers, in order, at most `limit`. Whose task it is, `get` tells."""
        mine = (EventRow.task_id == task_id, EventRow.number > number)
        query = select(EventRow).where(*mine).order_by(EventRow.number).limit(limit)

        async def work(session: AsyncSession, _now: datetime) -> tuple[Event, ...]:
            rows = (await session.execute(query)).scalars()
            return tuple(Event(row.number, row.kind, row.at, row.data) for row in rows)

        return await self._database.read(work)

    async def usage(self, owner: str, window_s: float = DAY_SECONDS) -> Usage:
        """What an owner has, its uploads over the last `window_s` seconds."""

        async def work(session: AsyncSession, now: datetime) -> Usage:
            return await _usage(session, now, owner, window_s)

        return await self._database.read(work)

    async def counts(self, owner: str | None = None) -> dict[TaskState, int]:
        """How many tasks are in each state, of one owner or of all."""
        query = _of(select(TaskRow.state, func.count()), owner).group_by(TaskRow.state)

        async def work(session: AsyncSession, _now: datetime) -> dict[TaskState, int]:
            found = {row[0]: row[1] for row in (await session.execute(query)).all()}
            return {state: found.get(state, 0) for state in TaskState}

        return await self._database.read(work)

    async def ahead(self, task: Task) -> int:
        """How many queued tasks are claimed before this one, as the queue is now."""
        turn = -task.priority
        sooner = or_(TaskRow.created < task.created, and_(TaskRow.created == task.created, TaskRow.id < task.id))
        before = or_(TaskRow.turn < turn, and_(TaskRow.turn == turn, sooner))
        query = select(func.count()).where(TaskRow.state == TaskState.QUEUED, before)

        async def work(session: AsyncSession, _now: datetime) -> int:
            return int((await session.execute(query)).scalar_one())

        return await self._database.read(work)

    async def states(self, ids: Iterable[str]) -> dict[str, TaskState]:
        """The states of those ids that are tasks; folders of the others are leftovers."""
        wanted = list(ids)

        async def work(session: AsyncSession, _now: datetime) -> dict[str, TaskState]:
            found: dict[str, TaskState] = {}
            for first in range(0, len(wanted), MAX_PAGE):
                some = select(TaskRow.id, TaskRow.state).where(TaskRow.id.in_(wanted[first : first + MAX_PAGE]))
                found.update((row[0], row[1]) for row in (await session.execute(some)).all())
            return found

        return await self._database.read(work)

    async def purge(
        self,
        *,
        before: datetime | None = None,
        ids: Collection[str] | None = None,
        owner: str | None = None,
        limit: int = MAX_PAGE,
    ) -> tuple[str, ...]:
        """Removes ended tasks with their events, oldest first; not those whose webhook is still to be told.

        Remove a task's files after its row: a row without files would promise a result that is gone, while files
        without a row are found by `states`.

        Args:
            before: those that ended earlier.
            ids: those among these, at most 500.
            owner: those of one owner.
            limit: most tasks at once, 1 to 500; call again until none is left.

        Returns:
            Ids of what was removed.
        """
        if not 1 <= limit <= MAX_PAGE or (ids is not None and len(ids) > MAX_PAGE):
            raise UsageError("purge", f"takes 1 to {MAX_PAGE} tasks at once")
        pending = exists().where(DeliveryRow.task_id == TaskRow.id, DeliveryRow.due.is_not(None))
        ended = TaskRow.state.in_(_ENDED)
        query = _of(select(TaskRow.id), owner).where(ended, ~pending).order_by(TaskRow.finished, TaskRow.id)
        if before is not None:
            query = query.where(TaskRow.finished < before)
        if ids is not None:
            query = query.where(TaskRow.id.in_(ids))

        async def work(session: AsyncSession, _now: datetime) -> tuple[str, ...]:
            found = (await session.execute(query.limit(limit))).scalars().all()
            # Looked for without locks, then locked by key: a retry may have come in between.
            mine = select(TaskRow.id).where(TaskRow.id.in_(found), ended, ~pending).with_for_update(skip_locked=True)
            removed = (await session.execute(mine)).scalars().all()
            await session.execute(delete(TaskRow).where(TaskRow.id.in_(removed)))
            return tuple(removed)

        return await self._database.write(work)


def _of(query: S, owner: str | None) -> S:
    return query if owner is None else query.where(TaskRow.owner == owner)


async def _check_quota(session: AsyncSession, now: datetime, owner: str, quota: Quota, more_bytes: int) -> None:
    """Locks the owner's row until the transaction ends, so that what is counted stays so."""
    mine = select(OwnerRow).where(OwnerRow.name == owner).with_for_update()
    if (await session.execute(mine)).scalar_one_or_none() is None:
        try:
            async with session.begin_nested():
                session.add(OwnerRow(name=owner))
        except IntegrityError:
            await session.execute(mine)
    usage = await _usage(session, now, owner, quota.window_s)
    active = usage.queued + usage.running
    if quota.active is not None and active >= quota.active:
        raise QuotaError(owner, f"has {active} tasks queued or running of {quota.active}", remedy="wait for one to end")
    if quota.upload_bytes is not None and usage.upload_bytes + more_bytes > quota.upload_bytes:
        sums = f"{usage.upload_bytes:,} bytes and {more_bytes:,} more, of {quota.upload_bytes:,}"
        raise QuotaError(owner, f"has uploaded {sums} in {quota.window_s:g} s", remedy="wait until some are older")


async def _usage(session: AsyncSession, now: datetime, owner: str, window_s: float) -> Usage:
    mine = TaskRow.owner == owner
    active = select(TaskRow.state, func.count()).where(mine, TaskRow.state.in_(_ACTIVE)).group_by(TaskRow.state)
    counts = {row[0]: row[1] for row in (await session.execute(active)).all()}
    recent = TaskRow.created > now - timedelta(seconds=window_s)
    sums = func.coalesce(func.sum(TaskRow.upload_bytes), 0), func.min(TaskRow.created)
    uploaded, oldest = (await session.execute(select(*sums).where(mine, recent, TaskRow.upload_bytes > 0))).one()
    frees_s = window_s - (now - (oldest or now)).total_seconds()
    return Usage(counts.get(TaskState.QUEUED, 0), counts.get(TaskState.RUNNING, 0), int(uploaded), frees_s)


def _cursor(row: TaskRow) -> str:
    text = json.dumps([to_microseconds(row.created), row.id])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _position(cursor: str) -> tuple[datetime, str]:
    try:
        text = base64.urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4))
        match json.loads(text):
            case [int(created), str(task_id)] if created is not True and 0 < created < 2**53 and is_id(task_id):
                return from_microseconds(created), task_id
    except (ValueError, binascii.Error, OverflowError, RecursionError):
        pass
    raise CursorError("cursor", "is not one that was given out here", remedy="start again without one")
