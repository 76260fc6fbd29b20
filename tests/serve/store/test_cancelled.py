"""Callers that are cancelled in the middle of a transaction hold nobody else up."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from serve.store import NewTask, Store
from tests.serve.store.conftest import Database

ROUNDS = 80


def test_what_a_cancelled_caller_began_is_nothing_or_whole_and_locks_nothing(database: Database) -> None:
    async def work(store: Store) -> None:
        first = await store.submit(NewTask("studio", "restage", {}))
        claim = await store.claim("runner", 3000.0)
        assert claim is not None and claim.task.id == first.id
        for turn in range(ROUNDS):
            new = NewTask("studio", "restage", {"turn": turn})
            calls = (store.submit(new), store.heartbeat(claim, {"turn": turn}), store.counts())
            cut = [asyncio.create_task(call) for call in calls]
            await asyncio.sleep(turn % 20 * 0.0007)
            for each in cut:
                each.cancel()
                with suppress(asyncio.CancelledError):
                    await each
            began = time.monotonic()
            assert not (await store.heartbeat(claim, {"then": turn})).lost
            assert time.monotonic() - began < 5
            found = await store.get(new.id, "studio")
            assert found is None or (found.payload == new.payload and await store.events_since(new.id))

    database.run(work, ticking=True)
