"""A loopback HTTP server of one file, with the faults of real ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


@dataclass
class Asked:
    """One request: its path and the first byte that it asked for."""

    path: str
    start: int


@dataclass
class FileServer:
    """Serves `content` at every path.

    Attributes:
        ranges: whether Range is honoured.
        cut_after: bytes of a body after which the connection closes, one item a request; then bodies are whole.
        statuses: statuses sent instead of the file, one a request.
        lengths: whether Content-Length is sent.
        content_type: what is sent as such.
        on_body: called in the handler before each body.
    """

    content: bytes
    ranges: bool = True
    lengths: bool = True
    content_type: str = "application/octet-stream"
    cut_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    on_body: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.answer(self)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def mirror(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/gh/{{path}}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked_range = request.headers.get("Range")
        start = int(asked_range.removeprefix("bytes=").rstrip("-")) if asked_range and self.ranges else 0
        self.asked.append(Asked(request.path, start))
        if self.statuses:
            request.send_error(self.statuses.pop(0))
            return
        if start >= len(self.content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(self.content)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        body = self.content[start:]
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        request.send_header("Content-Type", self.content_type)
        if self.lengths:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        self.on_body()
        request.wfile.write(body[: self.cut_after.pop(0)] if self.cut_after else body)
