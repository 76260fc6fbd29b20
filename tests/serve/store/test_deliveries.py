"""Webhooks owed: one for each end, claimed by one sender, tried until settled."""

from __future__ import annotations

import asyncio
from typing import Any

from serve.store import Delivery, NewTask, Store, TaskState
from tests.serve.store.conftest import Database

URL = "https://example.org/hook"


async def ended(store: Store, **values: Any) -> str:
    task = await store.submit(NewTask(**{"owner": "studio", "kind": "restage", "payload": {}, "webhook": URL} | values))
    claim = await store.claim("runner", 30)
    assert claim is not None
    assert await store.finish(claim, TaskState.DONE, result={"frames": 9}, cost={"wall": 0.5})
    return task.id


async def due(store: Store) -> Delivery:
    delivery = await store.claim_delivery(30)
    assert delivery is not None
    return delivery


def test_each_way_to_end_owes_one_delivery(database: Database) -> None:
    async def work(store: Store) -> None:
        ids = []
        for _ in range(6):
            ids.append((await store.submit(NewTask("studio", "restage", {}, webhook=URL))).id)
            database.clock.sleep(0.001)
        silent = await store.submit(NewTask("studio", "restage", {}))
        await store.request_cancel(ids[0], None)
        for state in (TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED):
            claim = await store.claim("runner", 30)
            assert claim is not None
            await store.finish(claim, state)
        claim = await store.claim("runner", 30)
        assert claim is not None
        assert await store.retry_later(claim, {"code": "x"}) is TaskState.FAILED
        await store.claim("runner", 30)
        database.clock.sleep(30)
        assert await store.sweep() == 1
        assert await store.request_cancel(silent.id, None)
        found = []
        while (delivery := await store.claim_delivery(30)) is not None:
            found.append((delivery.task_id, delivery.message["state"]))
            await store.settle_delivery(delivery, delivered=True)
        words = ("cancelled", "done", "failed", "cancelled", "failed", "failed")
        assert sorted(found) == sorted(zip(ids, words, strict=True))

    database.run(work, attempts=1)
    assert database.rows("SELECT count(*), count(DISTINCT task_id) FROM deliveries") == [(6, 6)]


def test_the_message_is_the_task_as_it_ended(database: Database) -> None:
    async def work(store: Store) -> None:
        task_id = await ended(store)
        delivery = await due(store)
        assert (delivery.task_id, delivery.owner, delivery.url, delivery.attempts) == (task_id, "studio", URL, 1)
        assert delivery.message == {
            "id": task_id,
            "kind": "restage",
            "state": "done",
            "attempts": 1,
            "result": {"frames": 9},
            "error": None,
            "cost": {"wall": 0.5},
            "created": database.clock.now.isoformat(),
            "started": database.clock.now.isoformat(),
            "finished": database.clock.now.isoformat(),
        }

    database.run(work)


def test_a_delivery_goes_to_one_sender_and_comes_back_until_it_is_settled(database: Database) -> None:
    async def work(store: Store) -> None:
        await ended(store)
        stores = [database.store() for _ in range(4)]
        claims = await asyncio.gather(*(other.claim_delivery(30) for other in stores))
        (first,) = (claim for claim in claims if claim is not None)
        assert await store.settle_delivery(first, delivered=False, retry_s=60, answer={"status": 503})
        assert not await store.settle_delivery(first, delivered=True)
        assert await store.claim_delivery(30) is None
        database.clock.sleep(60)
        second = await due(store)
        assert (second.id, second.attempts) == (first.id, 2)
        database.clock.sleep(30)  # its sender was killed
        third = await due(store)
        assert (third.id, third.attempts) == (first.id, 3)
        assert not await store.settle_delivery(second, delivered=False)
        assert await store.settle_delivery(third, delivered=True, answer={"status": 204})
        database.clock.sleep(1000)
        assert await store.claim_delivery(30) is None
        (row,) = await store.deliveries_of(first.task_id)
        assert (row.delivered, row.due, row.attempts, row.answer) == (True, None, 3, {"status": 204})
        for other in stores:
            await other.close()

    database.run(work)


def test_an_owner_whose_receivers_do_not_answer_keeps_nobody_elses_waiting(database: Database) -> None:
    async def work(store: Store) -> None:
        for _ in range(20):
            await ended(store)
        database.clock.sleep(1)
        other = await ended(store, owner="another")
        slow = [await due(store) for _ in range(2)]
        assert (await due(store)).task_id == other
        assert await store.claim_delivery(30) is None
        assert await store.settle_delivery(slow[0], delivered=False, retry_s=60)
        assert (await due(store)).owner == "studio"
        database.clock.sleep(30)  # the senders were killed
        assert (await due(store)).owner == "studio"

    database.run(work)


def test_what_is_owed_and_cannot_be_sent_any_more_is_given_up(database: Database) -> None:
    async def work(store: Store) -> None:
        task_id, other = await ended(store), await ended(store)
        assert await store.settle_delivery(await due(store), delivered=True, answer={"reason": "HTTP 204"})
        assert await store.give_up_deliveries("no secret") == 1
        assert await store.claim_delivery(30) is None
        told = [*await store.deliveries_of(task_id), *await store.deliveries_of(other)]
        assert sorted((row.delivered, row.due, row.answer) for row in told) == [
            (False, None, {"reason": "no secret"}),
            (True, None, {"reason": "HTTP 204"}),
        ]
        assert set(await store.purge(ids=[task_id, other])) == {task_id, other}

    database.run(work)


def test_a_delivery_that_is_given_up_stays_on_record(database: Database) -> None:
    async def work(store: Store) -> None:
        task_id = await ended(store)
        assert await store.settle_delivery(await due(store), delivered=False, answer={"error": "refused"})
        database.clock.sleep(10_000)
        assert await store.claim_delivery(30) is None
        (row,) = await store.deliveries_of(task_id)
        assert (row.delivered, row.due, row.answer) == (False, None, {"error": "refused"})

    database.run(work)
