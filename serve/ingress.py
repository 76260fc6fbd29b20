"""The ingress: a Serve deployment whose replica answers HTTP itself, with uvicorn.

Serve's proxy reads a body ahead of whoever handles it, into memory and without bound (an 800 MB upload to a slow disk
took 1.4 GB). uvicorn stops reading a connection while its request is not read, so an upload costs what
`serve.transfer.uploads` says. Serve still starts, supervises and replaces this process, and shows it; only its proxy is
left out.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from ray import serve as ray_serve

from cluster.config import Config
from cluster.errors import ClusterError, UsageError
from cluster.processes import die_with_parent
from serve.api import create_app
from serve.desk import opened_desk
from serve.edge.auth import Auth, tokens_of
from serve.edge.connections import allow_files, server_of
from serve.logs import log_as_json
from serve.performers import Performers
from serve.store.upgrade import STEP_SECONDS

log = logging.getLogger(__name__)

#: Requests that are being answered when the replica is to end are given so long.
DRAIN_SECONDS = 10
SHUTDOWN_SECONDS = DRAIN_SECONDS + 10.0
#: It may be the one that upgrades the database, or wait for it.
_START_SECONDS = 60.0 + STEP_SECONDS
_BIND_SECONDS = 30.0
_SERVE_SECONDS = 3.0
#: The loop does something else between two requests within milliseconds; a machine that swaps needs seconds.
_STUCK_SECONDS = 30.0
#: Open files: a request's connection and what it sends or receives, and what the process has beside requests.
_FILES_A_REQUEST, _FILES = 2, 1000


class Ingress:
    """Answers HTTP where `http_options` says.

    Args:
        config: a `Config` as a mapping (Serve passes plain values).
        runners: handles of the Runner's deployments; they are here so that Serve deploys them together.

    Raises:
        UsageError: the address is taken, or open to others while there are no tokens; or the tokens file is broken.
        ClusterError: it did not start in time.
    """

    def __init__(self, config: Mapping[str, Any], *runners: object) -> None:
        del runners
        die_with_parent()
        log_as_json()
        self._config = Config.model_validate(config)
        service = self._config.troupe.service
        if (allowed := allow_files(wanted := _FILES_A_REQUEST * service.max_requests + _FILES)) < wanted:
            log.warning("may have %d files open, and max_requests needs %d: raise `ulimit -Hn`", allowed, wanted)
        tokens = tokens_of(self._config, os.environ)
        performers = Performers(self._config, service.on_demand_wait_s)
        pins = Applications([pin.name for pin in self._config.pins])
        app = create_app(
            lambda: opened_desk(self._config, Auth(tokens), performers, pins.states), max_requests=service.max_requests
        )
        self._app = app
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked: float | None = None  # when the loop was asked for a sign of life that it has not given yet
        self._socket = listening(self._config.http.host, self._config.http.port)
        self._server = server_of(app, drain_seconds=DRAIN_SECONDS)
        self._thread = threading.Thread(target=self._serve, name="uvicorn", daemon=True)
        self._thread.start()
        self._await_started()
        log.info("answers at http://%s:%d", *self.address())

    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self._socket.getsockname()[:2]
        return str(host), int(port)

    def check_health(self) -> None:
        """Raises when nothing is answered any more; Serve asks, and replaces the replica then."""
        if not self._thread.is_alive():
            raise ClusterError("ingress", "has ended", remedy="see its log; it is replaced")
        assert self._loop is not None  # it has started
        if self._asked is None:
            self._asked = time.monotonic()
            self._loop.call_soon_threadsafe(self._answer)
        elif (stuck := time.monotonic() - self._asked) > _STUCK_SECONDS:
            raise ClusterError("ingress", f"has answered nothing for {stuck:.0f} s", remedy="it is replaced")

    def _answer(self) -> None:
        self._asked = None

    def __del__(self) -> None:
        # Serve calls it when it ends a replica on purpose.
        if hasattr(self, "_server"):
            desk = getattr(self._app.state, "desk", None)
            if desk is not None and self._loop is not None:
                self._loop.call_soon_threadsafe(desk.ending.set)  # event streams end now, so that they can be resumed
            self._server.should_exit = True
            self._thread.join(SHUTDOWN_SECONDS - 2)

    def _serve(self) -> None:
        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            await self._server.serve(sockets=[self._socket])

        try:
            asyncio.run(run())
        except SystemExit:  # uvicorn's word for a lifespan that failed, which it has logged
            log.error("did not start")
        except Exception:
            log.exception("ended")

    def _await_started(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise ClusterError("ingress", "did not start", remedy="see its log: the database or the data folder")
            time.sleep(0.02)


class Applications:
    """How Serve says that the pins are. Blocking, but not for long: from threads, one at a time."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._asked: Future[dict[str, str]] | None = None

    def states(self) -> dict[str, str]:
        """`ok`, or Serve's word, by `pin NAME`."""
        if self._asked is None or self._asked.done():
            self._asked = Future()
            # On a thread of its own: a controller that hangs takes no more than this one.
            threading.Thread(target=self._ask, args=(self._asked,), name="serve status", daemon=True).start()
        try:
            states = self._asked.result(_SERVE_SECONDS)
        except Exception as error:  # Ray raises anything here; whoever asks wants to know, not to fail
            states = dict.fromkeys(self._names, f"unknown: {type(error).__name__}")
        return {f"pin {name}": "ok" if state.endswith("RUNNING") else state for name, state in states.items()}

    def _ask(self, asked: Future[dict[str, str]]) -> None:
        try:
            found = ray_serve.status().applications
            asked.set_result(
                {name: str(found[name].status) if name in found else "not deployed" for name in self._names}
            )
        except Exception as error:
            asked.set_exception(error)


def listening(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes any. A predecessor that is ending may hold the address for a moment."""
    deadline = time.monotonic() + _BIND_SECONDS
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    while True:
        bound = socket.socket(family, kind, proto)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except OSError as error:
            bound.close()
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                reason = error.strerror or str(error)
                raise UsageError(f"http://{host}:{port}", reason, remedy="choose another http_options.port") from error
            time.sleep(0.2)
        else:
            bound.set_inheritable(False)
            return bound
