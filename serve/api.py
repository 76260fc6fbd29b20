"""The application: routes, errors, limits and their description."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.metrics import ServiceMetrics
from serve.desk import Desk
from serve.edge import problems
from serve.edge.admission import Places
from serve.edge.measure import Measure
from serve.routes import events, health, images, restaging, results, seed, tasks
from serve.upkeep import upkeep

_ABOUT = """\
Videos and images for the resident models of Troupe: images are answered at once, videos become durable tasks.
Every failure is an RFC 9457 problem whose `code` is a stable word. Send a token as `Authorization: Bearer …` (or
`x-token: …`) where the server has a tokens file.
"""
#: Threads for what blocks; more than all that may wait in one at once: tasks being accepted, images being decoded.
_THREADS = 64

OpenDesk = Callable[[], AbstractAsyncContextManager[Desk]]


def create_app(open_desk: OpenDesk, *, max_requests: int) -> FastAPI:
    """The service as an ASGI application.

    Args:
        open_desk: makes its tools when it starts.
        max_requests: requests being answered at once; more get 429.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # asyncio's own are so few on a small machine that some files which take long to look at would hold up all else.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="desk"))
        async with open_desk() as desk, upkeep(desk):
            app.state.desk, app.state.readiness = desk, health.Readiness(desk)
            yield
            desk.ending.set()

    # Its pages come with their scripts: a server may be where no browser reaches others. A path with a slash too many
    # is nothing: a redirect would lead to whatever the request's Host names.
    app = FastAPIOffline(
        title="Troupe",
        version=version("troupe"),
        description=_ABOUT,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    for module in (images, restaging, tasks, events, results, seed, health):
        app.include_router(module.router)
    app.add_middleware(_AtMost, most=max_requests)
    problems.install(app)
    app.add_middleware(Measure, metrics=ServiceMetrics())
    return app


class _AtMost:
    """ASGI middleware: answers what is too much at once with 429."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._places = app, Places(most, "busy", "requests are being answered")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._places.taken(""):
            await self._app(scope, receive, send)
