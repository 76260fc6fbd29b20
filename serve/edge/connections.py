"""Connections of clients: uvicorn's HTTP/1.1, with bounds on what it takes before anybody has looked at a request.

uvicorn with httptools keeps a header, a trailer or a target of any length, waits for the rest of a request's head for
ever, queues however many requests are sent ahead, reads the rest of a body whose request was answered for as long as
there is one, and keeps an answer for as long as nobody takes it (uvicorn 0.54). None of that needs a token, so it is
bounded here.
"""

from __future__ import annotations

import asyncio
import fcntl
import resource
import socket
import struct
import termios
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Bytes of a request's head: its target and its headers; also of a chunk's extension, and of trailers.
MAX_HEAD_BYTES = 1 << 16
_MAX_HEADERS = 128
#: Requests sent ahead on one connection.
_MAX_AHEAD = 16
#: From the connection, or from the first byte of a further request, to the end of the head.
_HEAD_SECONDS = 20.0
#: A body that is not wanted any more is read for so long, so that its sender gets to see the answer.
_LINGER_SECONDS = 5.0
#: A client that has not taken so many bytes a second of what waits for it, over so long, takes no more.
_STALL_SECONDS, _LEAST_BYTES_A_SECOND = 60.0, 1024
_KEEP_ALIVE_SECONDS = 30
_BACKLOG = 4096


class Connection(HttpToolsProtocol):
    """One connection.

    Attributes:
        head_seconds, linger_seconds, stall_seconds: see above; for tests.
    """

    head_seconds = _HEAD_SECONDS
    linger_seconds = _LINGER_SECONDS
    stall_seconds = _STALL_SECONDS

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head, self._in_body = True, False
        self._unheard = 0
        self._refused = ""
        self._head_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Else the end of a short answer may wait 40 ms for the client's word; asyncio sees to it for some sockets only.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(0)  # so that `pause_writing` tells of all that the client has yet to take
        self._begin_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._head_timer)
        _cancel(self._linger_timer)
        _cancel(self._stall_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._unheard += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._unheard > MAX_HEAD_BYTES:
            self._refuse("431 Request Header Fields Too Large")
            self.send_400_response("")
        elif self._in_head and self._head_timer is None:
            self._begin_waiting()

    def send_400_response(self, msg: str) -> None:
        """The answer to what is not HTTP or over a bound, then the end of the connection."""
        status = self._refused or "400 Bad Request"
        text = msg if status.startswith("400") and msg else f"{status[4:]}."
        head = f"HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(f"{head}content-length: {len(text)}\r\n\r\n{text}".encode("ascii"))
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_taken()

    def resume_writing(self) -> None:
        _cancel(self._stall_timer)
        super().resume_writing()

    # --- the parser's reports

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._in_body = True, False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer: nothing here is said in one
        if len(self.headers) >= _MAX_HEADERS:
            self._refuse("431 Request Header Fields Too Large")
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):  # RFC 9112, 3.2
            raise ValueError("not one Host")
        super().on_headers_complete()
        self._in_head, self._in_body, self._unheard = False, True, 0
        _cancel(self._head_timer)
        self._head_timer = None
        if len(self.pipeline) > _MAX_AHEAD:
            self._refuse("429 Too Many Requests")
            raise ValueError("too many requests ahead")

    def on_body(self, body: bytes) -> None:
        self._unheard = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head, self._in_body, self._unheard = True, False, 0
        _cancel(self._linger_timer)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and not self.pipeline and not self.transport.is_closing():
            self._linger_timer = self.loop.call_later(self.linger_seconds, self.transport.close)

    # --- bounds

    def _refuse(self, status: str) -> None:
        self._refused = status

    def _begin_waiting(self) -> None:
        self._head_timer = self.loop.call_later(self.head_seconds, self._on_head_late)

    def _on_head_late(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._begin_waiting()  # a request is being answered, and that may take its time
        else:
            self.transport.close()

    def _await_taken(self) -> None:
        """In `stall_seconds` the client has taken a part of what waits for it now, or is cut off, which gives back the
        place of its request. Nothing is added meanwhile."""
        untaken = self._untaken()

        def look() -> None:
            if untaken - self._untaken() < self.stall_seconds * _LEAST_BYTES_A_SECOND:
                self.transport.abort()
            else:
                self._await_taken()

        self._stall_timer = self.loop.call_later(self.stall_seconds, look)

    def _untaken(self) -> int:
        """Bytes that wait here and in the kernel, which takes more only when a good part of what it has is gone."""
        socket = self.transport.get_extra_info("socket")
        (queued,) = struct.unpack("i", fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, bytes(4)))
        return int(self.transport.get_write_buffer_size() + queued)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def allow_files(count: int) -> int:
    """Lets this process have `count` files open, each connection being one, as far as the machine lets it; says how
    many it may have. Ray raises the limit for drivers only, and many systems begin with 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return soft


def server_of(app: Any, *, drain_seconds: int) -> uvicorn.Server:
    """A server for `app`, to be given its socket.

    Args:
        app: an ASGI application.
        drain_seconds: how long requests that are being answered are given at the end.
    """
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # else whoever asks from this machine could say that it is somebody else
            lifespan="on",
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=drain_seconds,
        )
    )
