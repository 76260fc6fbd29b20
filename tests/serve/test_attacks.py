"""What strangers send to the service over a real connection, and what must not come of it.

Each service here also checks at its end that no answer told a path or a stack of this machine (`tests.serve.socketed`).
"""

from __future__ import annotations

import gzip
import json
import socket
import time

import pytest

from cluster.errors import MediaError
from serve.routes import restaging
from serve.schemas import NewTaskBody
from serve.transfer import json_body
from serve.transfer.pace import Patience
from tests.serve.attacked import (
    CLIP,
    JSON,
    URL,
    guarded,
    here,
    one,
)
from tests.serve.socketed import Live, received, statuses
from tests.serve.test_images_api import PNG
from tests.serve.transfer.test_uploads import BOUNDARY, END, FORM, part

__all__ = ["guarded", "here", "one"]


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
    monkeypatch.setattr(json_body, "_JSON_PATIENCE", patience)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 1000\r\n\r\n-"
    with here.connect(5) as connection:
        connection.sendall(head.encode())
        assert statuses(received(connection))[0] in (408, 415)


def test_many_slow_bodies_keep_nobody_else_from_submitting(here: Live) -> None:
    head = (
        b"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    slow = [here.connect() for _ in range(60)]
    try:
        for connection in slow:
            connection.sendall(head)
        time.sleep(0.3)
        answer = here.ask("POST", "/v1/tasks", json.dumps({"video_url": URL}).encode(), JSON)
        assert answer.status == 202, answer.text
        here.ask("DELETE", f"/v1/tasks/{answer.json()['id']}")
    finally:
        for connection in slow:
            connection.close()


def test_image_that_comes_slowly_takes_no_place_of_those_that_are_worked_on(here: Live) -> None:
    before = here.folders()
    with here.connect() as slow:
        slow.sendall(b"POST /v1/upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n-")
        while not here.desk.image_uploads._places._taken:
            time.sleep(0.01)
        assert not here.desk.on_demand._taken
    while here.desk.image_uploads._places._taken or here.folders() != before:
        time.sleep(0.01)


def test_files_that_take_long_to_look_at_hold_up_nobody_else(here: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object) -> None:
        time.sleep(3)
        raise MediaError("input", "is no video")

    monkeypatch.setattr(restaging, "inspect", slow)
    head = f"POST /v1/restage HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(CLIP)}\r\n\r\n"
    clips = []
    try:
        for _ in range(12):
            clips.append(here.connect())
            clips[-1].sendall(head.encode() + CLIP)
            time.sleep(0.1)  # uploads have fewer places
        began = time.monotonic()
        assert here.ask("GET", "/readyz").status in (200, 503)
        assert time.monotonic() - began < 1
    finally:
        for connection in clips:
            connection.close()
    time.sleep(3)


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
