"""Connections and HTTP itself under attack: what is ambiguous, endless, silent or too much ahead."""

from __future__ import annotations

import re
import socket
import time
from urllib.request import urlopen

import pytest

from serve.edge import connections
from tests.serve.attacked import (
    GET,
    A,
    guarded,
    here,
    lingering,
    one,
)
from tests.serve.socketed import Live, received, statuses

__all__ = ["guarded", "here", "one"]

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


def test_client_that_takes_no_answers_is_cut_off_and_one_that_takes_them_slowly_is_not(
    here: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections.Connection, "stall_seconds", 0.15)
    script = re.search(r'src="(/[^"]+)"', here.ask("GET", "/docs").text)
    assert script is not None
    with urlopen(here.url + script[1]) as answer:
        count, size = 10, len(answer.read())
    asked = f"GET {script[1]} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * count
    with here.connect(10) as silent, here.connect(10) as slow:
        for connection in (silent, slow):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
            connection.sendall(asked)
        began, came = time.monotonic(), 0
        while came < count * size:
            piece = slow.recv(1 << 18)
            assert piece, f"cut off after {came} bytes"
            came += len(piece)
            time.sleep(0.02)
        assert time.monotonic() - began > 4 * 0.15, "it took long enough to have been cut off"
        assert lingering(here) == 1, "the slow one alone is still there"
        assert len(received(silent)) < count * size


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


def test_address_of_a_stranger_is_that_of_the_connection(guarded: Live) -> None:
    assert guarded.ask("GET", "/v1/tasks", headers={"X-Forwarded-For": "9.9.9.9"}).status == 401
    assert set(guarded.desk.auth._strangers) == {"127.0.0.1"}


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
