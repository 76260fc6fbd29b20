"""The real application on loopback, served by uvicorn in a thread; a test does the runners' part by hand."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
from collections.abc import Awaitable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import uvicorn

from actors.frames import FrameBatch
from actors.model import Step
from cluster.config import Config, TroupeSettings
from cluster.service_settings import ServiceSettings
from serve.api import create_app
from serve.desk import Desk, opened_desk
from serve.edge.auth import Auth, Tokens
from serve.payload import RESULT
from serve.store import Claim, TaskState
from tests.jobs.command import wait_until

T = TypeVar("T")

_SECONDS = 60.0
MADE = bytes(range(256)) * 4096  # 1 MiB


class Nobody:
    """In place of the pins."""

    async def perform(self, step: Step, batch: FrameBatch) -> FrameBatch:  # noqa: ARG002 - as the desk calls it
        raise AssertionError("no image is sent here")


@dataclass
class Running:
    """A service that answers at `url`, and a hand on what is behind it."""

    url: str
    port: int
    desk: Desk
    loop: asyncio.AbstractEventLoop

    def run(self, work: Awaitable[T]) -> T:
        """Does it on the service's own event loop."""

        async def call() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(_SECONDS)

    def claim(self) -> Claim:
        """What a runner would do next."""
        found = wait_until(lambda: self.run(self.desk.store.claim("test", 30.0)), "a task to claim", _SECONDS)
        assert isinstance(found, Claim)
        return found

    def finish(self, content: bytes = MADE, *, sha256: str | None = None) -> str:
        """Does the next task, with this for a result; returns its id."""
        claim = self.claim()
        self.run(finished(self.desk, claim, content, sha256))
        return claim.task.id

    def fail(self, detail: str) -> str:
        """Ends the next task as failed."""
        claim = self.claim()
        error = {"title": "Unprocessable Content", "status": 422, "code": "media_refused", "detail": detail}
        assert self.run(self.desk.store.finish(claim, TaskState.FAILED, error=error))
        return claim.task.id

    def count(self) -> int:
        """All tasks."""
        return sum(self.run(self.desk.store.counts()).values())

    @contextmanager
    def working(self) -> Iterator[None]:
        """Meanwhile every task is done as soon as it is submitted."""

        async def work() -> None:
            while True:
                claim = await self.desk.store.claim("test", 30.0)
                if claim is None:
                    await asyncio.sleep(0.05)
                else:
                    await finished(self.desk, claim)

        task: Future[None] = asyncio.run_coroutine_threadsafe(work(), self.loop)
        try:
            yield
        finally:
            task.cancel()


async def finished(desk: Desk, claim: Claim, content: bytes = MADE, sha256: str | None = None) -> None:
    """Ends a claimed task as done, with this for a result."""
    folder = desk.data.of(claim.task.id)
    folder.result.mkdir(parents=True, exist_ok=True)
    (folder.result / RESULT).write_bytes(content)
    result = {
        "file": RESULT,
        "media_type": "video/mp4",
        "bytes": len(content),
        "sha256": sha256 or hashlib.sha256(content).hexdigest(),
        "frames": 40,
        "damaged": 0,
        "notices": ["sound track 0: flac became AAC"],
    }
    progress = {"stage": "", "stages": {"running": 1.0}, "frames": 40, "total": 40, "fps": 20.0, "eta_s": 0.0}
    cost = {"wall_s": 1.5, "seconds": {"decode": 0.5}, "segments": 1, "retries": 0}
    done = desk.store.finish(claim, TaskState.DONE, result=result, cost=cost, progress=progress)
    assert await done


@contextmanager
def running_service(folder: Path, *, tokens: Tokens | None = None, port: int = 0, **options: Any) -> Iterator[Running]:
    """The service, until the block ends.

    Args:
        folder: of its data; the same one again is the same service again.
        tokens: None where everybody on this machine may ask.
        port: 0 for any.
        options: of `ServiceSettings`.
    """
    chosen = {"preset": "draft", **options}  # which needs no weights
    mine = ServiceSettings(data=str(folder / "data"), library=str(folder / "library"), **chosen)
    config = Config(troupe=TroupeSettings(service=mine))
    app = create_app(
        lambda: opened_desk(config, Auth(tokens), Nobody(), lambda: {"pin restage": "ok"}, {}), max_requests=100
    )
    listening = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=1)
    )
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[listening])

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), "the service", _SECONDS)
        assert server.started
        number = listening.getsockname()[1]
        yield Running(f"http://127.0.0.1:{number}", number, app.state.desk, loops[0])
    finally:
        server.should_exit = True
        thread.join(_SECONDS)
        listening.close()


class Wire:
    """A TCP proxy before a service, which breaks connections.

    Args:
        port: the service's.
        cuts: for each connection, after how many bytes of answers it is cut, when more is there; None is never. Then
            connections stay whole.
        lost: methods; the answer of the next request with the first of them is not let through, and so on.
        drops: what is taken out of requests.
    """

    def __init__(
        self, port: int, cuts: Sequence[int | None] = (), *, lost: Sequence[bytes] = (), drops: bytes = b"\0none"
    ) -> None:
        self._port, self._cuts, self._lost, self._drops = port, list(cuts), list(lost), drops
        self.asked: list[bytes] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def __enter__(self) -> Wire:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                pair = self._listening.accept()[0], socket.create_connection(("127.0.0.1", self._port))
                left = [self._cuts.pop(0) if self._cuts else None]
                for pump in (self._forward, self._back):
                    threading.Thread(target=pump, args=(*pair, left), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket, left: list[int | None]) -> None:
        with suppress(OSError):
            while piece := client.recv(1 << 16):
                self.asked.append(piece)
                if self._lost and piece.startswith(self._lost[0]):
                    self._lost.pop(0)
                    left[0] = 0
                server.sendall(piece.replace(self._drops, b""))
        _close(client, server)

    def _back(self, client: socket.socket, server: socket.socket, left: list[int | None]) -> None:
        with suppress(OSError):
            while piece := server.recv(1 << 16):
                most = left[0]
                client.sendall(piece if most is None else piece[:most])
                if most is not None:
                    if len(piece) > most:
                        break
                    left[0] = most - len(piece)
        _close(client, server)


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
