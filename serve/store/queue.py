"""The queue: tasks are rows with leases. Whoever claims one has it until it ends, is given back, or falls silent."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from cluster.errors import UsageError
from serve.store.changes import end, locked, queue_again, task_of, tell, tell_progress
from serve.store.database import Database
from serve.store.schema import KeyRow, TaskRow
from serve.store.values import MAX_PRIORITY, Claim, Document, Heartbeat, TaskState

#: Tasks looked at before a claim looks again; more than that many runners seldom reach for the same one at once.
_CANDIDATES = 16
_ROUNDS = 4
_MAX_LEASE_SECONDS = 86_400.0


class Queue:
    """The part of the store that runners use. See `Store`."""

    _database: Database
    _attempts: int
    _silence_s: float
    #: When this store first saw a lease that had run out, by task and end of the lease.
    _silent: dict[tuple[str, datetime | None], float]

    async def claim(self, owner: str, lease_s: float, *, at_least: int = -MAX_PRIORITY) -> Claim | None:
        """Takes the task that is next: one whose runner fell silent, else of the highest priority the oldest.

        Each task goes to one claimer, however many ask at once. A task that was claimed as often as it may be ends as
        failed instead, and one that its dead runner should have cancelled as cancelled. A runner counts as silent once
        the same lease was seen to have run out at two looks, so call again.

        Args:
            owner: the runner's name, for people to read.
            lease_s: seconds until the task counts as abandoned without a heartbeat.
            at_least: only tasks of this priority or a higher one.

        Returns:
            The claim, None when there is nothing to do.
        """
        if not 0 < lease_s <= _MAX_LEASE_SECONDS or not 0 < len(owner) <= 128:
            raise UsageError(f"claim of {owner[:128]!r} for {lease_s} s", "has no name or no duration")

        async def waiting(session: AsyncSession, now: datetime) -> bool:
            return bool(await self._candidates(session, now, at_least))

        async def take(session: AsyncSession, now: datetime) -> Claim | None:
            for task_id in await self._candidates(session, now, at_least):
                # Locked by its key alone: a locking search would lock what it only looks at, and hide it from others.
                row = await locked(session, task_id, skip=True)
                if row is not None and _claimable(row, now) and not self._close_abandoned(session, row, now):
                    _lease(session, row, now, owner, lease_s)
                    return Claim(task_of(row), row.token, lease_s)
            return None

        for _ in range(_ROUNDS):
            # Nothing to do is the usual answer, and costs SQLite's other writers nothing.
            if not await self._database.read(waiting):
                return None
            claim = await self._database.write(take)
            if claim is not None:
                return claim
        return None

    async def heartbeat(self, claim: Claim, progress: Document | None = None) -> Heartbeat:
        """Renews a lease and tells how far the task is (`stage`, `frames`, `total`, `stages`), None for no news."""

        async def work(session: AsyncSession, now: datetime) -> Heartbeat:
            row = await _held(session, claim)
            if row is None:
                return Heartbeat(cancel=False, lost=True)
            row.lease_until = now + timedelta(seconds=claim.lease_s)
            if progress is not None:
                await tell_progress(session, row, now, progress)
            return Heartbeat(cancel=row.cancel_requested, lost=False)

        return await self._database.write(work)

    async def finish(
        self,
        claim: Claim,
        state: TaskState,
        *,
        result: Document | None = None,
        error: Document | None = None,
        cost: Document | None = None,
        progress: Document | None = None,
    ) -> bool:
        """Ends a task as done, failed or cancelled.

        Returns:
            Whether this claim ended it so, now or in an earlier call whose answer was lost. If not, nothing changed.

        Raises:
            UsageError: the state does not end a task.
        """
        if not state.ended:
            raise UsageError(f"task {claim.task.id}", f"cannot be finished as {state}")

        async def work(session: AsyncSession, now: datetime) -> bool:
            row = await locked(session, claim.task.id)
            if row is None or row.token != claim.token:
                return False
            if row.state is not TaskState.RUNNING:
                return row.state is state
            if progress is not None:
                row.progress = dict(progress)
            end(session, row, now, state, result=result, error=error, cost=cost)
            return True

        return await self._database.write(work)

    async def retry_later(self, claim: Claim, error: Document, *, delay_s: float = 0) -> TaskState | None:
        """Gives a task back after an attempt that failed for a reason that may pass; the last one ends it as failed.

        Args:
            claim: of the attempt.
            error: the problem; an event tells of it, and the task keeps it if this was its last attempt.
            delay_s: seconds until it can be claimed again.

        Returns:
            What the task is now, None when the lease was lost and nothing changed.
        """

        async def work(session: AsyncSession, now: datetime) -> TaskState | None:
            row = await _held(session, claim)
            if row is None:
                return None
            if row.attempts >= self._attempts and not row.cancel_requested:
                end(session, row, now, TaskState.FAILED, error=error)
            else:
                queue_again(session, row, now, now + timedelta(seconds=delay_s), error)
            return row.state

        return await self._database.write(work)

    async def release(self, claim: Claim, *, progress: Document | None = None, delay_s: float = 0) -> bool:
        """Gives a task back, as when the runner is to stop: the attempt does not count.

        Args:
            claim: of the attempt.
            progress: how far it is, and why it waits; None for no news.
            delay_s: seconds until it can be claimed again.

        Returns:
            False when it was lost.
        """

        async def work(session: AsyncSession, now: datetime) -> bool:
            row = await _held(session, claim)
            if row is None:
                return False
            row.attempts -= 1
            if row.attempts == 0:
                row.started = None
            if progress is not None:
                await tell_progress(session, row, now, progress)
            queue_again(session, row, now, now + timedelta(seconds=delay_s) if delay_s else row.due, None)
            return True

        return await self._database.write(work)

    async def sweep(self) -> int:
        """Ends what nobody will: abandoned tasks without attempts left or to be cancelled; forgets old keys.

        Claims do the former too; this is for when no runner claims. To be called now and then by whoever is up.

        Returns:
            Tasks that were ended.
        """
        old = delete(KeyRow)

        async def work(session: AsyncSession, now: datetime) -> int:
            await session.execute(old.where(KeyRow.expires <= now))
            hopeless = or_(TaskRow.attempts >= self._attempts, TaskRow.cancel_requested)
            ended = 0
            for task_id in await self._abandoned(session, now, hopeless):
                row = await locked(session, task_id, skip=True)
                if row is not None and _claimable(row, now):
                    ended += self._close_abandoned(session, row, now)
            return ended

        total = 0
        while ended := await self._database.write(work):
            total += ended
        return total

    async def _candidates(self, session: AsyncSession, now: datetime, at_least: int) -> Sequence[str]:
        """Abandoned tasks, then queued ones: a row that a stopped machine keeps locked must hide none behind it."""
        mine = TaskRow.turn <= -at_least
        ready = select(TaskRow.id).where(TaskRow.state == TaskState.QUEUED, TaskRow.due <= now, mine)
        ready = ready.order_by(TaskRow.turn, TaskRow.created, TaskRow.id).limit(_CANDIDATES)
        abandoned = await self._abandoned(session, now, mine)
        return [*abandoned, *(await session.execute(ready)).scalars()]

    async def _abandoned(self, session: AsyncSession, now: datetime, which: ColumnElement[bool]) -> list[str]:
        """Running tasks whose leases have run out, and had a while ago, the oldest first.

        After a suspend, or when the database was away, all leases have run out at once: those who live come to say so.
        """
        query = select(TaskRow.id, TaskRow.lease_until).where(
            TaskRow.state == TaskState.RUNNING, TaskRow.lease_until <= now, which
        )
        found = await session.execute(query.order_by(TaskRow.lease_until, TaskRow.id).limit(_CANDIDATES))
        at = time.monotonic()
        self._silent = {(task_id, until): self._silent.get((task_id, until), at) for task_id, until in found}
        return [task_id for (task_id, _), since in self._silent.items() if at - since >= self._silence_s]

    def _close_abandoned(self, session: AsyncSession, row: TaskRow, now: datetime) -> bool:
        """Ends a task whose runner fell silent if it is not to be run again; whether it was."""
        if row.state is not TaskState.RUNNING:
            return False
        if row.cancel_requested:
            row.token = ""
            end(session, row, now, TaskState.CANCELLED)
            return True
        if row.attempts >= self._attempts:
            row.token = ""
            end(session, row, now, TaskState.FAILED, error=_interrupted(row.attempts))
            return True
        return False


def _interrupted(attempts: int) -> Document:
    return {
        "type": "about:blank",
        "title": "Interrupted too often",
        "status": 500,
        "code": "interrupted",
        "detail": f"the process that ran the task ended without a word in the last of {attempts} attempts",
    }


def _lease(session: AsyncSession, row: TaskRow, now: datetime, owner: str, lease_s: float) -> None:
    row.state = TaskState.RUNNING
    row.attempts += 1
    row.started = row.started or now
    row.lease_owner = owner
    row.lease_until = now + timedelta(seconds=lease_s)
    # A runner that lost its lease may get the same task again under the same name: only the token tells both apart.
    row.token = secrets.token_hex(16)
    tell(session, row, now)


async def _held(session: AsyncSession, claim: Claim) -> TaskRow | None:
    """The row of a claim that still holds, locked. A lease that ran out holds until somebody else takes the task."""
    row = await locked(session, claim.task.id)
    mine = row is not None and row.state is TaskState.RUNNING and row.token == claim.token
    return row if mine else None


def _claimable(row: TaskRow, now: datetime) -> bool:
    """Whether a task, by now locked, still is what it was when it was found."""
    if row.state is TaskState.RUNNING:
        return row.lease_until is not None and row.lease_until <= now
    return row.state is TaskState.QUEUED and row.due <= now
