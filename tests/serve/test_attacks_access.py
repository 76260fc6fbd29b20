"""Who may ask what: other owners, other hosts and sites, headers and ids that are none, limits of one client."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text as sql

from tests.serve.attacked import CLIP, JSON, MINE, OTHER, RAW, A, B, guarded, here, lingering, one, operations
from tests.serve.socketed import Live, Reply, live
from tests.serve.test_images_api import PNG

__all__ = ["guarded", "here", "one"]

SoakCount = Callable[[int, int], int]
OPEN = {"/healthz", "/readyz"}


def finished(live_here: Live) -> str:
    """Id of a task that is done, with a result."""
    from tests.serve.service import Service

    made = live_here.ask("POST", "/v1/tasks", CLIP, RAW).json()["id"]
    stand_in = Service(None, live_here.desk, live_here.performers)  # type: ignore[arg-type]
    stand_in.run = live_here.run  # type: ignore[method-assign]
    while stand_in.finish() != made:
        pass
    return str(made)


# --- tokens and owners


@pytest.mark.parametrize("headers", [{}, {"x-token": ""}, {"x-token": A[:-1]}, {"authorization": f"Basic {A}"}])
def test_every_operation_but_health_asks_for_a_token(guarded: Live, headers: dict[str, str]) -> None:
    for method, path in operations(guarded):
        answer = guarded.ask(method, path, b"{}" if method == "POST" else None, JSON | headers)
        assert answer.status == (200 if path in OPEN else 401), (method, path)
        assert path in OPEN or answer.headers["www-authenticate"] == "Bearer"


def test_two_tokens_are_none(guarded: Live) -> None:
    raw = f"GET /v1/tasks HTTP/1.1\r\nHost: x\r\nX-Token: {A}\r\nX-Token: {B}\r\nConnection: close\r\n\r\n"
    assert b" 401 " in guarded.raw(raw.encode())
    raw = f"GET /v1/tasks HTTP/1.1\r\nHost: x\r\nX-Token: {A}\r\nAuthorization: Bearer {B}\r\nConnection: close\r\n\r\n"
    assert b" 401 " in guarded.raw(raw.encode())


def test_task_of_another_owner_does_not_exist_by_any_route(guarded: Live) -> None:
    made = guarded.ask("POST", "/v1/tasks", CLIP, RAW | MINE).json()["id"]
    for method, path in operations(guarded):
        if "0b9d6c1e" in path:
            url = path.replace("0b9d6c1e-4f0a-4c39-9f0a-0d9c9d1f7c11", made)
            for query in ("", "?purge=true"):
                assert guarded.ask(method, url + query, None, OTHER).status == 404, (method, path)
    assert guarded.ask("GET", f"/v1/tasks/{made}", None, MINE).json()["state"] == "queued"
    cursor = base64.urlsafe_b64encode(json.dumps([2**52, made]).encode()).decode()
    assert guarded.ask("GET", f"/v1/tasks?cursor={cursor}", None, OTHER).json()["tasks"] == []


def test_key_of_another_owner_is_another_key(guarded: Live) -> None:
    key = {"Idempotency-Key": "the same"}
    first = guarded.ask("POST", "/v1/tasks", CLIP, RAW | MINE | key).json()["id"]
    second = guarded.ask("POST", "/v1/tasks", CLIP, RAW | OTHER | key).json()["id"]
    assert first != second


# --- browsers


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "rebound.example"},
        {"host": "127.0.0.1.nip.io"},
        {"host": "localhost.evil.example:80"},
        {"host": "192.168.0.7"},
        {"host": "[2001:db8::1]"},
        {"host": "["},
        {"host": ""},
        {"host": "127.0.0.1@evil.example"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_page_of_another_site_gets_nothing_done_where_there_are_no_tokens(here: Live, headers: dict[str, str]) -> None:
    for method, path in operations(here):
        if path not in OPEN:
            answer = here.ask(method, path, b"{}" if method == "POST" else None, JSON | headers)
            assert answer.status == 403, (method, path, answer.text)


def test_no_answer_lets_another_origin_read_it(here: Live, one: str) -> None:
    for method, path in [*operations(here), ("GET", f"/v1/tasks/{one}"), ("GET", "/docs"), ("GET", "/no")]:
        asked = {"origin": here.url, "access-control-request-method": method}
        for answer in (here.ask("OPTIONS", path, None, asked), here.ask(method, path, None, {"origin": here.url})):
            assert not [name for name in answer.headers if name.startswith("access-control")], (method, path)


@pytest.mark.parametrize("host", ["evil.example", "[", "a b", "x:99999", "a/../b", "\x80"])
def test_no_answer_leads_to_the_host_that_a_request_names(guarded: Live, host: str) -> None:
    for path in ("/v1/tasks/", "/docs/", "//evil.example", "//evil.example/%2e%2e", "/v1/tasks"):
        answer = guarded.ask("GET", path, None, MINE | {"host": host})
        assert answer.status in (200, 404)
        assert "evil.example" not in str(answer.headers)


# --- headers

VALUES = [
    "",
    " ",
    "a" * 30_000,
    "\xff" * 10,
    "%0d%0aX-Injected: yes",
    "-1",
    "0",
    "9" * 5000,
    "1e999",
    "../../../../etc/passwd",
    "'; DROP TABLE tasks; --",
    "${jndi:ldap://127.0.0.1/x}",
    ",".join(["a;q=0.1"] * 3000),
    "bytes=" + ",".join(f"{number}-{number}" for number in range(2000)),
    "bytes=0-0,0-0," * 300,
    "bytes=-" + "9" * 400,
    "bytes=5-1",
    "wait=" + "9" * 1000,
    "multipart/form-data; boundary=" + "-" * 5000,
    'multipart/form-data; boundary="\r',
    "application/json; charset=utf-7",
]
HEADERS = [
    "X-Request-Id",
    "Prefer",
    "Last-Event-ID",
    "Range",
    "If-Range",
    "If-None-Match",
    "If-Modified-Since",
    "Accept",
    "Content-Type",
    "Content-Encoding",
    "Idempotency-Key",
    "Expect",
    "X-Forwarded-For",
    "Cookie",
]


@pytest.mark.parametrize("name", HEADERS)
def test_no_value_of_a_header_breaks_anything(here: Live, name: str) -> None:
    done = finished(here)
    url = f"/v1/tasks/{done}"
    asked = [("GET", f"{url}/result", b"", {}), ("GET", f"{url}/events", b"", {}), ("GET", url, b"", {})]
    asked += [("POST", "/v1/upscale?upscale=lanczos&scale=1", PNG, {"Content-Type": "image/png"})]
    asked += [("POST", "/v1/tasks", b'{"video_url": "ftp://x"}', {"Content-Type": "application/json"})]
    for number, value in enumerate(VALUES):
        for method, path, body, headers in asked:
            # What a body goes with is dear: every other value, where it could matter.
            if method == "GET" or (
                number % 2 and name in ("Prefer", "Accept", "Content-Type", "Idempotency-Key", "Expect")
            ):
                sent = "".join(f"{key}: {said}\r\n" for key, said in ({**headers, name: value}).items())
                head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{sent}Connection: close\r\n"
                answer = here.raw(f"{head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body, seconds=20)
                status = int(answer[9:12] or 0)
                assert 200 <= status < 500, (name, value[:50], method, path, answer[:300])
                assert b"X-Injected" not in answer.partition(b"\r\n\r\n")[0]
                here.replies.append(Reply(status, {}, answer))


@pytest.mark.parametrize("given", ["a b", "a\tb", "x" * 65, "<script>", "../..", "\xff"])
def test_request_id_that_is_no_plain_word_is_replaced(here: Live, given: str) -> None:
    assert here.ask("GET", "/healthz", None, {"X-Request-Id": given}).headers["x-request-id"] != given


# --- ids, cursors, queries


@pytest.mark.parametrize(
    "text",
    [
        "..%2f..%2fetc",
        "%2e%2e",
        "%00",
        "%ff%fe",
        "*",
        "%25",
        "' OR 1=1 --",
        "0B9D6C1E-4F0A-4C39-9F0A-0D9C9D1F7C11",
        "0b9d6c1e-4f0a-4c39-9f0a-0d9c9d1f7c11%0a",
        "{0b9d6c1e-4f0a-4c39-9f0a-0d9c9d1f7c11}",
        "a" * 5000,
    ],
)
def test_id_that_is_none_is_no_task(here: Live, text: str) -> None:
    for method, rest in (("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "/result"), ("POST", "/retry")):
        answer = here.ask(method, f"/v1/tasks/{text.replace(' ', '%20')}{rest}")
        assert answer.status in (404, 405)
    assert here.ask("GET", f"/api/v1/video-tasks/get/{text.replace(' ', '%20')}").status == 404


@pytest.mark.parametrize(
    "query",
    [
        "cursor=%00",
        "cursor=%ff",
        "cursor=" + base64.urlsafe_b64encode(b'[1, "\\ud800"]').decode(),
        "cursor=" + base64.urlsafe_b64encode(b'[1, "\\u0000"]').decode(),
        "cursor=" + base64.urlsafe_b64encode(b"[1e400, 1]").decode(),
        "cursor=" + base64.urlsafe_b64encode(b"[true, true]").decode(),
        "cursor=" + base64.urlsafe_b64encode(b"[" * 180).decode(),
        "cursor=" + "A" * 5000,
        "limit=0",
        "limit=501",
        "limit=-1",
        "limit=" + "9" * 5000,
        "limit=NaN",
        "state=%00",
        "state=done'--",
        "kind=%00",
        "kind=a%27--",
        "kind=" + "a" * 33,
    ],
)
def test_query_that_is_not_as_it_should_be_is_refused(here: Live, query: str) -> None:
    answer = here.ask("GET", f"/v1/tasks?{query}")
    assert answer.status in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


# --- limits of one client


def test_event_streams_whose_clients_go_at_once_hold_no_place(here: Live, one: str) -> None:
    for _ in range(3 * here.desk.service.events_per_token):
        with here.connect() as connection:
            connection.sendall(f"GET /v1/tasks/{one}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    deadline = time.monotonic() + 10
    while here.desk.streams["local"]._taken and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not here.desk.streams["local"]._taken
    assert lingering(here) == 0


def test_event_streams_over_the_number_are_refused_while_the_others_last(here: Live, one: str) -> None:
    streams = [here.connect() for _ in range(here.desk.service.events_per_token)]
    try:
        for connection in streams:
            connection.sendall(f"GET /v1/tasks/{one}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert b"200 OK" in connection.recv(4096)
        answer = here.ask("GET", f"/v1/tasks/{one}/events")
        assert (answer.status, answer.json()["code"]) == (429, "too_many_streams")
        assert here.ask("GET", f"/v1/tasks/{one}").status == 200
    finally:
        for connection in streams:
            connection.close()


@pytest.mark.soak
def test_keys_of_refused_requests_are_not_kept(tmp_path: Path, soak_count: SoakCount) -> None:
    count = soak_count(40, 10_000)
    with live(tmp_path) as service:
        for number in range(count):
            key = {"Idempotency-Key": f"{number}-{'k' * 200}"}
            assert service.ask("POST", "/v1/tasks", b'{"video_url": "ftp://x"}', JSON | key).status == 422

        async def kept() -> int:
            async def look(session, _now):
                return int((await session.execute(sql("select count(*) from idempotency"))).scalar_one())

            return await service.desk.store._database.read(look)

        assert service.run(kept) == 0
        assert service.folders() == []


def test_client_that_goes_in_mid_upload_leaves_nothing(here: Live) -> None:
    before = here.folders()
    head = b"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: video/mp4\r\nContent-Length: 900000\r\n\r\n"
    for _ in range(6):
        with here.connect() as connection:
            connection.sendall(head + bytes(200_000))
    deadline = time.monotonic() + 10
    while here.folders() != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert here.folders() == before
