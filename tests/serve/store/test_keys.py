"""Idempotency keys: sent again, answered again, done once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve.store import KeyBusyError, KeyReusedError, NewTask, Remembered, Reservation, Store, Task
from tests.serve.store.conftest import Database

HOLD = 600.0


def new(**values: Any) -> NewTask:
    return NewTask(**{"owner": "studio", "kind": "restage", "payload": {}} | values)


def answer(task: Task) -> dict[str, Any]:
    return {"status": 202, "headers": {"Location": f"/v1/tasks/{task.id}"}, "body": {"state": task.state}}


async def reserved(store: Store, key: str = "key", owner: str = "studio") -> Reservation:
    found = await store.reserve(owner, key, hold_s=HOLD)
    assert isinstance(found, Reservation)
    return found


async def remembered(store: Store, key: str = "key", owner: str = "studio") -> Remembered:
    found = await store.reserve(owner, key, hold_s=HOLD)
    assert isinstance(found, Remembered)
    return found


def test_a_request_sent_again_is_answered_again_and_done_once(database: Database) -> None:
    async def work(store: Store) -> None:
        reservation = await reserved(store)
        task = await store.submit(new(), reservation=reservation, fingerprint="body", answer=answer)
        for _ in range(2):
            again = await remembered(store)
            assert again.task_id == task.id
            assert again.replay("body") == answer(task)
            with pytest.raises(KeyReusedError):
                again.replay("another body")
        assert len((await store.page(None)).tasks) == 1

    database.run(work)


def test_a_key_in_flight_is_refused_to_others(database: Database) -> None:
    async def work(store: Store) -> None:
        reservation = await reserved(store)
        with pytest.raises(KeyBusyError):
            await store.reserve("studio", "key", hold_s=HOLD)
        await reserved(store, key="KEY")
        await reserved(store, key="key ")
        await reserved(store, owner="another")
        await store.abandon(reservation)
        await store.submit(new(), reservation=await reserved(store), answer=answer)

    database.run(work)


def test_of_many_at_once_one_reserves(database: Database) -> None:
    async def work(store: Store) -> None:
        stores = [store, database.store(), database.store()]
        for round_ in range(5):
            tries = (stores[index % 3].reserve("studio", f"key {round_}", hold_s=HOLD) for index in range(9))
            results = await asyncio.gather(*tries, return_exceptions=True)
            assert sum(isinstance(result, Reservation) for result in results) == 1
            assert sum(isinstance(result, KeyBusyError) for result in results) == 8
        for other in stores[1:]:
            await other.close()

    database.run(work)


def test_what_a_killed_process_held_is_free_after_its_time_and_the_late_one_submits_nothing(database: Database) -> None:
    async def work(store: Store) -> None:
        late = await reserved(store)
        database.clock.sleep(HOLD)
        taken = await reserved(store)
        with pytest.raises(KeyBusyError):
            await store.submit(new(), reservation=late, fingerprint="late", answer=answer)
        assert (await store.page(None)).tasks == ()
        await store.abandon(late)
        task = await store.submit(new(), reservation=taken, fingerprint="taken", answer=answer)
        with pytest.raises(KeyBusyError):
            await store.submit(new(), reservation=late, fingerprint="late", answer=answer)
        await store.abandon(taken)  # too late: it was fulfilled
        assert (await remembered(store)).task_id == task.id
        assert len((await store.page(None)).tasks) == 1

    database.run(work)


def test_a_key_is_held_anew_while_its_request_comes_and_freed_by_whoever_follows_a_dead_process(
    database: Database,
) -> None:
    async def work(store: Store) -> None:
        held = await reserved(store)
        for _ in range(3):
            database.clock.sleep(HOLD * 0.9)
            await store.renew(held, hold_s=HOLD)
            with pytest.raises(KeyBusyError):
                await reserved(store)
        fulfilled = await store.submit(new(), reservation=await reserved(store, "other"), answer=answer)
        await store.free_reservations()
        taken = await reserved(store)
        await store.renew(held, hold_s=100 * HOLD)  # too late: it is another's
        with pytest.raises(KeyBusyError):
            await store.submit(new(), reservation=held, answer=answer)
        await store.submit(new(), reservation=taken, answer=answer)
        assert (await remembered(store, "other")).task_id == fulfilled.id

    database.run(work)


def test_answers_are_kept_for_a_day(database: Database) -> None:
    async def work(store: Store) -> None:
        await store.submit(new(), reservation=await reserved(store), fingerprint="body", answer=answer)
        database.clock.sleep(86_399)
        await store.sweep()
        assert (await remembered(store)).fingerprint == "body"
        database.clock.sleep(1)
        await store.abandon(await reserved(store))
        await reserved(store, key="another")
        database.clock.sleep(HOLD)
        await store.sweep()

    database.run(work)
    assert database.rows("SELECT count(*) FROM idempotency") == [(0,)]


def test_keys_of_any_text_are_taken(database: Database) -> None:
    async def work(store: Store) -> None:
        for key in ("", "é", "\ud800", "\0", "x" * 100_000):
            await reserved(store, key=key)

    database.run(work)
