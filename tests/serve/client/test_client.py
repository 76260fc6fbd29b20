"""The client brings to its end what it begins, whatever breaks on the way; its errors say what to do."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import pickle
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import trustme

from cluster.errors import Exit, UsageError
from serve.client import Client
from serve.client.asking import AgainError, Asker
from serve.client.refusals import ServiceError, ServiceUsageError
from serve.edge.auth import Principal, Tokens
from serve.store import TaskState
from tests.images import encoded
from tests.serve.running import MADE, Running, Wire, running_service
from tests.serve.web import GOOD, WebServer, answer

CLIP = b"not a video, which only a runner finds out" * 1000
CONTINUE = len("HTTP/1.1 100 Continue\r\n\r\n")
TOKEN = "studio-token-0123456789"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / '跳舞 "1".mp4'
    path.write_bytes(CLIP)
    return path


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Running]:
    with running_service(tmp_path) as running:
        yield running


def client(url: str, token: str = "", *, patience_s: float = 30) -> Client:
    return Client(url, token, patience_s=patience_s, environ={})


def tokens(**limits: float) -> Tokens:
    return Tokens({hashlib.sha256(TOKEN.encode()).digest(): Principal("studio", **limits)})


def test_video_and_its_choices_arrive_as_they_were_given(here: Running, clip: Path, tmp_path: Path) -> None:
    beach = encoded(np.zeros((32, 32, 3), np.uint8), ".png")
    (tmp_path / "beach.png").write_bytes(beach)
    (tmp_path / "mask.mkv").write_bytes(b"mask")
    moved: list[tuple[int, int]] = []
    with client(here.url) as studio:
        task = studio.submit(
            clip,
            {"preset": "draft", "matte": "given", "scale": 1.5, "crf": 30, "allow_damaged": True, "target": None},
            background=tmp_path / "beach.png",
            mask=tmp_path / "mask.mkv",
            sent=lambda done, total: moved.append((done, total)),
        )
    assert (task.state, task.name) == ("queued", '跳舞 "1".mp4')
    assert (task.settings["target"], task.settings["crf"]) == ("1.5", 30)
    inputs = here.desk.data.of(task.id).input
    assert (inputs / "input").read_bytes() == CLIP
    assert (inputs / "input.mask.video").read_bytes() == b"mask"
    assert (inputs / "background.png").exists()
    stored = here.run(here.desk.store.get(task.id, None))
    assert stored is not None
    assert stored.payload["allow_damaged"] is True
    size = len(CLIP) + 4 + len(beach)
    assert moved[-1] == (size, size)


def test_url_is_fetched_by_the_server(here: Running, tmp_path: Path) -> None:
    with client(here.url) as studio:
        task = studio.submit("https://example.com/dance.mp4?key=1", {"crf": 30})
        assert (task.name, task.settings["crf"]) == ("dance.mp4", 30)
        with pytest.raises(UsageError, match="takes no files with it"):
            studio.submit("https://example.com/dance.mp4", mask=tmp_path)


def test_submission_whose_answer_was_lost_makes_one_task(here: Running, clip: Path) -> None:
    with Wire(here.port, [CONTINUE, CONTINUE]) as wire, client(wire.url) as studio:
        task = studio.submit(clip)
        sent = b"".join(wire.asked)
    assert sent.count(b"POST /v1/tasks") == 3, "two answers were lost"
    assert sent.count(CLIP) == 3
    assert here.count() == 1
    assert here.claim().task.id == task.id


def test_proxy_that_forgets_the_word_to_send_is_sent_to_without(
    here: Running, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.client.asking._WORD_SECONDS", 2.0)
    with Wire(here.port, drops=b"Expect: 100-continue\r\n") as wire, client(wire.url) as studio:
        studio.submit(clip)
        studio.submit(clip)
        assert b"".join(wire.asked).count(b"Expect:") == 1
    assert here.count() == 2


def test_two_submissions_of_one_video_are_two_tasks(here: Running, clip: Path) -> None:
    with client(here.url) as studio:
        assert studio.submit(clip).id != studio.submit(clip).id


def test_body_that_the_server_would_refuse_is_not_sent(tmp_path: Path, clip: Path) -> None:
    clip.write_bytes(bytes(3 << 20))
    moved: list[int] = []
    with running_service(tmp_path, max_upload_gib=1 / 1024) as here, client(here.url) as studio:
        with pytest.raises(ServiceError, match=r"over the limit of 1,048,576 bytes; .*max_upload_gib") as refused:
            studio.submit(clip, sent=lambda done, _: moved.append(done))
        assert studio.submit("https://example.com/a.mp4").state == "queued", "the connection is no worse for it"
    assert (refused.value.status, refused.value.code) == (413, "too_large")
    assert Exit.of(refused.value) == Exit.SOME_FAILED
    assert moved == []


def test_waiting_goes_on_while_the_server_is_away(tmp_path: Path, clip: Path) -> None:
    states: list[str] = []
    ended: list[str] = []

    def wait(url: str, task_id: str) -> None:
        with client(url) as studio:
            ended.append(studio.wait(task_id, seen=lambda task: states.append(task.state)).state)

    with running_service(tmp_path) as first, client(first.url) as studio:
        task_id, port = studio.submit(clip).id, first.port
        waiting = threading.Thread(target=wait, args=(first.url, task_id), daemon=True)
        waiting.start()
        while not states:
            time.sleep(0.01)
    time.sleep(1.2)
    assert waiting.is_alive()
    with running_service(tmp_path, port=port) as second:
        assert second.finish() == task_id
        waiting.join(30)
    assert ended == ["done"]
    assert (states[0], states[-1]) == ("queued", "done")


def test_patience_ends_and_says_that_the_task_goes_on(tmp_path: Path, clip: Path) -> None:
    with running_service(tmp_path) as here, client(here.url, patience_s=1) as studio:
        task = studio.submit(clip)
        with Wire(here.port, [0] * 99) as wire, client(wire.url, patience_s=1) as other:
            began = time.monotonic()
            with pytest.raises(ServiceError, match=r"broke the connection off.*tasks that it accepted go on"):
                other.wait(task.id)
            assert time.monotonic() - began < 20
        with pytest.raises(ServiceError, match=r"has not ended within 0.1 s; it goes on") as late:
            studio.wait(task.id, seconds=0.1)
        assert late.value.code == "still_running"


def test_absence_is_told_once_and_a_single_failure_not(here: Running, clip: Path) -> None:
    told: list[str] = []
    for cuts, count in (([CONTINUE], 0), ([CONTINUE] * 3, 1)):
        with Wire(here.port, cuts) as wire, Client(wire.url, away=told.append, environ={}) as studio:
            studio.submit(clip)
        assert len(told) == count
    assert "broke the connection off; asked again for up to 300 s" in told[0]


def test_too_many_requests_are_spread_over_time(tmp_path: Path) -> None:
    with running_service(tmp_path, tokens=tokens(requests_per_minute=60)) as here, client(here.url, TOKEN) as studio:
        began = time.monotonic()
        for _ in range(62):
            assert list(studio.tasks()) == []
    assert time.monotonic() - began > 0.9, "the last ones had to wait for Retry-After"


def test_pause_beyond_patience_is_told_instead_of_slept(tmp_path: Path) -> None:
    with running_service(tmp_path, tokens=tokens(requests_per_minute=0.5)) as here, client(here.url, TOKEN) as studio:
        list(studio.tasks())
        with pytest.raises(ServiceError, match=r"more requests than this token may send; try again in 1\d\d s|2 min"):
            list(studio.tasks())


def refusing(code: str, pause: float, times: int) -> Callable[[], Awaitable[str]]:
    """An attempt that is refused so often."""
    left = [AgainError("is full", pause=pause, refusal=ServiceError("s", "is full", code=code))] * times

    async def attempt() -> str:
        if left:
            raise left.pop()
        return "done"

    return attempt


@pytest.mark.parametrize(("code", "waited_for"), [("task_quota", True), ("queue_full", True), ("rate_limit", False)])
def test_server_that_is_full_is_waited_for_with_spread_pauses_and_one_that_is_away_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, code: str, waited_for: bool
) -> None:
    pauses: list[float] = []
    told: list[str] = []

    async def slept(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("serve.client.asking.asyncio.sleep", slept)
    monkeypatch.setattr("serve.client.asking.time.monotonic", lambda: 100.0 + sum(pauses))
    asker = Asker("http://127.0.0.1:1", "", 9, told.append)
    asker._met = True
    if not waited_for:
        with pytest.raises(ServiceError, match="is full"):
            asyncio.run(asker.persist(refusing(code, 1, 9)))
        assert told == ["http://127.0.0.1:1: is full; asked again for up to 9 s"]
        return
    assert asyncio.run(asker.persist(refusing(code, 1, 9))) == "done"
    assert told == ["http://127.0.0.1:1: is full; asked again until there is room"]
    least = [1, 1, 2, 4, 8, 10, 10, 10, 10]
    assert all(low <= pause <= 1.25 * low for low, pause in zip(least, pauses, strict=True))
    assert pauses != least


def test_broken_download_goes_on_where_it_broke(here: Running, clip: Path, tmp_path: Path) -> None:
    with client(here.url) as studio:
        studio.submit(clip)
        task = studio.wait(here.finish())
    moved: list[int] = []
    with Wire(here.port, [300_000, 400_000]) as wire, client(wire.url) as studio:
        target = studio.download(task, tmp_path / "new.mp4", moved=lambda done, _: moved.append(done))
        ranges = [line for line in b"".join(wire.asked).split(b"\r\n") if line.lower().startswith(b"range:")]
    assert target.read_bytes() == MADE
    assert len(ranges) == 2
    assert moved == sorted(moved), "nothing came twice"
    assert moved[-1] == len(MADE)
    assert not list(tmp_path.glob(".troupe-*"))


def test_later_download_goes_on_where_an_earlier_one_was_given_up(here: Running, clip: Path, tmp_path: Path) -> None:
    with client(here.url) as studio:
        studio.submit(clip)
        task = studio.wait(here.finish())
    with (
        Wire(here.port, [500_000, *[0] * 99]) as wire,
        client(wire.url, patience_s=1) as studio,
        pytest.raises(ServiceError, match="broke the connection off"),
    ):
        studio.download(task, tmp_path / "new.mp4")
    (part,) = tmp_path.glob(".troupe-*")
    had = part.stat().st_size
    assert 0 < had < len(MADE)
    assert not (tmp_path / "new.mp4").exists()
    moved: list[int] = []
    with client(here.url) as studio:
        studio.download(task.id, tmp_path / "new.mp4", moved=lambda done, _: moved.append(done))
    assert moved[0] == had
    assert (tmp_path / "new.mp4").read_bytes() == MADE


def test_wrong_bytes_are_an_error_and_never_get_the_name(here: Running, clip: Path, tmp_path: Path) -> None:
    with client(here.url) as studio:
        studio.submit(clip)
        task_id = here.finish(sha256="0" * 64)
        with pytest.raises(
            ServiceError, match=r"is not what task .* made .*; it was removed; download it again"
        ) as bad:
            studio.download(task_id, tmp_path / "new.mp4")
    assert bad.value.code == "wrong_hash"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [clip.name]


def test_download_never_overwrites_unasked(here: Running, clip: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine.mp4"
    target.write_bytes(b"mine")
    with client(here.url) as studio:
        studio.submit(clip)
        task_id = here.finish()
        with pytest.raises(UsageError, match="is there already"):
            studio.download(task_id, target)
        assert target.read_bytes() == b"mine"
        studio.download(task_id, target, overwrite=True)
        assert target.read_bytes() == MADE
        with pytest.raises(UsageError, match="is not a folder"):
            studio.download(task_id, tmp_path / "none" / "a.mp4")


def test_two_processes_do_not_write_one_file(here: Running, clip: Path, tmp_path: Path) -> None:
    with client(here.url) as studio:
        studio.submit(clip)
        task_id = here.finish()
        with (tmp_path / f".troupe-{task_id}.part").open("ab") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(UsageError, match="is being downloaded by another process"):
                studio.download(task_id, tmp_path / "new.mp4")
        studio.download(task_id, tmp_path / "new.mp4")


def test_result_that_is_not_there_says_why(here: Running, clip: Path, tmp_path: Path) -> None:
    with client(here.url) as studio:
        task = studio.submit(clip)
        with pytest.raises(ServiceError, match="is queued, so there is no result; wait") as early:
            studio.download(task, tmp_path / "new.mp4")
        assert early.value.code == "not_done"
        task = studio.wait(here.finish())
        here.desk.data.remove(task.id)
        with pytest.raises(ServiceError, match="not kept any more; submit the video again") as gone:
            studio.download(task, tmp_path / "new.mp4")
        assert (gone.value.status, gone.value.code) == (410, "gone")


def test_tasks_come_page_after_page_and_by_state(here: Running, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.client.client._PAGE", 2)
    with client(here.url) as studio:
        ids = [studio.submit(clip).id for _ in range(5)]
        done = here.finish()
        assert [task.id for task in studio.tasks()] == ids[::-1]
        assert [task.id for task in studio.tasks(limit=3)] == ids[:1:-1]
        assert [task.id for task in studio.tasks(state=TaskState.DONE)] == [done]


def test_cancelled_task_is_tried_again_and_removed(here: Running) -> None:
    with client(here.url) as studio:
        task = studio.submit("https://example.com/a.mp4")
        assert studio.cancel(task.id).state == "cancelled"
        assert studio.retry(task.id).state == "queued"
        with pytest.raises(ServiceError, match="cancel it first"):
            studio.purge(task.id)
        here.finish()
        studio.purge(task.id)
        with pytest.raises(ServiceUsageError, match="no such task"):
            studio.task(task.id)


def test_removal_whose_answer_was_lost_counts(here: Running, clip: Path) -> None:
    with client(here.url) as studio:
        studio.submit(clip)
        task_id = here.finish()
    with Wire(here.port, lost=[b"DELETE"]) as wire, client(wire.url) as studio:
        studio.purge(task_id)
        assert b"".join(wire.asked).count(b"DELETE") == 2
        with pytest.raises(ServiceUsageError, match="no such task"):
            studio.purge(task_id)


def test_following_many_tells_changes_and_goes_on_without_one_that_is_gone(here: Running, clip: Path) -> None:
    with client(here.url) as studio:
        ids = [studio.submit(clip).id for _ in range(3)]
        here.finish()
        here.fail("has no video stream")
        here.finish()
        studio.purge(ids[2])
        gone: list[str] = []
        seen = {task.id: task.state for task in studio.follow(ids, gone=lambda task_id, _: gone.append(task_id))}
        assert seen == {ids[0]: "done", ids[1]: "failed"}
        assert gone == [ids[2]]
        with pytest.raises(ServiceUsageError, match="no such task"):
            list(studio.follow(ids))


@pytest.mark.parametrize("token", ["", "not-the-token-0123456789"])
def test_wrong_token_says_where_one_is_given(tmp_path: Path, clip: Path, token: str) -> None:
    clip.write_bytes(bytes(5 << 20))
    with (
        running_service(tmp_path, tokens=tokens()) as here,
        client(here.url, token) as studio,
        pytest.raises(ServiceUsageError, match=r"--token or TROUPE_TOKEN; `troupe tokens new NAME`") as refused,
    ):
        studio.submit(clip)
    assert (refused.value.status, refused.value.code) == (401, "unauthorized")
    assert Exit.of(refused.value) == Exit.BAD_USAGE


def test_token_and_server_come_from_the_environment(tmp_path: Path) -> None:
    with (
        running_service(tmp_path, tokens=tokens()) as here,
        Client(environ={"TROUPE_SERVER": here.url, "TROUPE_TOKEN": TOKEN}) as studio,
    ):
        assert studio.server == here.url
        assert list(studio.tasks()) == []


@pytest.mark.parametrize(
    ("choices", "text"),
    [
        ({"preset": "none-such"}, r"preset none-such: does not exist; choose one of draft, balanced, quality"),
        ({"crf": 99}, r"body/crf \(Input should be less than or equal to 51\)"),
        ({"background": "nowhere"}, r"neither a colour nor a category"),
    ],
)
def test_impossible_choice_is_bad_usage_in_the_servers_words(
    here: Running, clip: Path, choices: dict[str, str], text: str
) -> None:
    with client(here.url) as studio, pytest.raises(ServiceUsageError, match=text) as refused:
        studio.submit(clip, choices)
    assert Exit.of(refused.value) == Exit.BAD_USAGE
    assert str(refused.value).startswith(clip.name)
    assert here.count() == 0


def test_refusal_crosses_processes_whole() -> None:
    error = ServiceUsageError("a", "is wrong", remedy="mend it", code="invalid", status=422)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.code, again.status) == (ServiceUsageError, str(error), "invalid", 422)


def test_nobody_there_is_said_at_once(tmp_path: Path) -> None:
    with running_service(tmp_path) as here:
        url = here.url
    began = time.monotonic()
    with client(url) as studio, pytest.raises(ServiceError, match=r"takes no connections; start it there"):
        list(studio.tasks())
    with client("http://no-such-host.invalid") as studio, pytest.raises(ServiceError, match="name that is not known"):
        list(studio.tasks())
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("status", "headers", "text"),
    [
        (200, {"Content_Type": "text/html"}, r"does not answer as Troupe does \(HTTP 200, text/html\); give --server"),
        (404, {"Content_Type": "text/html"}, r"does not answer as Troupe does \(HTTP 404, text/html\)"),
        (301, {"Location": "https://studio.example/"}, r"redirects to https://studio.example/; give --server"),
        (413, {"Content_Type": "text/html"}, r"a proxy before it takes no body of this size"),
        (502, {"Content_Type": "text/html"}, r"as a proxy does whose server is away"),
    ],
)
def test_what_is_no_troupe_is_named(status: int, headers: dict[str, str], text: str) -> None:
    with (
        WebServer(lambda request: answer(request, b"<html>", status, **headers)) as web,
        client(f"http://{GOOD}:{web.port}", TOKEN, patience_s=1) as studio,
        pytest.raises(ServiceError, match=text),
    ):
        list(studio.tasks())
    assert {seen.path.partition("?")[0] for seen in web.seen} == {"/v1/tasks"}, "no redirect is followed with a token"


def test_json_of_another_service_is_no_task() -> None:
    with (
        WebServer(lambda request: answer(request, b'{"hello": 1}', Content_Type="application/json")) as web,
        client(f"http://{GOOD}:{web.port}") as studio,
    ):
        with pytest.raises(ServiceError, match="as this version of Troupe does"):
            list(studio.tasks())
        with pytest.raises(ServiceError, match="as this version of Troupe does"):
            studio.submit("https://example.com/a.mp4")


def test_server_that_cannot_prove_who_it_is_or_speaks_no_tls_is_named() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(GOOD).configure_cert(context)
    with (
        WebServer(lambda request: answer(request), tls=context) as web,
        client(f"https://{GOOD}:{web.port}") as studio,
        pytest.raises(ServiceError, match="no valid certificate"),
    ):
        list(studio.tasks())
    with (
        WebServer(lambda request: answer(request)) as web,
        client(f"https://{GOOD}:{web.port}") as studio,
        pytest.raises(ServiceError, match="speaks no TLS"),
    ):
        list(studio.tasks())


@pytest.mark.parametrize(
    "server", ["studio.example", "ftp://studio.example", "http://", "http://a:b@c", "http://c/?x=1"]
)
def test_address_that_is_none_is_bad_usage(server: str) -> None:
    with pytest.raises(UsageError, match="server"):
        client(server)


@pytest.mark.parametrize("token", ["two words", "zwei\nZeilen", "schlüssel"])
def test_token_that_is_none_is_refused_without_repeating_it(token: str) -> None:
    with pytest.raises(UsageError, match="characters that no token has") as refused:
        client("http://127.0.0.1:1", token)
    assert token not in str(refused.value)


@pytest.mark.parametrize("task_id", ["", "..", "../../x", "abc", "0B9D6C1E-4F0A-4C39-9F0A-0D9C9D1F7C11"])
def test_what_is_no_id_never_becomes_a_path(task_id: str) -> None:
    with client("http://127.0.0.1:1") as studio, pytest.raises(UsageError, match="is not an id"):
        studio.task(task_id)


def test_proxies_of_the_environment_are_not_for_this_machine(here: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with client(here.url) as studio:
        assert list(studio.tasks()) == []
    with (
        client("http://studio.invalid") as studio,
        pytest.raises(ServiceError, match="takes no connections"),
    ):
        list(studio.tasks())


@pytest.mark.parametrize("name", ["", "absent.mp4", "."])
def test_file_that_is_none_is_said_before_anything_is_sent(tmp_path: Path, name: str) -> None:
    with client("http://127.0.0.1:1") as studio, pytest.raises(UsageError, match=r"is not a file|does not exist"):
        studio.submit(tmp_path / name)
