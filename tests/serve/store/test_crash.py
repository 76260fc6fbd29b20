"""Processes that are killed at any moment, and many that use one store at once."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from serve.store import Store, TaskState
from tests.conftest import SoakCount
from tests.serve.store.conftest import SECONDS, SESSIONS, Database

ROOT = Path(__file__).resolve().parents[3]

#: Submits, claims, tells progress and ends, several at once; a line for each submission and end that was confirmed.
_WORKER = """
import asyncio, random, sys
from serve.store import NewTask, Store, TaskState

async def submit(store):
    while True:
        task = await store.submit(NewTask("studio", "restage", {"x": "y" * 2000}, webhook="https://example.org/"))
        print("submitted", task.id, flush=True)

async def run(store):
    while True:
        claim = await store.claim("runner", 0.05)
        if claim is None:
            await asyncio.sleep(0.01)
            continue
        await store.heartbeat(claim, {"stage": "upscale", "frames": 1})
        if random.random() < 0.2:
            await store.release(claim)
        elif await store.finish(claim, TaskState.DONE, result={"z": "z" * 2000}):
            print("done", claim.task.id, flush=True)

async def main():
    store = Store(sys.argv[1], seconds=120, attempts=1000, silence_s=0)
    await asyncio.gather(submit(store), submit(store), run(store), run(store))

print("ready", flush=True)
asyncio.run(main())
"""


def started(database: Database, count: int) -> list[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _WORKER, database.url]
    workers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    return workers


def check(database: Database, said: Counter[tuple[str, str]]) -> int:
    """What was confirmed is there, and every task is whole; returns how many there are."""
    tasks = dict(database.rows("SELECT id, state FROM tasks"))
    for (word, task_id), count in said.items():
        assert task_id in tasks, f"{word} and lost"
        assert count == 1, f"{word} twice"
        assert word == "submitted" or tasks[task_id] == "done"
    owed = Counter(row[0] for row in database.rows("SELECT task_id FROM deliveries"))
    assert owed == Counter(task_id for task_id, state in tasks.items() if state == "done")
    # Each event of a task is there up to its last one, and its last word is the task's state.
    last = dict(database.rows("SELECT id, last_event FROM tasks"))
    found: dict[str, list[tuple[int, str, str]]] = {}
    for task_id, number, kind, data in database.rows("SELECT task_id, number, kind, data FROM events ORDER BY number"):
        found.setdefault(task_id, []).append((number, kind, data))
    assert found.keys() == tasks.keys()
    for task_id, events in found.items():
        assert events[-1][0] == last[task_id]
        states = [data for _, kind, data in events if kind == "state"]
        assert f'"state":"{tasks[task_id]}"' in states[-1]
    return len(tasks)


@pytest.mark.soak
def test_processes_killed_in_the_middle_of_transactions_leave_a_consistent_store(
    database: Database, soak_count: SoakCount
) -> None:
    said: Counter[tuple[str, str]] = Counter()
    count = 0
    for _ in range(soak_count(1, 25)):
        workers = started(database, 2)
        time.sleep(random.uniform(0.6, 1.2))
        for worker in workers:
            worker.kill()
        for worker in workers:
            output, _ = worker.communicate(timeout=60)
            said.update((word, task_id) for word, task_id in (line.split() for line in output.splitlines()))
        if database.kind != "sqlite":
            while database.rows(SESSIONS[database.kind]):  # a server may still be at what it was last asked
                time.sleep(0.05)
        else:
            with sqlite3.connect(database.url.removeprefix("sqlite:///")) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        count = check(database, said)
    assert {word for word, _ in said} == {"submitted", "done"}  # else nothing was proved

    async def rest(store: Store) -> None:
        counts = await store.counts()
        left = counts[TaskState.QUEUED] + counts[TaskState.RUNNING]
        assert left
        for _ in range(left):
            deadline = time.monotonic() + 30
            while (
                claim := await store.claim("runner", 600)
            ) is None:  # until the last lease of the killed ones is over
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
            assert await store.finish(claim, TaskState.DONE)

    database.run(rest, ticking=True, attempts=1000)
    assert check(database, said) == count
    assert database.rows("SELECT count(*) FROM tasks WHERE state = 'done'") == [(count,)]


def test_a_process_that_forgets_to_close_its_store_ends_all_the_same(sqlite: Database) -> None:
    program = "import asyncio, sys; from serve.store import Store; s = Store(sys.argv[1]); print(asyncio.run(s.ping()))"
    done = subprocess.run(
        [sys.executable, "-c", program, sqlite.url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("20")
