"""Tasks as their owners see them: who sees what, pages, quotas, what is kept, what is removed."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cluster.errors import UsageError
from serve.store import CursorError, NewTask, Quota, QuotaError, Store, TaskState, is_id, new_id
from tests.serve.store.conftest import Database


def new(**values: Any) -> NewTask:
    return NewTask(**{"owner": "studio", "kind": "restage", "payload": {"input": "0"}} | values)


async def ended(store: Store, task_id: str, state: TaskState = TaskState.DONE) -> None:
    claim = await store.claim("runner", 30)
    assert claim is not None
    assert claim.task.id == task_id
    assert await store.finish(claim, state)


def test_what_is_accepted_is_what_is_read(database: Database) -> None:
    documents = [
        {
            "text": "画面 🎬 \u0000 \ud800 'quoted' \\ \"double\" %s :name ?",
            "nested": {"z": [1, {"a": None}], "a": True},
        },
        {"1": 2**63 - 1, "float": 0.1, "small": 5e-324, "negative": -0.0, "order": 1, "b": 2, "a": 3},
        {},
        {"long": "x" * 900_000},
    ]

    async def work(store: Store) -> None:
        for document in documents:
            task = await store.submit(new(payload=document, upload_bytes=2**62, webhook="https://example.org/?a=%20'"))
            read = await store.get(task.id, "studio")
            assert read == task
            assert list(read.payload.items()) == list(document.items())

    database.run(work)


@pytest.mark.parametrize(
    "payload", [{"x": float("nan")}, {"x": b"bytes"}, {"x": "y" * (1 << 20)}, {"x": datetime.now(UTC)}]
)
def test_what_cannot_be_kept_is_refused_by_name(sqlite: Database, payload: dict[str, Any]) -> None:
    async def work(store: Store) -> None:
        with pytest.raises(UsageError, match="document"):
            await store.submit(new(payload=payload))
        assert (await store.page(None)).tasks == ()

    sqlite.run(work)


@pytest.mark.parametrize(
    "values",
    [
        {"owner": ""},
        {"owner": "a b"},
        {"owner": "trailing "},
        {"owner": "x" * 65},
        {"owner": "é"},
        {"kind": "Restage"},
        {"kind": "../x"},
        {"id": "../../etc/passwd"},
        {"id": new_id().upper()},
        {"webhook": "https://example.org/" + "x" * 2048},
        {"webhook": "https://exämple.org/"},
        {"priority": 1001},
        {"upload_bytes": -1},
    ],
)
def test_names_of_other_forms_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        new(**values)


def test_ids_are_told_from_other_texts() -> None:
    assert is_id(new_id())
    for text in ("", "x", new_id() + "\n", new_id() + "/", "/" + new_id()):
        assert not is_id(text)


def test_an_id_is_used_once(database: Database) -> None:
    async def work(store: Store) -> None:
        first = await store.submit(new())
        with pytest.raises(UsageError, match="is there already"):
            await store.submit(new(id=first.id, payload={"another": 1}))
        assert await store.get(first.id, None) == first

    database.run(work)


def test_tasks_are_their_owners_alone(database: Database) -> None:
    async def work(store: Store) -> None:
        mine = await store.submit(new(owner="studio"))
        theirs = await store.submit(new(owner="Studio"))  # another name, also where a server ignores case
        assert await store.get(mine.id, "Studio") is None
        assert await store.get(mine.id, "studio") == mine == await store.get(mine.id, None)
        assert [task.id for task in (await store.page("studio")).tasks] == [mine.id]
        assert len((await store.page(None)).tasks) == 2
        assert (await store.counts("Studio"))[TaskState.QUEUED] == 1
        assert (await store.counts())[TaskState.QUEUED] == 2
        assert (await store.usage("studio")).queued == 1
        assert await store.purge(owner="studio") == ()
        assert theirs.owner == "Studio"

    database.run(work)


def test_pages_stay_stable_while_rows_are_added_and_removed(database: Database) -> None:
    async def work(store: Store) -> None:
        there = []
        for index in range(30):
            there.append((await store.submit(new())).id)
            if index % 3:  # some at the same microsecond
                database.clock.sleep(0.000_001)
        found, cursor = [], None
        while True:
            page = await store.page("studio", cursor=cursor, limit=4)
            found += [task.id for task in page.tasks]
            cursor = page.cursor
            if cursor is None:
                break
            database.clock.sleep(0.5)
            await store.submit(new())
            gone = page.tasks[-1].id  # the very row that the cursor stands on
            await store.request_cancel(gone, None)
            assert await store.purge(ids=[gone]) == (gone,)
        assert len(found) == len(set(found)) == 30
        assert set(found) == set(there)

    database.run(work)


def test_pages_are_newest_first_and_filtered(database: Database) -> None:
    async def work(store: Store) -> None:
        ids = []
        for kind in ("restage", "layers", "restage", "layers", "restage"):
            ids.append((await store.submit(new(kind=kind))).id)
            database.clock.sleep(1)
        await store.request_cancel(ids[2], None)
        page = await store.page("studio", kind="restage", limit=2)
        assert [task.id for task in page.tasks] == [ids[4], ids[2]]
        rest = await store.page("studio", kind="restage", limit=2, cursor=page.cursor)
        assert ([task.id for task in rest.tasks], rest.cursor) == ([ids[0]], None)
        queued = await store.page("studio", kind="restage", state=TaskState.QUEUED)
        assert [task.id for task in queued.tasks] == [ids[4], ids[0]]
        exact = await store.page("studio", limit=5)
        assert (len(exact.tasks), exact.cursor) == (5, None)
        for limit in (0, 501):
            with pytest.raises(UsageError, match="limit"):
                await store.page("studio", limit=limit)

    database.run(work)


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "é",
        "\ud800",
        "W10",
        "eyJhIjoxfQ",
        "WzFlOTk5LCJ4Il0",
        "WzEsMl0",
        "bnVsbA",
        "W3RydWUsIngiXQ",
        "[" * 100_000,
        "Wzk5OTk5OTk5OTk5OTk5OTk5OSwieCJd",  # a time too large for one
    ],
)
def test_cursors_from_elsewhere_are_refused(sqlite: Database, cursor: str) -> None:
    async def work(store: Store) -> None:
        with pytest.raises(CursorError):
            await store.page("studio", cursor=cursor)

    sqlite.run(work)


def test_quotas_are_exact_however_many_come_at_once(database: Database) -> None:
    quota = Quota(active=3, upload_bytes=100)

    async def work(store: Store) -> None:
        stores = [store, database.store(), database.store()]
        tries = (stores[index % 3].submit(new(), quota=quota) for index in range(12))
        results = await asyncio.gather(*tries, return_exceptions=True)
        assert sum(isinstance(result, QuotaError) for result in results) == 9
        assert (await store.counts("studio"))[TaskState.QUEUED] == 3
        await store.submit(new(owner="another", priority=-1), quota=quota)  # the others are not concerned
        claim = await store.claim("runner", 30)
        assert claim is not None
        with pytest.raises(QuotaError, match="3 tasks"):  # running ones count too
            await store.submit(new(owner=claim.task.owner), quota=quota)
        await store.finish(claim, TaskState.FAILED)
        await store.submit(new(), quota=quota)
        with pytest.raises(QuotaError):
            await store.retry(claim.task.id, claim.task.owner, quota=quota)
        for other in stores[1:]:
            await other.close()

    database.run(work)


def test_uploads_are_counted_over_a_day(database: Database) -> None:
    quota = Quota(upload_bytes=100)

    async def work(store: Store) -> None:
        first = await store.submit(new(upload_bytes=60), quota=quota)
        await store.request_cancel(first.id, None)  # what was sent was sent
        database.clock.sleep(3600)
        await store.submit(new(upload_bytes=40), quota=quota)
        with pytest.raises(QuotaError, match="100 bytes and 1 more"):
            await store.submit(new(upload_bytes=1), quota=quota)
        usage = await store.usage("studio")
        assert (usage.upload_bytes, usage.upload_frees_s) == (100, 86_400 - 3600)
        database.clock.sleep(86_400 - 3600)
        await store.submit(new(upload_bytes=60), quota=quota)
        assert (await store.usage("studio")).upload_bytes == 100

    database.run(work)


def test_purge_removes_old_ends_only_and_everything_of_them(database: Database) -> None:
    async def work(store: Store) -> None:
        ids = []
        for webhook in ("", "https://example.org/", ""):
            ids.append((await store.submit(new(webhook=webhook))).id)
            await ended(store, ids[-1])
            database.clock.sleep(10)
        queued = await store.submit(new())
        running = await store.claim("runner", 30)
        assert running is not None
        queued = await store.submit(new())
        before = database.clock.now - timedelta(seconds=10)
        # The second's webhook is still to be told, the third ended too late.
        assert await store.purge(before=before) == (ids[0],)
        assert (await store.states([*ids, queued.id, "x"])).keys() == {ids[1], ids[2], queued.id}
        delivery = await store.claim_delivery(30)
        assert delivery is not None
        assert await store.purge(before=before) == ()
        assert await store.settle_delivery(delivery, delivered=True)
        assert set(await store.purge(limit=1)) == {ids[1]}
        assert set(await store.purge(ids=[*ids, queued.id, running.task.id])) == {ids[2]}
        assert await store.events_since(ids[1]) == ()
        assert await store.deliveries_of(ids[1]) == ()
        assert (await store.heartbeat(running)).lost is False

    database.run(work)


def test_times_are_utc_whatever_zone_the_server_counts_in(database: Database) -> None:
    async def work(store: Store) -> None:
        now = datetime.now(UTC)
        assert abs(await store.ping() - now) < timedelta(seconds=60)
        task = await store.submit(new())
        claim = await store.claim("runner", 30)
        assert claim is not None
        assert claim.task.lease_until is not None
        assert claim.task.started is not None
        assert claim.task.created == task.created
        assert abs(task.created - now) < timedelta(seconds=60)
        assert claim.task.lease_until - claim.task.started == timedelta(seconds=30)
        assert task.created.utcoffset() == timedelta(0)

    database.run(work, ticking=True)
    # Exact to the microsecond and to the hour, also in the hour that a zone has twice or not at all.
    moments = [datetime(2026, 10, 25, hour, 30, 0, 999_999, tzinfo=UTC) for hour in range(4)]

    async def exact(store: Store) -> None:
        for moment in moments:
            database.clock.now = moment
            task = await store.submit(new(owner="clock"))
            read = await store.get(task.id, None)
            assert read is not None
            assert read.created == moment
        assert [task.created for task in (await store.page("clock")).tasks] == moments[::-1]

    database.run(exact)
