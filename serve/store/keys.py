"""Idempotency keys: a request that is sent again is answered as the first time, and does nothing.

After draft-ietf-httpapi-idempotency-key-header-07: the same key with another request is refused (422), as is one whose
first request is still being handled (409); answers are kept for a day.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from serve.store.database import Database
from serve.store.errors import KeyBusyError
from serve.store.schema import KeyRow
from serve.store.values import DAY_SECONDS, Document, Remembered, Reservation

KEPT_SECONDS = DAY_SECONDS


class Keys:
    """The part of the store that remembers requests. See `Store`."""

    _database: Database

    async def reserve(self, owner: str, key: str, *, hold_s: float) -> Reservation | Remembered:
        """Takes an idempotency key before the request is read.

        Hand the reservation to `submit`, or `abandon` it if the request fails. What a killed process held is free again
        after `hold_s` seconds, which `renew` begins anew, or when its successor calls `free_reservations`. What is
        remembered is compared with this request, and answered again, by `Remembered.replay`.

        Raises:
            KeyBusyError: another request with it is being handled.
        """
        key_id = hashlib.sha256(f"{owner}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()

        async def work(session: AsyncSession, now: datetime) -> Reservation | Remembered:
            row = await _locked(session, key_id)
            if row is not None and row.expires > now:
                if row.answer is None:
                    raise _busy()
                return Remembered(row.fingerprint, row.task_id, row.answer)
            token, expires = secrets.token_hex(16), now + timedelta(seconds=hold_s)
            if row is None:
                session.add(KeyRow(id=key_id, owner=owner, token=token, created=now, expires=expires))
            else:
                row.token, row.created, row.expires = token, now, expires
                row.fingerprint = row.task_id = ""
                row.answer = None
            return Reservation(key_id, token)

        try:
            return await self._database.write(work)
        except IntegrityError as error:  # two came at once, and the other one was first
            raise _busy() from error

    async def renew(self, reservation: Reservation, *, hold_s: float) -> None:
        """Holds a key for so long from now; one that somebody else has taken meanwhile stays theirs."""

        async def work(session: AsyncSession, now: datetime) -> None:
            row = await _locked(session, reservation.id)
            if row is not None and row.token == reservation.token and row.answer is None:
                row.expires = now + timedelta(seconds=hold_s)

        await self._database.write(work)

    async def free_reservations(self) -> None:
        """Frees every key whose request was being handled, when whoever handled them is no more.

        A request that is handled all the same, being late, finds its key gone and is refused as it ends (`submit`).
        """

        async def work(session: AsyncSession, _now: datetime) -> None:
            await session.execute(delete(KeyRow).where(KeyRow.answer.is_(None)))

        await self._database.write(work)

    async def abandon(self, reservation: Reservation) -> None:
        """Frees a key whose request failed, for the client's next try. A fulfilled one stays."""
        mine = (KeyRow.id == reservation.id, KeyRow.token == reservation.token, KeyRow.answer.is_(None))

        async def work(session: AsyncSession, _now: datetime) -> None:
            await session.execute(delete(KeyRow).where(*mine))

        await self._database.write(work)


async def fulfil(
    session: AsyncSession, now: datetime, reservation: Reservation, fingerprint: str, task_id: str, answer: Document
) -> None:
    """Remembers, within the transaction of a submission, what the request was answered.

    Raises:
        KeyBusyError: the reservation ran out, and another request took the key.
    """
    row = await _locked(session, reservation.id)
    if row is None or row.token != reservation.token or row.answer is not None:
        raise _busy()
    row.fingerprint, row.task_id, row.answer = fingerprint, task_id, dict(answer)
    row.expires = now + timedelta(seconds=KEPT_SECONDS)


async def _locked(session: AsyncSession, key_id: str) -> KeyRow | None:
    return (await session.execute(select(KeyRow).where(KeyRow.id == key_id).with_for_update())).scalar_one_or_none()


def _busy() -> KeyBusyError:
    return KeyBusyError(
        "Idempotency-Key",
        "another request with it is being handled",
        remedy="wait for its answer, or a little and retry",
    )
