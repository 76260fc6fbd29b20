"""Durable tasks over HTTP: accepted whole, seen by their owner alone, followed, cancelled, tried again, downloaded."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from serve.edge.auth import Principal, Tokens
from serve.logs import JsonLines
from serve.store import Store, StoreBusyError, StoreError, Task, TaskState
from tests.images import encoded
from tests.serve.service import MADE, Service, service

CLIP = b"not a video, which only a runner finds out"
FORM = {"file": ("dance.mp4", CLIP, "video/mp4")}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Service]:
    with service(tmp_path) as running:
        yield running


def submitted(here: Service, **fields: str) -> str:
    answer = here.client.post("/v1/tasks", files=FORM, data=fields)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_upload_is_accepted_with_its_choices_completed_by_the_preset(here: Service) -> None:
    answer = here.client.post("/v1/tasks", files=FORM, data={"target": "480x360", "background": "#20405f"})
    assert answer.status_code == 202
    task = answer.json()
    assert answer.headers["location"] == f"/v1/tasks/{task['id']}"
    assert answer.headers["retry-after"] == "1"
    assert task["state"] == "queued"
    assert task["name"] == "dance.mp4"
    assert (task["settings"]["upscale"], task["settings"]["target"]) == ("lanczos", "480x360")
    assert task["settings"]["background"] == "#20405f"
    assert (here.desk.data.of(task["id"]).input / "input").read_bytes() == CLIP


def test_raw_body_is_a_video_whose_choices_are_in_the_query(here: Service) -> None:
    answer = here.client.post("/v1/tasks?preset=draft", content=CLIP, headers={"content-type": "video/mp4"})
    assert answer.status_code == 202
    assert answer.json()["settings"]["preset"] == "draft"


def test_url_is_kept_for_the_runner_and_a_private_one_is_refused_at_once(here: Service) -> None:
    good = here.client.post("/v1/tasks", json={"video_url": "https://example.com/a/dance.mp4?key=1"})
    assert good.status_code == 202
    assert good.json()["name"] == "dance.mp4"
    bad = here.client.post("/v1/tasks", json={"video_url": "http://127.0.0.1/a.mp4"})
    assert bad.status_code == 422
    assert bad.json()["code"] == "url_refused"
    assert len(here.folders()) == 1


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"preset": "none-such"}, 422),
        ({"upscale": "../../etc/passwd"}, 422),
        ({"background": "/etc/passwd"}, 422),
        ({"background": "../secret.mp4"}, 422),
        ({"crf": "99"}, 422),
        ({"crf": "many"}, 422),
        ({"scale": "2", "target": "720p"}, 422),
        ({"matte": "given"}, 422),
        ({"webhook": "https://example.com/hook"}, 422),
        ({"no_such_field": "1"}, 422),
        ({"kind": "roll"}, 422),
    ],
)
def test_refused_requests_leave_nothing_behind(here: Service, fields: dict[str, str], code: int) -> None:
    answer = here.client.post("/v1/tasks", files=FORM, data=fields)
    assert answer.status_code == code, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert here.folders() == []
    assert here.client.get("/v1/tasks").json() == {"tasks": [], "next": None}


def test_files_get_the_servers_names_whatever_the_client_calls_them(here: Service) -> None:
    files = {
        "file": ("../../../etc/cron.d/x\r\nSet-Cookie: a=b", CLIP),
        "mask": ("m.mkv", CLIP),
        "background": ("beach.html", encoded(np.zeros((32, 32, 3), np.uint8), ".png")),
    }
    answer = here.client.post("/v1/tasks", files=files, data={"matte": "given"})
    assert answer.status_code == 202, answer.text
    inputs = here.desk.data.of(answer.json()["id"]).input
    assert sorted(path.name for path in inputs.iterdir()) == ["background.png", "input", "input.mask.video"]
    assert "\n" not in answer.json()["name"]
    assert "/" not in answer.json()["name"]


def test_same_key_sent_again_gives_the_same_task_and_another_request_is_refused(here: Service) -> None:
    key = {"Idempotency-Key": "k-1"}
    first = here.client.post("/v1/tasks", files=FORM, headers=key)
    again = here.client.post("/v1/tasks", files=FORM, headers=key)
    other = here.client.post("/v1/tasks", files={"file": ("dance.mp4", b"another one")}, headers=key)
    assert (first.status_code, again.status_code, other.status_code) == (202, 202, 422)
    assert first.json() == again.json()
    assert len(here.folders()) == 1


@pytest.mark.parametrize(
    ("error", "status", "stays"),
    [
        (StoreError("the database", "did not answer"), 503, True),
        (StoreBusyError("the service", "is asked too much"), 429, False),
    ],
)
def test_task_that_may_be_written_keeps_its_files_until_its_key_tells(
    here: Service, monkeypatch: pytest.MonkeyPatch, error: StoreError, status: int, stays: bool
) -> None:
    submit, key = here.desk.store.submit, {"Idempotency-Key": "k-3"}

    async def lost(*arguments: Any, **named: Any) -> Task:
        if stays:  # it is committed, and the answer of the database is lost
            await submit(*arguments, **named)
        raise error

    monkeypatch.setattr(here.desk.store, "submit", lost)
    assert here.client.post("/v1/tasks", files=FORM, headers=key).status_code == status
    assert len(here.folders()) == stays
    monkeypatch.undo()
    again = here.client.post("/v1/tasks", files=FORM, headers=key)
    assert again.status_code == 202
    assert here.folders() == [again.json()["id"]]
    assert (here.desk.data.of(again.json()["id"]).input / "input").read_bytes() == CLIP


def test_background_image_is_bounded_decoded_in_its_turn_and_on_the_disk_or_nothing_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = encoded(np.zeros((32, 32, 3), np.uint8), ".png")
    turns: list[bool] = []

    def no_room(_: Path) -> Any:
        turns.append(here.desk.decoders.locked())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("serve.desk._DECODERS", 1)
    monkeypatch.setattr("serve.intake.written_whole", no_room)
    with service(tmp_path, on_demand_mib=1 / 1024) as here:
        for content, status, code in ((image + bytes(1024), 413, "too_large"), (image, 507, "storage")):
            answer = here.client.post("/v1/tasks", files={**FORM, "background": ("b.png", content)})
            assert (answer.status_code, answer.json()["code"]) == (status, code)
            assert here.folders() == []
    assert turns == [True]


@pytest.mark.parametrize("sent", [{"files": FORM}, {"json": {"video_url": "https://example.com/a.mp4"}}])
def test_choices_in_the_query_of_a_form_or_of_json_are_refused(here: Service, sent: dict[str, Any]) -> None:
    answer = here.client.post("/v1/tasks?preset=draft", **sent)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert here.folders() == []


def test_key_of_a_refused_request_is_free_for_the_next_one(here: Service) -> None:
    key = {"Idempotency-Key": "k-2"}
    assert here.client.post("/v1/tasks", files=FORM, data={"crf": "99"}, headers=key).status_code == 422
    assert here.client.post("/v1/tasks", files=FORM, headers=key).status_code == 202


def test_task_tells_progress_result_and_cost(here: Service) -> None:
    task_id = submitted(here)
    claim = here.claim()
    progress = {"stage": "running", "stages": {"running": 0.25}, "frames": 10, "total": 40, "fps": 5.0, "eta_s": 6.0}
    here.run(here.desk.store.heartbeat, claim, progress)
    running = here.client.get(f"/v1/tasks/{task_id}").json()
    assert running["state"] == "running"
    assert running["progress"]["eta_s"] == 6.0
    here.finish(claim)
    done = here.client.get(f"/v1/tasks/{task_id}").json()
    assert done["state"] == "done"
    assert done["result"]["url"] == done["links"]["result"] == f"/v1/tasks/{task_id}/result"
    assert done["cost"]["seconds"] == {"decode": 0.5}


def test_task_that_did_not_change_is_not_sent_again(here: Service) -> None:
    task_id = submitted(here)
    tag = here.client.get(f"/v1/tasks/{task_id}").headers["etag"]
    assert here.client.get(f"/v1/tasks/{task_id}", headers={"If-None-Match": tag}).status_code == 304
    here.claim()
    assert here.client.get(f"/v1/tasks/{task_id}", headers={"If-None-Match": tag}).status_code == 200


def test_list_is_filtered_and_paged_by_an_opaque_cursor(here: Service) -> None:
    ids = [submitted(here) for _ in range(5)]
    here.finish()
    pages, cursor = [], None
    while True:
        page = here.client.get(
            "/v1/tasks", params={"limit": 2, "state": "queued"} | ({"cursor": cursor} if cursor else {})
        )
        pages += [task["id"] for task in page.json()["tasks"]]
        if (cursor := page.json()["next"]) is None:
            break
    assert pages == ids[:0:-1]
    assert here.client.get("/v1/tasks", params={"cursor": "nonsense"}).status_code == 400


def test_queued_task_is_cancelled_at_once_with_its_files_and_a_running_one_is_asked(here: Service) -> None:
    queued = submitted(here)
    answer = here.client.delete(f"/v1/tasks/{queued}")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert here.folders() == []
    running = submitted(here)
    claim = here.claim()
    answer = here.client.delete(f"/v1/tasks/{running}")
    assert (answer.status_code, answer.json()["cancel_requested"]) == (202, True)
    assert here.run(here.desk.store.heartbeat, claim).cancel


def test_task_that_ends_just_before_it_is_cancelled_is_not_called_cancelled(
    here: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id, store = submitted(here), here.desk.store
    claim, cancel = here.claim(), store.request_cancel

    async def late(*arguments: str) -> Task | None:
        assert await store.finish(claim, TaskState.DONE)
        return await cancel(*arguments)

    monkeypatch.setattr(store, "request_cancel", late)
    answer = here.client.delete(f"/v1/tasks/{task_id}")
    assert (answer.status_code, answer.json()["code"]) == (409, "ended")


def test_ended_task_is_removed_only_when_asked_for(here: Service) -> None:
    submitted(here)
    done = here.finish()
    refused = here.client.delete(f"/v1/tasks/{done}")
    assert (refused.status_code, refused.json()["code"]) == (409, "ended")
    assert here.client.delete(f"/v1/tasks/{done}", params={"purge": "true"}).status_code == 204
    assert here.client.get(f"/v1/tasks/{done}").status_code == 404
    assert here.folders() == []


def test_task_that_is_not_removed_says_why(here: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def locked(*_: object, **__: object) -> tuple[str, ...]:
        return ()

    monkeypatch.setattr(Store, "purge", locked)
    submitted(here)
    purge = {"url": f"/v1/tasks/{here.finish()}", "params": {"purge": "true"}}
    answer = here.client.delete(**purge)
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (429, "busy", "1")
    # Between a look and the removal it was retried.
    submitted(here)
    here.run(here.desk.store.finish, claim := here.claim(), TaskState.FAILED)
    here.run(here.desk.store.retry, claim.task.id, None)
    answer = here.client.delete(f"/v1/tasks/{claim.task.id}", params={"purge": "true"})
    assert (answer.status_code, answer.json()["code"]) == (409, "not_ended")


def test_failed_task_is_queued_again_and_one_without_its_files_is_not(here: Service) -> None:
    failed = submitted(here)
    here.run(here.desk.store.finish, here.claim(), TaskState.FAILED, error={"code": "media_refused", "detail": "…"})
    answer = here.client.post(f"/v1/tasks/{failed}/retry")
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    assert here.client.post(f"/v1/tasks/{failed}/retry").status_code == 409
    here.run(here.desk.store.request_cancel, failed, None)  # its files are still there, and will go
    gone = here.client.post(f"/v1/tasks/{failed}/retry")
    assert (gone.status_code, gone.json()["code"]) == (409, "input_gone")


def test_result_is_sent_whole_in_parts_and_not_again(here: Service) -> None:
    task_id = submitted(here)
    url = f"/v1/tasks/{task_id}/result"
    assert here.client.get(url).status_code == 409
    here.finish()
    whole = here.client.get(url)
    assert whole.content == MADE
    assert whole.headers["etag"] == f'"{hashlib.sha256(MADE).hexdigest()}"'
    tag = {"If-Range": whole.headers["etag"]}
    part = here.client.get(url, headers={"Range": "bytes=1000-1999"} | tag)
    assert (part.status_code, part.content) == (206, MADE[1000:2000])
    changed = here.client.get(url, headers={"Range": "bytes=1000-1999", "If-Range": '"other"'})
    assert (changed.status_code, changed.content) == (200, MADE)
    for known in (whole.headers["etag"], f'"other", W/{whole.headers["etag"]}', "*"):
        assert here.client.get(url, headers={"If-None-Match": known}).status_code == 304
    head = here.client.head(url, headers={"Range": "bytes=0-9"})
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(MADE)), b"")


@pytest.mark.parametrize(
    ("asked", "status", "begin"),
    [
        ("bytes=-10", 206, MADE[-10:]),
        ("bytes = 0-9", 200, MADE),
        ("bytes=0-9,99999-", 206, MADE[:10]),
        ("bytes=99999-", 416, b""),
        ("bytes=-0", 416, b""),
        ("bytes=9-0", 200, MADE),
        ("bytes=0-9,9-0", 200, MADE),
        ("bytes=", 200, MADE),
        ("bytes=-", 200, MADE),
        ("bytes=a-b", 200, MADE),
        ("bytes=0-9,x", 200, MADE),
        ("frames=0-9", 200, MADE),
        (f"bytes={'9' * 5000}-", 200, MADE),
        ("nonsense", 200, MADE),
    ],
)
def test_range_is_obeyed_or_ignored_as_the_standard_says(here: Service, asked: str, status: int, begin: bytes) -> None:
    submitted(here)
    answer = here.client.get(f"/v1/tasks/{here.finish()}/result", headers={"Range": asked})
    assert answer.status_code == status
    if status == 416:
        assert (answer.json()["code"], answer.headers["content-range"]) == ("no_such_range", f"bytes */{len(MADE)}")
    else:
        assert answer.content == begin


def test_result_whose_file_is_gone_or_a_link_is_gone(here: Service, tmp_path: Path) -> None:
    submitted(here)
    task_id = here.finish()
    secret = tmp_path / "secret"
    secret.write_text("canary")
    path = here.desk.data.of(task_id).result / "video.mp4"
    path.unlink()
    path.symlink_to(secret)
    answer = here.client.get(f"/v1/tasks/{task_id}/result")
    assert answer.status_code == 410
    assert "canary" not in answer.text


def test_events_are_told_from_the_last_one_seen_until_the_task_ends(here: Service) -> None:
    task_id = submitted(here)
    here.finish()
    url = f"/v1/tasks/{task_id}/events"
    text = here.client.get(url).text
    assert [line for line in text.splitlines() if line.startswith("id: ")] == ["id: 1", "id: 2", "id: 3"]
    assert '"state": "done"' in text
    later = here.client.get(url, headers={"Last-Event-ID": "2"}).text
    assert [line for line in later.splitlines() if line.startswith("id: ")] == ["id: 3"]
    assert here.client.get(url, headers={"Last-Event-ID": "3"}).status_code == 204
    assert here.client.get(url, headers={"Last-Event-ID": "x"}).status_code == 422


def test_events_of_a_task_that_was_tried_again_go_on_behind_its_failure(here: Service) -> None:
    task_id = submitted(here)
    here.run(here.desk.store.finish, here.claim(), TaskState.FAILED, error={"code": "failed", "detail": "…"})
    assert here.client.post(f"/v1/tasks/{task_id}/retry").status_code == 202
    here.finish()
    text = here.client.get(f"/v1/tasks/{task_id}/events").text
    assert re.findall(r'"state": "(\w+)"', text) == ["queued", "running", "failed", "queued", "running", "done"]


def test_tasks_of_others_do_not_exist(tmp_path: Path) -> None:
    known = {hashlib.sha256(name.encode()).digest(): Principal(name) for name in ("token-of-a", "token-of-b")}
    with service(tmp_path, tokens=Tokens(known)) as here:
        mine, other = ({"Authorization": f"Bearer {name}"} for name in ("token-of-a", "token-of-b"))
        assert here.client.post("/v1/tasks", files=FORM).status_code == 401
        task_id = here.client.post("/v1/tasks", files=FORM, headers=mine).json()["id"]
        here.finish()
        url = f"/v1/tasks/{task_id}"
        assert here.client.get(url, headers={"x-token": "token-of-a"}).status_code == 200
        for method, path in (
            ("GET", url),
            ("DELETE", url),
            ("GET", f"{url}/events"),
            ("GET", f"{url}/result"),
            ("POST", f"{url}/retry"),
            ("GET", f"/api/v1/video-tasks/get/{task_id}"),
        ):
            assert here.client.request(method, path, headers=other).status_code == 404, path
        assert here.client.get("/v1/tasks", headers=other).json()["tasks"] == []


def test_token_has_so_many_tasks_and_the_queue_so_many_in_all(tmp_path: Path) -> None:
    known = {hashlib.sha256(b"token-of-a").digest(): Principal("a", queued=1)}
    with service(tmp_path / "one", tokens=Tokens(known)) as here:
        mine = {"Authorization": "Bearer token-of-a"}
        keyed = mine | {"Idempotency-Key": "k-4"}
        first = here.client.post("/v1/tasks", files=FORM, headers=keyed)
        assert first.status_code == 202
        assert here.client.post("/v1/tasks", files=FORM, headers=keyed).json() == first.json()
        answer = here.client.post("/v1/tasks", files=FORM, headers=mine)
        assert (answer.status_code, answer.json()["code"]) == (429, "task_quota")
        assert int(answer.headers["retry-after"]) > 0
    with service(tmp_path / "all", max_active=1) as here:
        submitted(here)
        answer = here.client.post("/v1/tasks", files=FORM)
        assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")


def test_upload_over_the_volume_of_a_token_is_refused_before_it_comes_also_by_a_new_process(tmp_path: Path) -> None:
    known = {hashlib.sha256(b"token-of-a").digest(): Principal("a", upload_bytes_per_day=1.5 * len(CLIP))}
    mine = {"Authorization": "Bearer token-of-a", "Content-Type": "video/mp4"}
    for status in (202, 429):
        with (
            service(tmp_path, tokens=Tokens(known)) as here,
            mock.patch.object(here.desk.uploads, "receive", side_effect=here.desk.uploads.receive) as received,
        ):
            answer = here.client.post("/v1/tasks", content=CLIP, headers=mine)
            assert (answer.status_code, received.called) == (status, status == 202)
    assert answer.json()["code"] == "upload_quota"
    assert 86_000 < int(answer.headers["retry-after"]) <= 86_400


def test_event_streams_of_a_token_are_limited(here: Service) -> None:
    task_id = submitted(here)
    with ExitStack() as others:
        for _ in range(here.desk.service.events_per_token):
            others.enter_context(here.desk.streams["local"].taken("local"))
        assert here.client.get(f"/v1/tasks/{task_id}/events").status_code == 429
    here.finish()
    assert here.client.get(f"/v1/tasks/{task_id}/events").status_code == 200


def test_log_has_a_line_for_each_request_and_each_task_that_is_accepted(
    here: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "serve")
    caplog.handler.setFormatter(JsonLines())
    mine = {"X-Request-Id": "mine"}
    task_id = here.client.post("/v1/tasks", files=FORM, headers=mine).json()["id"]
    here.client.get(f"/v1/tasks/{task_id}", headers=mine)
    here.client.get("/wp-login.php", headers=mine)
    for path in ("/healthz", "/readyz"):
        here.client.get(path)
    lines = [json.loads(line) for line in caplog.text.splitlines()]
    assert [(line["message"], line["request_id"]) for line in lines] == [
        ("accepted", "mine"),
        *[("answered", "mine")] * 3,
    ]
    assert (lines[0]["task_id"], lines[0]["owner"]) == (task_id, "local")
    names = ("owner", "method", "route", "status")
    assert [tuple(line.get(name) for name in names) for line in lines[1:]] == [
        ("local", "POST", "/v1/tasks", 202),
        ("local", "GET", "/v1/tasks/{task_id}", 200),
        (None, "GET", "other", 404),
    ]
    assert all(0 <= line["seconds"] < 30 for line in lines[1:])


def test_older_contract_is_kept_to_the_letter(here: Service) -> None:
    url = "https://example.com/a.mp4"
    created = here.client.post("/api/v1/video-tasks/create", json={"video_url": url, "uid": "u-1"})
    assert created.status_code == 200
    task_id = created.json()["task_id"]
    expected = {"task_id": task_id, "status": "pending", "video_url": url, "uid": "u-1", "result": None, "error": None}
    assert created.json() == expected
    uploaded = here.client.post("/api/v1/video-tasks/upload", files=FORM, data={"uid": "u-2"}).json()
    assert uploaded["status"] == "pending"
    assert uploaded["video_url"] == f"tasks/{uploaded['task_id']}/input/input"
    here.finish()
    done = here.client.get(f"/api/v1/video-tasks/get/{task_id}").json()
    assert done["status"] == "completed"
    assert done["result"]["scenes"] == []
    assert done["result"]["not_done"] == ["scene-detection", "audio-separation", "audio-transcription"]
    assert here.client.get(f"/v1/tasks/{task_id}").json()["state"] == "done"
    form = here.client.post("/api/v1/video-tasks/create", files=FORM, data={"video_url": url, "uid": "u-3"})
    assert (form.status_code, form.json()["code"]) == (415, "not_json")
    wrong = here.client.post(
        "/api/v1/video-tasks/create", json={"video_url": url, "uid": "u", "video_split_audio_mode": "x"}
    )
    assert wrong.status_code == 422


def test_every_operation_and_field_is_described(here: Service) -> None:
    document = here.client.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation.get("summary"), (method, path)
            for parameter in operation.get("parameters", ()):
                assert parameter.get("description"), (method, path, parameter["name"])
    for name, schema in document["components"]["schemas"].items():
        for field, said in schema.get("properties", {}).items():
            assert "description" in said or "$ref" in said, (name, field)


def test_interactive_documents_need_no_other_server(here: Service) -> None:
    page = here.client.get("/docs").text
    assert "https://" not in page.replace("https://fastapi", "")
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', page):
        assert here.client.get(path).status_code == 200, path


def test_weights_that_are_missing_are_told_at_once(
    here: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TROUPE_WEIGHTS", str(tmp_path / "empty"))
    answer = here.client.post("/v1/tasks", files=FORM, data={"upscale": "realesr-animevideov3"})
    assert (answer.status_code, answer.json()["code"]) == (422, "weights_missing")
    assert "troupe weights fetch realesr-animevideov3" in answer.json()["detail"]
    assert here.folders() == []


def test_openapi_offers_both_headers(here: Service) -> None:
    schemes = here.client.get("/openapi.json").json()["components"]["securitySchemes"]
    assert {(scheme["type"], scheme.get("scheme", scheme.get("name"))) for scheme in schemes.values()} == {
        ("http", "bearer"),
        ("apiKey", "x-token"),
    }
