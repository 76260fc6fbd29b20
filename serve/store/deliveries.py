"""Webhooks that are owed: one row for each end of a task, claimed, tried and settled."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import CursorResult, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from serve.store.database import Database
from serve.store.schema import DeliveryRow
from serve.store.values import Delivery, Document, Told

_CANDIDATES = 16
#: Deliveries in flight of one owner: whose receivers do not answer does not keep all senders waiting.
_OF_ONE_OWNER = 2


class Deliveries:
    """The part of the store that the sender of webhooks uses. See `Store`."""

    _database: Database

    async def claim_delivery(self, lease_s: float) -> Delivery | None:
        """Takes the delivery that is due longest, and counts the attempt; None when none is due, or those that are
        belong to owners of whom two are in flight already.

        One claimer gets it. If it says nothing for `lease_s` seconds (killed, say), the delivery is due again: the
        receiver may then hear of it twice, with the same `Delivery.id`.
        """

        async def waiting(session: AsyncSession, now: datetime) -> bool:
            return bool(await _due(session, now))

        async def take(session: AsyncSession, now: datetime) -> Delivery | None:
            for delivery_id in await _due(session, now):
                row = await _locked(session, delivery_id, skip=True)
                if row is not None and row.due is not None and row.due <= now:
                    row.due = now + timedelta(seconds=lease_s)
                    row.attempts += 1
                    row.token = secrets.token_hex(16)
                    return _delivery(row)
            return None

        return await self._database.write(take) if await self._database.read(waiting) else None

    async def settle_delivery(
        self, delivery: Delivery, *, delivered: bool, retry_s: float | None = None, answer: Document | None = None
    ) -> bool:
        """Says how an attempt went.

        Args:
            delivery: as it was claimed.
            delivered: the receiver took it.
            retry_s: seconds until the next attempt, None to give up; of no meaning once delivered.
            answer: what the receiver said (`reason`), for people to read.

        Returns:
            False when the claim ran out and somebody else took it: nothing was changed.
        """

        async def work(session: AsyncSession, now: datetime) -> bool:
            row = await _locked(session, delivery.id)
            if row is None or row.due is None or row.token != delivery.token:
                return False
            row.delivered = delivered
            row.due = None if delivered or retry_s is None else now + timedelta(seconds=retry_s)
            row.answer = None if answer is None else dict(answer)
            row.token = ""
            return True

        return await self._database.write(work)

    async def give_up_deliveries(self, reason: str) -> int:
        """Settles all that is owed, for when nobody can send it any more; returns how many that were."""
        owed = update(DeliveryRow).where(DeliveryRow.due.is_not(None))

        async def work(session: AsyncSession, _now: datetime) -> int:
            done = await session.execute(owed.values(due=None, token="", answer={"reason": reason}))
            assert isinstance(done, CursorResult)
            return done.rowcount

        return await self._database.write(work)

    async def deliveries_of(self, task_id: str) -> tuple[Told, ...]:
        """How a task's webhooks went, one for each of its ends, oldest first."""
        query = select(DeliveryRow).where(DeliveryRow.task_id == task_id).order_by(DeliveryRow.created)

        async def work(session: AsyncSession, _now: datetime) -> tuple[Told, ...]:
            rows = (await session.execute(query)).scalars()
            return tuple(Told(row.id, row.attempts, row.delivered, row.due, row.answer) for row in rows)

        return await self._database.read(work)


def _delivery(row: DeliveryRow) -> Delivery:
    return Delivery(
        id=row.id,
        task_id=row.task_id,
        owner=row.owner,
        url=row.url,
        message=row.message,
        created=row.created,
        attempts=row.attempts,
        token=row.token,
    )


async def _due(session: AsyncSession, now: datetime) -> Sequence[str]:
    in_flight = select(DeliveryRow.owner).where(DeliveryRow.due > now, DeliveryRow.token != "")
    busy = in_flight.group_by(DeliveryRow.owner).having(func.count() >= _OF_ONE_OWNER)
    due = select(DeliveryRow.id).where(DeliveryRow.due <= now, DeliveryRow.owner.not_in(busy))
    query = due.order_by(DeliveryRow.due).limit(_CANDIDATES)
    return (await session.execute(query)).scalars().all()


async def _locked(session: AsyncSession, delivery_id: str, *, skip: bool = False) -> DeliveryRow | None:
    query = select(DeliveryRow).where(DeliveryRow.id == delivery_id).with_for_update(skip_locked=skip)
    return (await session.execute(query.execution_options(populate_existing=True))).scalar_one_or_none()
