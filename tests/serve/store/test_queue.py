"""The queue: order, leases, fencing, attempts, cancel, and one winner."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import UsageError
from serve.store import Claim, NewTask, Store, Task, TaskState, TaskStateError
from serve.store.changes import locked
from tests.conftest import SoakCount
from tests.serve.store.conftest import Database

LEASE = 30.0
PROBLEM = {"code": "pin_unavailable", "detail": "the pin restage does not answer"}


def new(**values: Any) -> NewTask:
    return NewTask(**{"owner": "studio", "kind": "restage", "payload": {"input": "0"}} | values)


async def claimed(store: Store, runner: str = "runner") -> Claim:
    claim = await store.claim(runner, LEASE)
    assert claim is not None
    return claim


async def seen(store: Store, task_id: str) -> Task:
    task = await store.get(task_id, "studio")
    assert task is not None
    return task


def test_highest_priority_then_oldest_is_claimed_first(database: Database) -> None:
    async def work(store: Store) -> None:
        submitted = {}
        for name, priority in (("late", 0), ("first", 5), ("second", 5), ("last", -1)):
            submitted[name] = (await store.submit(new(priority=priority))).id
            database.clock.sleep(0.001)
        late = await store.get(submitted["late"], None)
        assert late is not None
        assert await store.ahead(late) == 2
        order = [(await claimed(store)).task.id for _ in submitted]
        assert order == [submitted[name] for name in ("first", "second", "late", "last")]
        assert await store.claim("runner", LEASE) is None

    database.run(work)


def test_each_task_is_claimed_once_by_many_workers(database: Database) -> None:
    tasks, workers = 40, 12

    async def worker(name: str) -> list[str]:
        store = database.store(ticking=True, connections=2)
        won = []
        while (claim := await store.claim(name, LEASE)) is not None:
            won.append(claim.task.id)
            assert await store.finish(claim, TaskState.DONE)
        await store.close()
        return won

    async def work(store: Store) -> None:
        ids = [(await store.submit(new(webhook="https://example.org/"))).id for _ in range(tasks)]
        won = await asyncio.gather(*(worker(f"worker {index}") for index in range(workers)))
        assert sorted(task_id for some in won for task_id in some) == sorted(ids)
        assert sum(map(bool, won)) > 1  # else nobody contended
        for task_id in ids:
            task = await seen(store, task_id)
            assert (task.state, task.attempts, task.last_event) == (TaskState.DONE, 1, 3)

    database.run(work, ticking=True)
    assert database.rows("SELECT count(*), count(DISTINCT task_id) FROM deliveries") == [(tasks, tasks)]


def test_one_task_has_one_winner(database: Database) -> None:
    async def work(store: Store) -> None:
        others = [database.store(connections=1) for _ in range(10)]
        for _ in range(10):
            task = await store.submit(new())
            claims = await asyncio.gather(*(other.claim("worker", LEASE) for other in others))
            winners = [claim for claim in claims if claim is not None]
            assert [claim.task.id for claim in winners] == [task.id]
            assert (await seen(store, task.id)).attempts == 1
        for other in others:
            await other.close()

    database.run(work)


def test_a_lost_lease_changes_nothing(database: Database) -> None:
    async def work(store: Store) -> None:
        task = await store.submit(new(webhook="https://example.org/"))
        lost = await claimed(store, "same name")
        database.clock.sleep(LEASE + 1)
        held = await claimed(store, "same name")
        before = await seen(store, task.id), await store.events_since(task.id)
        database.clock.sleep(0.5)
        beat = await store.heartbeat(lost, {"stage": "matte"})
        assert (beat.lost, beat.cancel) == (True, False)
        for state in (TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED):
            assert not await store.finish(lost, state, result={"file": "wrong.mp4"})
        assert not await store.release(lost)
        assert await store.retry_later(lost, PROBLEM) is None
        assert (await seen(store, task.id), await store.events_since(task.id)) == before
        assert not (await store.heartbeat(held)).lost
        assert await store.finish(held, TaskState.DONE, result={"file": "right.mp4"})
        assert not await store.finish(lost, TaskState.DONE, result={"file": "wrong.mp4"})
        assert (await seen(store, task.id)).result == {"file": "right.mp4"}

    database.run(work)
    assert database.rows("SELECT count(*) FROM deliveries") == [(1,)]


def test_heartbeats_keep_a_task_and_silence_loses_it(database: Database) -> None:
    async def work(store: Store) -> None:
        task = await store.submit(new())
        claim = await claimed(store)
        for _ in range(3):
            database.clock.sleep(LEASE - 1)
            assert not (await store.heartbeat(claim)).lost
            assert await store.claim("other", LEASE) is None
        database.clock.sleep(LEASE + 1)
        # Late, but nobody took it: the work goes on instead of being done again.
        assert not (await store.heartbeat(claim)).lost
        database.clock.sleep(LEASE)
        other = await claimed(store, "other")
        assert (other.task.id, other.task.attempts, other.task.lease_owner) == (task.id, 2, "other")
        assert (await store.heartbeat(claim)).lost

    database.run(work)


def test_a_living_runner_keeps_its_task_when_its_lease_ran_out_in_its_sleep(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    awake = 0.0
    monkeypatch.setattr("serve.store.queue.time", SimpleNamespace(monotonic=lambda: awake))

    async def work(store: Store) -> None:
        nonlocal awake
        task = await store.submit(new())
        claim = await claimed(store)
        for _ in range(2):
            database.clock.sleep(8 * 3600)  # the machine is suspended, or the database away
            for _ in range(3):
                assert await store.claim("idle", LEASE) is None
                assert await store.sweep() == 0
                awake += 0.9
            assert not (await store.heartbeat(claim)).lost
        database.clock.sleep(LEASE)
        assert await store.claim("idle", LEASE) is None
        awake += 3
        other = await store.claim("idle", LEASE)
        assert other is not None
        assert (other.task.id, other.task.attempts) == (task.id, 2)

    database.run(work, silence_s=3)


def test_the_third_silence_ends_a_task_as_failed(database: Database) -> None:
    async def work(store: Store) -> None:
        task = await store.submit(new(webhook="https://example.org/"))
        database.clock.sleep(0.001)
        other = await store.submit(new())
        for attempt in (1, 2, 3):
            claim = await claimed(store)
            assert (claim.task.id, claim.task.attempts) == (task.id, attempt)
            database.clock.sleep(LEASE)
        assert (await claimed(store)).task.id == other.id
        ended = await seen(store, task.id)
        assert (ended.state, ended.attempts, ended.finished) == (TaskState.FAILED, 3, database.clock.now)
        assert ended.error is not None
        assert ended.error["code"] == "interrupted"
        assert (await store.heartbeat(claim)).lost
        assert not await store.finish(claim, TaskState.FAILED)

    database.run(work)
    assert database.rows("SELECT count(*) FROM deliveries") == [(1,)]


def test_sweep_ends_abandoned_tasks_when_no_runner_claims(database: Database) -> None:
    async def work(store: Store) -> None:
        hopeless, cancelled, fresh = [(await store.submit(new(priority=-index))).id for index in range(3)]
        await claimed(store), await claimed(store)
        database.clock.sleep(LEASE / 2)
        assert (await claimed(store)).task.id == fresh
        await store.request_cancel(cancelled, "studio")
        database.clock.sleep(LEASE / 2)
        assert await store.sweep() == 2
        assert await store.sweep() == 0
        states = [(await seen(store, task_id)).state for task_id in (hopeless, cancelled, fresh)]
        assert states == [TaskState.FAILED, TaskState.CANCELLED, TaskState.RUNNING]

    database.run(work, attempts=1)


def test_release_does_not_count_an_attempt_and_keeps_the_place(database: Database) -> None:
    async def work(store: Store) -> None:
        first = await store.submit(new())
        database.clock.sleep(1)
        await store.submit(new())
        for _ in range(5):
            claim = await claimed(store)
            assert (claim.task.id, claim.task.attempts) == (first.id, 1)
            await store.heartbeat(claim, {"stage": "upscale", "frames": 3})
            assert await store.release(claim)
            assert not await store.release(claim)
        back = await seen(store, first.id)
        assert (back.state, back.attempts, back.lease_owner, back.lease_until) == (TaskState.QUEUED, 0, "", None)
        assert back.progress == {"stage": "upscale", "frames": 3}
        assert await store.release(await claimed(store), progress={"paused": "pin away"}, delay_s=10)
        waiting = await seen(store, first.id)
        assert (waiting.attempts, waiting.progress) == (0, {"paused": "pin away"})
        assert (await claimed(store)).task.id != first.id
        database.clock.sleep(10)
        assert (await claimed(store)).task.id == first.id

    database.run(work)


def test_attempts_that_failed_are_repeated_later_and_the_third_ends_it(database: Database) -> None:
    async def work(store: Store) -> None:
        task = await store.submit(new())
        for _ in range(2):
            assert await store.retry_later(await claimed(store), PROBLEM, delay_s=10) is TaskState.QUEUED
            assert await store.claim("runner", LEASE) is None
            assert (await store.events_since(task.id))[-1].data["error"] == PROBLEM
            database.clock.sleep(10)
        assert await store.retry_later(await claimed(store), PROBLEM, delay_s=10) is TaskState.FAILED
        assert (await seen(store, task.id)).error == PROBLEM

    database.run(work)


def test_cancel_of_a_queued_task_ends_it_at_once(database: Database) -> None:
    async def work(store: Store) -> None:
        task = await store.submit(new())
        assert await store.request_cancel(task.id, "another") is None
        assert await store.request_cancel("0" * 36, "studio") is None
        cancelled = await store.request_cancel(task.id, "studio")
        assert cancelled is not None
        assert (cancelled.state, cancelled.finished) == (TaskState.CANCELLED, database.clock.now)
        assert await store.claim("runner", LEASE) is None
        assert await store.request_cancel(task.id, "studio") == cancelled

    database.run(work)


def test_cancel_of_a_running_task_reaches_its_runner(database: Database) -> None:
    async def work(store: Store) -> None:
        ids = [(await store.submit(new())).id for _ in range(4)]
        claims = {}
        for _ in ids:
            claim = await claimed(store)
            assert not (await store.heartbeat(claim)).cancel
            claims[claim.task.id] = claim
        for task_id in ids:
            asked = await store.request_cancel(task_id, "studio")
            assert asked is not None
            assert (asked.state, asked.cancel_requested) == (TaskState.RUNNING, True)
            assert (await store.heartbeat(claims[task_id])).cancel
        finished, released, failed, abandoned = (claims[task_id] for task_id in ids)
        assert await store.finish(finished, TaskState.CANCELLED)
        assert await store.release(released)
        assert await store.retry_later(failed, PROBLEM) is TaskState.CANCELLED
        database.clock.sleep(LEASE)
        assert await store.claim("runner", LEASE) is None
        for claim in (finished, released, failed, abandoned):
            assert (await seen(store, claim.task.id)).state is TaskState.CANCELLED

    database.run(work)


def test_cancel_of_a_task_whose_runner_is_gone_ends_it_at_once(database: Database) -> None:
    async def work(store: Store) -> None:
        task = await store.submit(new())
        claim = await claimed(store)
        database.clock.sleep(LEASE)
        cancelled = await store.request_cancel(task.id, None)
        assert cancelled is not None
        assert cancelled.state is TaskState.CANCELLED
        assert (await store.heartbeat(claim)).lost

    database.run(work)


def test_retry_starts_anew_and_only_from_an_end_that_is_not_done(database: Database) -> None:
    async def work(store: Store) -> None:
        task = await store.submit(new(webhook="https://example.org/"))
        with pytest.raises(TaskStateError, match="is queued"):
            await store.retry(task.id, "studio")
        for _ in range(3):
            await store.retry_later(await claimed(store), PROBLEM)
        assert await store.retry(task.id, "another") is None
        again = await store.retry(task.id, "studio")
        assert again is not None
        assert (again.state, again.attempts, again.error, again.finished) == (TaskState.QUEUED, 0, None, None)
        assert await store.finish(await claimed(store), TaskState.DONE)
        with pytest.raises(TaskStateError, match="is done"):
            await store.retry(task.id, "studio")
        # Two ends, two messages, each under an id of its own.
        assert len(await store.deliveries_of(task.id)) == 2

    database.run(work)


def test_an_end_whose_answer_was_lost_can_be_said_again(database: Database) -> None:
    async def work(store: Store) -> None:
        task = await store.submit(new(webhook="https://example.org/"))
        claim = await claimed(store)
        with pytest.raises(UsageError, match="finished as queued"):
            await store.finish(claim, TaskState.QUEUED)
        for _ in range(2):
            assert await store.finish(claim, TaskState.DONE, result={"frames": 3}, cost={"wall": 1.5})
        assert not await store.finish(claim, TaskState.FAILED)
        ended = await seen(store, task.id)
        assert (ended.result, ended.cost, ended.error) == ({"frames": 3}, {"wall": 1.5}, None)
        assert len(await store.deliveries_of(task.id)) == 1

    database.run(work)


def test_progress_is_told_once_a_second_and_kept_short(database: Database) -> None:
    async def work(store: Store) -> None:
        task = await store.submit(new())
        claim = await claimed(store)
        numbers = set()
        for step in range(40):
            await store.heartbeat(claim, {"stage": "upscale", "frames": step // 2})
            assert (await seen(store, task.id)).progress == {"stage": "upscale", "frames": step // 2}
            numbers |= {event.number for event in await store.events_since(task.id) if event.kind == "progress"}
            database.clock.sleep(0.25)
        assert len(numbers) == 10  # 40 heartbeats in 10 s
        await store.finish(claim, TaskState.DONE)
        events = await store.events_since(task.id)
        assert [event.kind for event in events] == ["state", "state", "progress", "state"]
        assert [event.data.get("state") for event in events] == ["queued", "running", None, "done"]
        assert sorted({event.number for event in events}) == [event.number for event in events]
        assert await store.events_since(task.id, events[1].number) == events[2:]
        assert await store.events_since(task.id, limit=1) == events[:1]
        assert (await seen(store, task.id)).last_event == events[-1].number

    database.run(work)


@pytest.mark.parametrize("abandoned", [False, True])
def test_a_row_that_a_stopped_machine_keeps_locked_hides_no_other(server: Database, abandoned: bool) -> None:
    async def work(store: Store) -> None:
        first = await store.submit(new())
        if abandoned:
            await claimed(store)
            server.clock.sleep(LEASE)
        server.clock.sleep(1)
        second = await store.submit(new())

        async def stop(session: Any, _now: Any) -> None:
            assert await locked(session, first.id) is not None
            assert (await claimed(store)).task.id == second.id
            assert await store.claim("runner", LEASE) is None

        await store._database.write(stop)
        assert (await claimed(store)).task.id == first.id

    server.run(work)


@pytest.mark.soak
def test_callers_that_are_cancelled_leave_no_lock_and_no_half_change(database: Database, soak_count: SoakCount) -> None:
    rounds = soak_count(60, 1000)

    async def work(store: Store) -> None:
        for index in range(rounds):
            doing = asyncio.create_task(store.submit(new(webhook="https://example.org/")))
            await asyncio.sleep(index % 20 / 2000)
            doing.cancel()
            await asyncio.wait([doing])
        while store._database._begun:  # a transaction whose caller is gone ends by itself
            await asyncio.sleep(0.01)
        kept = (await store.counts())[TaskState.QUEUED]
        claims = [await store.claim("runner", LEASE) for _ in range(kept)]
        assert all(claims)
        assert await store.claim("runner", LEASE) is None
        assert all([await store.finish(claim, TaskState.DONE) for claim in claims if claim is not None])

    database.run(work, connections=2)
    counts = Counter(row[0] for row in database.rows("SELECT kind FROM events"))
    assert counts["state"] == 3 * database.rows("SELECT count(*) FROM tasks")[0][0]
