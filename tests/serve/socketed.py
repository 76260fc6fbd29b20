"""The whole service but for Ray behind a real socket: that of `tests.serve.service`, under the ingress's own server."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from aiohttp.abc import AbstractResolver

from serve.api import create_app
from serve.desk import Desk, opened_desk
from serve.edge.auth import Auth, Principal, Tokens
from serve.edge.connections import server_of
from serve.runner import _Attempt
from serve.store import Task
from serve.transfer.fetch import GuardedClient
from tests.serve.service import StandIn, settings

T = TypeVar("T")

_START_SECONDS = 30.0
#: No answer has these in it: what stack traces and paths of this machine are made of.
_SECRETS = ("Traceback", "site-packages", '.py"', "/usr/", str(Path(__file__).parents[2]), str(Path.home()))


@dataclass
class Reply:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Live:
    """A service that listens on loopback."""

    port: int
    desk: Desk
    performers: StandIn
    loop: asyncio.AbstractEventLoop
    replies: list[Reply] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self, work: Callable[..., Coroutine[Any, Any, T]], *arguments: Any, **named: Any) -> T:
        """Does it on the service's own event loop."""
        return asyncio.run_coroutine_threadsafe(work(*arguments, **named), self.loop).result(150)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        seconds: float = 30,
    ) -> Reply:
        """One request on a connection of its own; its answer is kept in `replies`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            reply = Reply(response.status, names, response.read())
        finally:
            connection.close()
        self.replies.append(reply)
        return reply

    def connect(self, seconds: float = 30) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=seconds)

    def raw(self, sent: bytes, seconds: float = 10) -> bytes:
        """What these bytes are answered with until the server closes, or is silent for `seconds`."""
        with self.connect(seconds) as connection:
            with suppress(OSError):
                connection.sendall(sent)
            return received(connection)

    def folders(self) -> list[str]:
        return self.desk.data.ids()

    def work(self) -> Task:
        """Does the next task as a runner would, with all that belongs to it; how it is then."""

        async def do() -> Task:
            claim = await self.desk.store.claim("test", 30.0)
            assert claim is not None, "nothing is queued"
            runner = SimpleNamespace(
                _data=self.desk.data, _config=self.desk.config, _service=self.desk.service, _ending=threading.Event()
            )
            attempt = _Attempt(cast(Any, runner), self.desk.store, self.desk.client, claim)
            await asyncio.wait_for(attempt.do(), 120)
            found = await self.desk.store.get(claim.task.id, None)
            assert found is not None
            return found

        return self.run(do)


def received(connection: socket.socket) -> bytes:
    """Everything until its end, or until it is silent."""
    found = bytearray()
    with suppress(OSError):
        while piece := connection.recv(1 << 16):
            found += piece
    return bytes(found)


def statuses(answer: bytes) -> list[int]:
    """Those of all answers in what a connection gave."""
    return [int(line[9:12]) for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]


def tokens(**of: str) -> Tokens:
    """Tokens by their owners' names."""
    return Tokens({hashlib.sha256(token.encode()).digest(): Principal(name) for name, token in of.items()})


@contextmanager
def live(
    folder: Path,
    *,
    known: Tokens | None = None,
    environ: Mapping[str, str] | None = None,
    change: Callable[[Desk], Desk] = lambda desk: desk,
    resolver: AbstractResolver | None = None,
    **options: Any,
) -> Iterator[Live]:
    """The service, listening. When it ends, no answer that `ask` got may have told anything of this machine.

    Args:
        folder: of its files.
        known: who may ask.
        environ: of the service.
        change: other tools for the desk.
        resolver: what looks names up for it.
        options: of `troupe.service`.
    """
    config, performers = settings(folder, **options), StandIn()

    @asynccontextmanager
    async def opened() -> Any:
        async with opened_desk(config, Auth(known), performers, lambda: {"pin restage": "ok"}, environ or {}) as desk:
            service = desk.service
            async with GuardedClient(service.allow_networks, service.allow_ports, resolver=resolver) as client:
                yield change(replace(desk, client=client))

    app = create_app(opened, max_requests=config.troupe.service.max_requests)
    server = server_of(app, drain_seconds=2)
    listening = socket.create_server(("127.0.0.1", 0))
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[listening])

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    deadline = time.monotonic() + _START_SECONDS
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "the service did not start"
        time.sleep(0.01)
    running = Live(listening.getsockname()[1], app.state.desk, performers, loops[0])
    try:
        yield running
    finally:
        running.loop.call_soon_threadsafe(running.desk.ending.set)
        server.should_exit = True
        thread.join(30)
        listening.close()
        assert not thread.is_alive(), "the service did not end"
    for reply in running.replies:
        text = reply.text + str(reply.headers)
        assert not [word for word in (str(folder), *_SECRETS) if word in text], text
        assert reply.status < 500 or reply.status == 503, text
