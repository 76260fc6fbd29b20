"""What goes on beside requests: results are kept for so long and so large, webhooks are told until they are heard."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from standardwebhooks import Webhook

from serve import upkeep
from serve.edge.auth import Principal, Tokens
from serve.folders import DataFolder
from serve.store import NewTask, TaskState
from tests.serve.service import MADE, Service, service
from tests.serve.web import WebServer, answer

SECRET = "whsec_" + "dHJvdXBlLXRlc3RzLW5lZWQtYS1zZWNyZXQtb2YtMjQ="
FORM = {"file": ("dance.mp4", b"not a video")}


def submit(here: Service, **fields: str) -> str:
    return str(here.client.post("/v1/tasks", files=FORM, data=fields).json()["id"])


def retain(here: Service, *, days_later: float = 0) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(days=days_later)

    with mock.patch.object(upkeep, "datetime", Later):
        here.run(upkeep._retain, here.desk)


def webhook(here: Service, task_id: str) -> Any:
    return here.client.get(f"/v1/tasks/{task_id}").json()["webhook"]


def eventually(check: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_results_go_with_their_tasks_after_so_many_days(tmp_path: Path) -> None:
    with service(tmp_path, keep_days=2) as here:
        submit(here)
        done = here.finish()
        waiting = submit(here)
        retain(here, days_later=1)
        assert here.folders() == sorted([done, waiting])
        retain(here, days_later=3)
        assert here.folders() == [waiting]
        assert here.client.get(f"/v1/tasks/{done}").status_code == 404
        assert here.client.get(f"/v1/tasks/{waiting}").status_code == 200


def test_oldest_results_go_first_when_all_are_too_large(tmp_path: Path) -> None:
    with service(tmp_path, keep_gib=2.5 * len(MADE) / 2**30) as here:
        ids = []
        for _ in range(3):
            submit(here)
            ids.append(here.finish())
        retain(here)
        assert here.folders() == sorted(ids[1:])
        assert here.client.get(f"/v1/tasks/{ids[0]}").status_code == 404


def test_task_that_is_retried_or_owed_while_results_are_too_large_keeps_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"keep_gib": 1 / 2**30, "webhook_secret_env": "SECRET", "environ": {"SECRET": SECRET}}
    with service(tmp_path, **options) as here:
        store, excess = here.desk.store, DataFolder.excess
        failed, owed, done = submit(here), submit(here, webhook="https://nobody.invalid/"), submit(here)
        here.run(store.finish, here.claim(), TaskState.FAILED)
        assert [here.finish(), here.finish()] == [owed, done]

        def slowly(*arguments: Any) -> list[str]:
            chosen = excess(*arguments)
            here.run(store.retry, failed, None)
            return chosen

        monkeypatch.setattr(DataFolder, "excess", slowly)
        retain(here)
        assert here.folders() == sorted([failed, owed])
        assert here.client.delete(f"/v1/tasks/{owed}?purge=true").json()["code"] == "owed"
        assert here.finish() == failed


def test_folder_that_a_crash_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    with service(tmp_path) as here:
        left = here.desk.data.create()
        retain(here)
        assert here.folders() == [left.id]
        with mock.patch.object(
            DataFolder.sweep, "__kwdefaults__", {"min_age_s": 0.0, "clock": lambda: time.time() + 1}
        ):
            retain(here)
        assert here.folders() == []


@pytest.mark.parametrize("failures", [0, 2])
def test_end_of_a_task_is_told_once_signed_and_again_until_it_is_heard(tmp_path: Path, failures: int) -> None:
    def respond(request: BaseHTTPRequestHandler) -> None:
        answer(request, status=500 if len(server.seen) <= failures else 204)

    options = {"allow_networks": ["127.0.0.2/32"], "webhook_secret_env": "SECRET"}
    with WebServer(respond) as server, mock.patch("serve.transfer.webhooks.PAUSES", (0.1, 0.1, 0.1)):
        options["allow_ports"] = [server.port]
        with service(tmp_path, environ={"SECRET": SECRET}, **options) as here:
            task_id = submit(here, webhook=server.url)
            assert webhook(here, task_id) == {"state": "waiting", "attempts": 0, "answer": ""}
            here.finish()
            tag = here.client.get(f"/v1/tasks/{task_id}").headers["etag"]
            eventually(lambda: webhook(here, task_id)["state"] == "delivered")
            assert webhook(here, task_id) == {"state": "delivered", "attempts": failures + 1, "answer": "HTTP 204"}
            assert here.client.get(f"/v1/tasks/{task_id}", headers={"If-None-Match": tag}).status_code == 200
            assert len(server.seen) == failures + 1
        assert len({seen.headers["webhook-id"] for seen in server.seen}) == 1
        last = server.seen[-1]
        told = Webhook(SECRET).verify(last.body, last.headers)
        assert told == json.loads(last.body)
        assert (told["type"], told["data"]["id"]) == ("task.done", task_id)
        assert datetime.fromisoformat(told["timestamp"]).tzinfo == UTC


def test_receiver_that_does_not_answer_delays_nobody_elses_webhooks(tmp_path: Path) -> None:
    known = {hashlib.sha256(f"token-of-{name}".encode()).digest(): Principal(name) for name in ("a", "b")}
    over = threading.Event()

    def respond(request: BaseHTTPRequestHandler) -> None:
        over.wait(20 if request.path == "/dead" else 0)
        answer(request, status=204)

    options = {"allow_networks": ["127.0.0.2/32"], "webhook_secret_env": "SECRET"}
    with WebServer(respond) as server:
        options["allow_ports"] = [server.port]
        with service(tmp_path, tokens=Tokens(known), environ={"SECRET": SECRET}, **options) as here:

            def ended(owner: str, path: str) -> str:
                fields = {"webhook": server.url.replace("/v.mp4", path)}
                headers = {"x-token": f"token-of-{owner}"}
                here.client.post("/v1/tasks", files=FORM, data=fields, headers=headers)
                return here.finish()

            try:
                for _ in range(6):
                    ended("a", "/dead")
                told = ended("b", "/alive")
                eventually(lambda: here.run(here.desk.store.deliveries_of, told)[0].delivered, 10)
            finally:
                over.set()


def test_webhook_that_is_owed_when_the_secret_is_gone_is_given_up_and_its_task_can_go(tmp_path: Path) -> None:
    with service(tmp_path) as here:
        task = here.run(here.desk.store.submit, NewTask("local", "restage", {}, webhook="https://example.com/"))
        here.run(here.desk.store.finish, here.claim(), TaskState.DONE)
        here.run(upkeep._give_up, here.desk)
        assert webhook(here, task.id) == {
            "state": "given_up",
            "attempts": 0,
            "answer": "the server has no webhook secret",
        }
        assert here.client.delete(f"/v1/tasks/{task.id}?purge=true").status_code == 204
