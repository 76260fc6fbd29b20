"""What strangers send to the service over a real connection, and what must not come of it.

Each service here also checks at its end that no answer told a path or a stack of this machine (`tests.serve.socketed`).
"""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import psutil
import pytest

from serve import intake
from serve.desk import Desk
from serve.edge import auth, connections
from serve.schemas import NewTaskBody
from serve.transfer.pace import Patience
from serve.transfer.uploads import UploadLimits, Uploads
from tests.serve.socketed import Live, live, received, statuses, tokens
from tests.serve.test_images_api import PNG
from tests.serve.transfer.test_uploads import BOUNDARY, END, FORM, part

SoakCount = Callable[[int, int], int]
CLIP = b"not a video, which only a runner finds out"
JSON = {"content-type": "application/json"}
RAW = {"content-type": "video/mp4"}
URL = "https://example.com/a.mp4"
A, B = "token-of-a-0123456789", "token-of-b-0123456789"
MINE, OTHER = {"x-token": A}, {"x-token": B}
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


def impatient(desk: Desk) -> Desk:
    """Uploads of at most 1 MiB, from clients that may be silent for half a second."""
    patience = Patience(silence_seconds=0.5, bytes_per_second=1000, window_seconds=0.5, total_seconds=5)
    limits = UploadLimits(max_bytes=1 << 20, unannounced_bytes=1 << 19, files=3, free_bytes=0, patience=patience)
    return replace(desk, uploads=Uploads(limits))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("service")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections.Connection, "linger_seconds", 0.4)
        with live(folder, change=impatient, on_demand_wait_s=0.2, on_demand_megapixels=1) as running:
            yield running


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("guarded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auth, "_STRANGERS_PER_MINUTE", 1e9)
        with live(folder, known=tokens(a=A, b=B)) as running:
            yield running


@pytest.fixture
def one(here: Live) -> Iterator[str]:
    """Id of a task that is queued."""
    answer = here.ask("POST", "/v1/tasks", CLIP, RAW)
    assert answer.status == 202, answer.text
    yield str(answer.json()["id"])
    here.ask("DELETE", f"/v1/tasks/{answer.json()['id']}")


def operations(here: Live) -> list[tuple[str, str]]:
    """Method and path of every operation, with an id that nothing has."""
    paths = here.ask("GET", "/openapi.json").json()["paths"]
    nobody = "0b9d6c1e-4f0a-4c39-9f0a-0d9c9d1f7c11"
    return [(method.upper(), path.replace("{task_id}", nobody)) for path, found in paths.items() for method in found]


def lingering(here: Live) -> int:
    """Connections that the service holds, after those that are ending have had a moment."""
    time.sleep(0.2)
    mine = psutil.Process().net_connections("tcp")
    return sum(each.laddr.port == here.port and each.status == psutil.CONN_ESTABLISHED for each in mine)


# --- HTTP itself

SMUGGLED = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
SMUGGLING = {
    "length and chunks": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
    "two equal lengths": b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "list of lengths": b"Content-Length: 0, 44\r\n\r\n",
    "length with a sign": b"Content-Length: +0\r\n\r\n",
    "negative length": b"Content-Length: -1\r\n\r\n",
    "length in hexadecimal": b"Content-Length: 0x0\r\n\r\n",
    "length past all numbers": b"Content-Length: 18446744073709551616\r\n\r\n",
    "length with a space in it": b"Content-Length: 0 0\r\n\r\n",
    "blank before the colon": b"Content-Length : 0\r\n\r\n",
    "blank before the colon of chunks": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "unknown encoding": b"Transfer-Encoding: xchunked\r\n\r\n",
    "identity after chunks": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "vertical tab": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "folded line": b"X: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare line feeds in chunks": b"Transfer-Encoding: chunked\r\n\r\n0\n\n",
    "bare carriage return": b"X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunk size with a prefix": b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
    "chunk size past all numbers": b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n\r\n",
    "negative chunk": b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    "chunk longer than it says": b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    "NUL in a header": b"X: a\0b\r\n\r\n",
    "NUL in a name": b"X\0: a\r\n\r\n",
    "line without a colon": b"nonsense\r\n\r\n",
    "two Hosts": b"Host: 127.0.0.1\r\n\r\n",
}


@pytest.mark.parametrize("shape", SMUGGLING)
def test_ambiguous_request_is_refused_and_what_stands_behind_it_is_not_a_request(here: Live, shape: str) -> None:
    head = b"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = here.raw(head + SMUGGLING[shape] + SMUGGLED, seconds=2)
    assert statuses(answer) and 200 not in statuses(answer), answer
    assert set(statuses(answer)) <= {400, 422, 408}, answer
    assert statuses(answer)[-1] == 400 and b"connection: close" in answer, answer


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET http://evil.example/v1/tasks HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"TRACE /v1/tasks HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/tasks\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/t\xff\xfesks HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v1/tasks HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\nOrigin: http://evil.example\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"A" * 70_000,
    ],
)
def test_odd_requests_are_refused(here: Live, request_line: bytes) -> None:
    found = statuses(here.raw(request_line, seconds=1))
    assert len(found) == 1 and 400 <= found[0] < 500


@pytest.mark.parametrize(
    "endless",
    [
        GET + b"X: ",
        b"GET /",
        GET + b"X: y\r\n" * 200 + b"Y: ",
        b"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1;x=",
        b"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
    ],
)
def test_head_chunk_extension_and_trailer_have_an_end(here: Live, endless: bytes) -> None:
    answer = here.raw(endless + b"a" * (4 << 20), seconds=5)
    assert 431 in statuses(answer), answer[:300]


def test_head_may_be_as_large_as_signed_urls_need(here: Live) -> None:
    assert statuses(here.raw(GET + b"X: " + b"a" * 30_000 + b"\r\nConnection: close\r\n\r\n")) == [200]


def test_header_of_a_trailer_is_not_heard(guarded: Live) -> None:
    head = b"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    answer = guarded.raw(head + b"1\r\n{\r\n0\r\nX-Token: " + A.encode() + b"\r\n\r\n", seconds=2)
    assert statuses(answer) == [401]


def test_connection_that_says_nothing_or_too_slowly_is_closed(here: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections.Connection, "head_seconds", 0.4)
    with here.connect(10) as silent, here.connect(10) as slow:
        began = time.monotonic()
        while time.monotonic() - began < 5:
            try:
                slow.sendall(b"G")
                time.sleep(0.1)
            except OSError:
                break
        assert time.monotonic() - began < 4
        assert received(silent) == b""
    monkeypatch.undo()
    assert lingering(here) == 0


def test_body_that_nobody_wants_is_not_read_for_ever(here: Live) -> None:
    head = b"POST /no/such/path HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with here.connect(10) as endless:
        endless.sendall(head)
        assert statuses(endless.recv(1 << 16)) == [404]
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 8:
                endless.sendall(b"400\r\n" + bytes(1024) + b"\r\n")
                time.sleep(0.01)
        assert time.monotonic() - began < 5


def test_requests_sent_far_ahead_end_the_connection(here: Live, one: str) -> None:
    """An event stream looks at its connection again and again, and each look lets more of them in."""
    with here.connect(5) as connection:
        connection.sendall(f"GET /v1/tasks/{one}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert b"event-stream" in connection.recv(1 << 16)
        with pytest.raises(OSError):
            for _ in range(200):
                connection.sendall((GET + b"\r\n") * 100)
                time.sleep(0.02)
    assert here.ask("GET", "/healthz").status == 200


# --- bodies


def test_announced_size_over_the_limit_is_refused_before_it_comes(here: Live) -> None:
    for size in ("1073741824000", "9" * 18):
        head = (
            f"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: video/mp4\r\nContent-Length: {size}\r\n\r\n"
        )
        with here.connect(3) as connection:
            connection.sendall(head.encode())
            assert statuses(connection.recv(1 << 16)) == [413]


@pytest.mark.parametrize(
    ("path", "kind", "begin"),
    [
        ("/v1/tasks", "video/mp4", b""),
        ("/v1/tasks", FORM, part("file", b"", "a.mp4")[:-2]),
        ("/v1/tasks", FORM, part("preset", b"")[:-2]),
        ("/v1/tasks", "application/json", b'{"video_url": "'),
        ("/v1/restage", "video/mp4", b""),
        ("/v1/upscale", "image/png", PNG),
        ("/api/v1/video-tasks/upload", FORM, part("file", b"", "a.mp4")[:-2]),
        ("/api/v1/video-tasks/create", "application/json", b" "),
    ],
)
def test_endless_body_is_refused_and_leaves_nothing(here: Live, path: str, kind: str, begin: bytes) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
    before = here.folders()
    with here.connect(10) as connection:
        connection.sendall(head.encode() + b"%x\r\n%s\r\n" % (len(begin) or 1, begin or b"x"))
        try:
            for _ in range(64):
                connection.sendall(b"8000\r\n" + b"a" * 0x8000 + b"\r\n")
        except OSError:
            pass
        (status,) = statuses(received(connection)[:2000])
    assert status in (400, 411, 413)
    assert here.folders() == before


@pytest.mark.parametrize("kind", ["video/mp4", FORM, "application/json"])
@pytest.mark.parametrize("path", ["/v1/tasks", "/v1/restage", "/v1/upscale", "/api/v1/video-tasks/create"])
def test_slow_body_is_given_up(here: Live, path: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patience = Patience(silence_seconds=0.4, bytes_per_second=1000, window_seconds=0.4, total_seconds=2)
    monkeypatch.setattr(intake, "_JSON_PATIENCE", patience)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 1000\r\n\r\n-"
    with here.connect(5) as connection:
        connection.sendall(head.encode())
        assert statuses(received(connection))[0] in (408, 415)


def test_body_shorter_or_longer_than_announced_makes_no_task(here: Live) -> None:
    head = b"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: video/mp4\r\nContent-Length: %d\r\n\r\n"
    before = here.folders()
    with here.connect(5) as connection:
        connection.sendall(head % 1000 + CLIP)
        connection.shutdown(socket.SHUT_WR)
        assert 202 not in statuses(received(connection))
    with here.connect(5) as connection:
        connection.sendall(head % 1000 + CLIP)
    time.sleep(1.0)
    assert here.folders() == before


def test_compressed_bodies_are_not_inflated(here: Live) -> None:
    bomb = gzip.compress(b'{"video_url": "' + b" " * 50_000_000 + b'"}')
    answer = here.ask("POST", "/v1/tasks", bomb, JSON | {"content-encoding": "gzip"})
    assert answer.status in (400, 413)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'{"video_url":"x","x":' + b"[" * 950 + b"]" * 950 + b"}",
        b'{"video_url":"x","x":' + b'{"a":' * 957 + b"1" + b"}" * 957 + b"}",
        b'{"video_url": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"scale": NaN}',
        b'{"scale": -Infinity}',
        b'{"scale": 1e999}',
        b'{"crf": ' + b"9" * 5000 + b"}",
        b'{"crf": ' + b"9" * 4000 + b"}",
        b'{"video_url": "https://example.com/\\u0000"}',
        b'{"video_url": "https://example.com/\\r\\nX-Injected: yes"}',
        b"\xff\xfe{\x00}\x00",
        b'{"video_url": "\xff\xfe"}',
        b"null",
        b"[]",
        b'"text"',
        b"",
        b'{"__proto__": {"admin": true}, "video_url": 1}',
        b'{"video_url": {"$ne": null}}',
        b'{"video_url": ["https://example.com/"]}',
    ],
)
@pytest.mark.parametrize("path", ["/v1/tasks", "/api/v1/video-tasks/create"])
def test_json_that_is_not_as_it_should_be_is_refused(here: Live, path: str, body: bytes) -> None:
    before = here.folders()
    answer = here.ask("POST", path, body, JSON)
    assert answer.status in (400, 413, 422), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert here.folders() == before


HOSTILE = ["\0", "\x1b[31m", "\r\nX-Injected: yes", "\u202egpj", "../" * 20, "%00", "a" * 5000, "$(id)", "'; --", "-1"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_any_field_is_refused_or_harmless(here: Live, text: str) -> None:
    for field in NewTaskBody.model_fields:
        bodies = [(json.dumps({"video_url": URL, field: text}).encode(), JSON)]
        form = part("file", CLIP, "a.mp4") + part(field, text.encode()) + END
        bodies += [(form, {"content-type": FORM})]
        for body, headers in bodies:
            answer = here.ask("POST", "/v1/tasks", body, headers)
            assert answer.status in (202, 400, 422), (field, answer.text)
            assert "x-injected" not in answer.headers
            if answer.status == 202:
                here.ask("DELETE", f"/v1/tasks/{answer.json()['id']}")


@pytest.mark.parametrize(
    "body",
    [
        part("file", CLIP, "a.mp4") + part("preset", b"\xff\xfe") + END,
        part("file", CLIP, "a.mp4") + part("pre\0set", b"draft") + END,
        part("file\xff", CLIP, "a.mp4") + END,
        part("../../file", CLIP, "a.mp4") + END,
        part("file", CLIP, "a.mp4") + part("file", CLIP, "b.mp4") + END,
        part("x" * 500, CLIP, "a.mp4") + END,
        part("file", CLIP, "a.mp4", "Content-Disposition: form-data; name=mask\r\n") + END,
        part("file", CLIP, "a.mp4", "Content-Transfer-Encoding: base64\r\n") + END,
        b"".join(part(f"f{number}", b"x") for number in range(1000)) + END,
        part("file", CLIP, "a.mp4"),
        f"--{BOUNDARY}\r\n".encode() * 1000,
    ],
)
def test_form_that_is_not_as_it_should_be_is_refused(here: Live, body: bytes) -> None:
    before = here.folders()
    answer = here.ask("POST", "/v1/tasks", body, {"content-type": FORM})
    assert answer.status in (400, 422), answer.text
    assert here.folders() == before


@pytest.mark.parametrize(
    "name",
    [
        "../../../../tmp/pwned",
        "/etc/cron.d/pwned",
        "..\\..\\pwned",
        "%2e%2e%2fpwned",
        "pwned\0.mp4",
        "a\r\nX-Injected: yes",
        "concat:pwned",
        "-i",
        "|id",
        ".htaccess",
        "x.m3u8",
        "input",
        "input.mask.video",
    ],
)
def test_name_of_a_file_is_for_show(here: Live, name: str) -> None:
    form = part("file", CLIP, name) + part("mask", CLIP, name) + part("background", CLIP, name) + END
    answer = here.ask("POST", "/v1/tasks", form, {"content-type": FORM})
    if answer.status != 202:
        assert answer.status == 400  # a line break inside a header is none of a form
        return
    task = answer.json()
    inputs = here.desk.data.of(task["id"]).input
    assert sorted(path.name for path in inputs.iterdir()) == ["background.video", "input", "input.mask.video"]
    assert not {*task["name"]} & {*"/\\\r\n\0"}
    assert "x-injected" not in answer.headers
    here.ask("DELETE", f"/v1/tasks/{task['id']}")
    assert "pwned" not in {path.name for path in here.desk.data.root.rglob("*")}
