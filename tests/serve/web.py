"""Loopback servers: one that nobody may reach, and one that does what a test says."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

GOOD = "127.0.0.2"  # Linux answers on all of 127/8; this one stands for a public address


class Canary:
    """Listens on 127.0.0.1 and, where there is IPv6, on ::1; counts connections, which is all that it wants to know."""

    def __init__(self) -> None:
        self.hits = 0
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self.port: int = self._sockets[0].getsockname()[1]
        with suppress(OSError):
            self._sockets.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))

    def __enter__(self) -> Self:
        for listening in self._sockets:
            threading.Thread(target=self._count, args=(listening,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        for listening in self._sockets:
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()

    def _count(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                self.hits += 1
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ncanary")
                connection.close()


@dataclass
class Seen:
    """One request that a `WebServer` got."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class WebServer:
    """Answers by `respond(handler)` at `GOOD`; requests are kept in `seen`, names asked by TLS in `names`."""

    respond: Callable[[BaseHTTPRequestHandler], None]
    port: int = 0
    tls: ssl.SSLContext | None = None
    seen: list[Seen] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)

    def __enter__(self) -> Self:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                owner.seen.append(Seen(self.command, self.path, headers, self.rfile.read(length)))
                self.close_connection = True
                with suppress(OSError):  # the client may have gone, which is often the point
                    owner.respond(self)

            do_POST = do_GET  # noqa: N815 - http.server's name

            def log_message(self, *_: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                return

        self._server = Server((GOOD, self.port), Handler)
        if self.tls:
            self.tls.sni_callback = lambda _, name, __: self.names.append(name)
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://{GOOD}:{self.port}/v.mp4"


def answer(
    request: BaseHTTPRequestHandler, body: bytes = b"", status: int = 200, length: int | None = None, **headers: str
) -> None:
    """A whole answer; headers with _ for -. `length` lies about the body, -1 leaves its header out."""
    request.send_response(status)
    if length != -1:
        request.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(body)
