"""What is left when something ends in the middle is taken up, or removed, by whoever comes next."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs.ledger import output_lock
from serve import runner as running
from serve import upkeep
from serve.payload import INPUT
from serve.runner import Runner
from serve.store import Store, StoreError, TaskState
from tests.jobs.command import wait_until
from tests.media import write_clip
from tests.serve.service import Service, service

FIELDS = {"preset": "draft", "matte": "none", "target": "1"}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Service]:
    with service(tmp_path) as found:
        yield found


def submitted(here: Service, tmp_path: Path) -> str:
    clip = write_clip(tmp_path / "a.mp4", frames=12, rate=12, width=64, height=48).path
    answer = here.client.post("/v1/tasks", files={"file": clip.read_bytes()}, data=FIELDS)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def seen(here: Service, task_id: str) -> dict[str, Any]:
    found: dict[str, Any] = here.client.get(f"/v1/tasks/{task_id}").json()
    return found


@contextmanager
def at_work(here: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    """A runner in this process, which outlives it and keeps its logs."""
    monkeypatch.setattr(running, "die_with_parent", lambda: None)
    monkeypatch.setattr(running, "log_as_json", lambda: None)
    config = here.desk.config.model_dump(mode="json")
    config["troupe"]["governor"]["min_free_gib"] = 0  # however full this disk is
    found = Runner(config)
    try:
        yield found
    finally:
        found.__del__()


def test_input_stays_until_the_store_has_heard_that_its_task_is_done(
    here: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[bool] = []
    finish = Store.finish
    task_id = submitted(here, tmp_path)
    folder = here.desk.data.of(task_id)

    async def deaf(store: Store, *arguments: Any, **named: Any) -> bool:
        there.append((folder.input / INPUT).exists())
        if len(there) < 2:
            raise StoreError("the database", "is not there just now")
        return await finish(store, *arguments, **named)

    monkeypatch.setattr(Store, "finish", deaf)
    with at_work(here, monkeypatch):
        wait_until(lambda: seen(here, task_id)["state"] == "done", "the end of the task")
        assert there == [True, True]
        wait_until(lambda: not folder.input.exists() and not folder.work.exists(), "its input to go")
    assert here.client.get(f"/v1/tasks/{task_id}/result").status_code == 200


def test_runner_counts_as_alive_while_the_database_is_upgraded(here: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    upgraded, began = threading.Event(), time.monotonic()
    monkeypatch.setattr(running, "_BEAT_SECONDS", 0.01)
    monkeypatch.setattr("serve.store.store.upgrade", lambda *_: upgraded.wait(60))
    with at_work(here, monkeypatch) as runner:
        try:
            wait_until(lambda: runner._alive > began + 0.5, "signs of life")
        finally:
            upgraded.set()


def test_runner_waits_for_the_one_before_it_and_spends_no_attempt_on_that(
    here: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = submitted(here, tmp_path)
    with at_work(here, monkeypatch):
        with output_lock(here.desk.data.of(task_id).work):
            wait_until(lambda: seen(here, task_id)["state"] == "running", "a runner")
            wait_until(lambda: (seen(here, task_id)["progress"] or {}).get("stage") == "fetching", "its first word")
        wait_until(lambda: seen(here, task_id)["state"] == "done", "the end of the task")
    assert seen(here, task_id)["attempts"] == 1


def test_what_a_killed_runner_did_not_remove_is_tidied_and_nothing_else(here: Service, tmp_path: Path) -> None:
    done, cancelled, running, waiting = (submitted(here, tmp_path) for _ in range(4))
    assert here.finish() == done
    for task_id in (cancelled, running):
        claim = here.claim()
        assert claim.task.id == task_id
        here.client.delete(f"/v1/tasks/{task_id}")
        if task_id == cancelled:
            assert here.run(here.desk.store.release, claim)  # as one does that is told to end
    assert [seen(here, task_id)["state"] for task_id in (cancelled, running)] == ["cancelled", "running"]
    here.run(upkeep._tidy, here.desk)
    assert here.folders() == sorted([done, running, waiting])
    names = {task_id: sorted(each.name for each in folder(here, task_id).iterdir()) for task_id in here.folders()}
    assert names == {done: ["result"], running: ["input", "result", "work"], waiting: ["input", "result", "work"]}


def test_task_that_is_retried_while_others_are_tidied_keeps_its_files(
    here: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = here.client.post("/v1/tasks", json={"video_url": "https://example.com/a.mp4"})
    task_id, states = answer.json()["id"], Store.states
    here.run(here.desk.store.request_cancel, task_id, None)  # whoever should have removed its files was killed

    async def slowly(store: Store, ids: Iterable[str]) -> dict[str, TaskState]:
        found = await states(store, ids)
        if TaskState.CANCELLED in found.values():
            await store.retry(task_id, None)
        return found

    monkeypatch.setattr(Store, "states", slowly)
    here.run(upkeep._tidy, here.desk)
    assert here.folders() == [task_id]


def folder(here: Service, task_id: str) -> Path:
    return here.desk.data.of(task_id).input.parent
