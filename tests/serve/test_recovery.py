"""What is left when something ends in the middle is taken up, or removed, by whoever comes next."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config import Config
from cluster.errors import MediaError, PinAwayError
from jobs.ledger import WorkFolder, output_lock
from jobs.plan import Plan, Run
from jobs.strikes import STRIKES, QuarantinedError, RunStrikes
from jobs.task import VideoTask
from serve import restage as restaging
from serve import runner as running
from serve import upkeep
from serve.folders import DataFolder
from serve.payload import INPUT
from serve.progress import TaskProgress
from serve.runner import Runner
from serve.store import NewTask, Store, StoreError, TaskState
from serve.transfer.fetch import FetchError
from serve.transfer.spool import SpoolError
from tests.jobs.command import wait_until
from tests.media import write_clip
from tests.serve.service import Service, service
from tests.serve.web import WebServer, answer

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


def test_task_whose_pin_is_away_waits_for_it_says_so_and_spends_no_attempt_on_that(
    here: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = submitted(here, tmp_path)
    is_there, away = threading.Event(), "pin restage: is not deployed"

    def examine(*_: Any) -> tuple[dict[str, Any], list[str]]:
        if not is_there.is_set():
            raise PinAwayError("pin restage", "is not deployed")
        return {}, []

    monkeypatch.setattr(running, "_AWAY_SECONDS", 0.5)
    monkeypatch.setattr(restaging, "needed_pins", lambda *_: here.desk.config.pins)
    monkeypatch.setattr(restaging, "examine", examine)
    with at_work(here, monkeypatch):
        wait_until(lambda: (seen(here, task_id)["progress"] or {}).get("paused") == away, "it to say so")
        is_there.set()
        wait_until(lambda: seen(here, task_id)["state"] == "done", "the end of the task")
    assert seen(here, task_id)["attempts"] == 1


def test_retry_tries_quarantined_segments_again_and_the_error_says_how(
    here: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = submitted(here, tmp_path)
    run_segments = restaging.run_segments

    def struck(task: VideoTask, plan: Plan, run: Run, config: Config, **told: Any) -> int:
        strikes = RunStrikes(task, run, WorkFolder(task.folder), lambda *_: None)
        with pytest.raises(QuarantinedError):
            for _ in range(STRIKES):
                strikes.charge(strikes.key(run.segments[0]), "the pin died")
        return run_segments(task, plan, run, config, **told)

    monkeypatch.setattr(restaging, "run_segments", struck)
    with at_work(here, monkeypatch):
        wait_until(lambda: seen(here, task_id)["state"] == "failed", "its quarantine")
        detail = seen(here, task_id)["error"]["detail"]
        assert "a retry of the task" in detail
        assert "troupe retry" not in detail
        monkeypatch.setattr(restaging, "run_segments", run_segments)
        assert here.client.post(f"/v1/tasks/{task_id}/retry").status_code == 202
        wait_until(lambda: seen(here, task_id)["state"] == "done", "the end of the task")


def test_errors_of_a_task_speak_of_its_files_and_fields_as_the_client_does(
    here: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "file": write_clip(tmp_path / "a.mp4", frames=12, rate=12, width=64, height=48).path.read_bytes(),
        "mask": write_clip(tmp_path / "m.mp4", frames=6, rate=12, width=64, height=48).path.read_bytes(),
    }
    task_id = here.client.post("/v1/tasks", files=files, data={"matte": "given", "target": "1"}).json()["id"]
    with at_work(here, monkeypatch):
        wait_until(lambda: seen(here, task_id)["state"] == "failed", "its failure")
    detail = seen(here, task_id)["error"]["detail"]
    assert detail.startswith("the mask: has other times than ")
    assert detail.endswith("or choose another matte")


def test_runner_waits_for_room_before_it_fetches_and_asks_once_where_the_answer_is_no(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = ["4.9 GiB free on {}, under 5"] * 2

    def governor(_settings: object, folder: Path) -> Any:
        return SimpleNamespace(check=lambda: full.pop().format(folder) if full and not server.seen else None)

    paused: list[str] = []
    monkeypatch.setattr(running, "disk_governor", governor)
    tell = TaskProgress.paused

    def told(progress: TaskProgress, why: str | None) -> None:
        tell(progress, why)
        paused.append(progress.document()["paused"])

    monkeypatch.setattr(TaskProgress, "paused", told)
    with WebServer(lambda request: answer(request, b"no", status=404)) as server:
        options = {"allow_networks": ["127.0.0.2/32"], "allow_ports": [server.port]}
        with service(tmp_path, **options) as here, at_work(here, monkeypatch):
            task_id = here.client.post("/v1/tasks", json={"video_url": server.url}).json()["id"]
            wait_until(lambda: seen(here, task_id)["state"] == "failed", "its failure")
            assert seen(here, task_id)["attempts"] == 1
    assert paused == ["4.9 GiB free on the server's disk, under 5"] * 2 + [""]
    assert len(server.seen) == 1
    assert full == []


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (SpoolError("input", "cannot be stored: No space left on device"), True),
        (FetchError("https://a", "broke off"), True),
        (MediaError("input", "is no video"), False),
    ],
)
def test_what_is_the_machine_s_fault_is_tried_again(error: Exception, passes: bool) -> None:
    assert running._may_pass(error) == passes


def test_task_of_a_kind_that_is_not_known_fails_by_name_and_the_runner_goes_on(
    here: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = here.run(here.desk.store.submit, NewTask(owner="local", kind="roll", payload={}))
    task_id = submitted(here, tmp_path)
    with at_work(here, monkeypatch):
        wait_until(lambda: seen(here, task_id)["state"] == "done", "the task behind it")
    failed = seen(here, strange.id)
    assert (failed["state"], failed["attempts"]) == ("failed", 1)
    assert "is of the kind roll" in failed["error"]["detail"]


@pytest.mark.parametrize(("lost", "removes"), [(False, True), (True, False)])
def test_files_of_a_cancelled_task_are_removed_by_who_holds_it_and_its_end_is_told_all_the_same(
    here: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool, removes: bool
) -> None:
    task_id = submitted(here, tmp_path)
    claim = here.claim()
    here.client.delete(f"/v1/tasks/{task_id}")
    asked: list[str] = []

    def remove(_data: DataFolder, task_id: str) -> bool:
        asked.append(task_id)
        raise OSError("the disk hangs")

    with monkeypatch.context() as patched:
        patched.setattr(DataFolder, "remove", remove)
        runner: Any = SimpleNamespace(_data=here.desk.data)
        attempt = running._Attempt(runner, here.desk.store, None, claim)  # type: ignore[arg-type]
        attempt._lost = lost
        here.run(attempt._end_cancelled)
    assert asked == [task_id] * removes
    assert seen(here, task_id)["state"] == "cancelled"


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


def test_strikes_are_forgiven_once_a_retry(tmp_path: Path) -> None:
    forgiven: list[int] = []
    for turn in (0, 0, 1, 1, 2):  # an attempt that was given back is followed by one of the same round
        work: Any = SimpleNamespace(folder=SimpleNamespace(work=tmp_path), task=SimpleNamespace(round=turn))
        done: Any = SimpleNamespace(forget_strikes=lambda turn=turn: forgiven.append(turn))
        restaging._forgive(work, done)
    assert forgiven == [1, 2]
