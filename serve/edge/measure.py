"""Counts requests and what they took, and logs them, as ASGI middleware."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.metrics import ServiceMetrics
from serve.edge.request_id import STATE
from serve.logs import ABOUT

log = logging.getLogger(__name__)

#: Where a request's state has who asked.
OWNER = "owner"
#: Asked all the time, by what watches the service.
_UNTOLD = ("/healthz", "/readyz")


class Measure:
    """Tells of every request that was answered, by the route that took it."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status, endless = time.monotonic(), 0, False

        async def answer(message: Message) -> None:
            nonlocal status, endless
            if message["type"] == "http.response.start":
                status = message["status"]
                endless = (b"content-type", b"text/event-stream") in [
                    (name.lower(), value.partition(b";")[0]) for name, value in message.get("headers", ())
                ]
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            if status:
                # Paths that nobody declared are one: a stranger's invention makes no series.
                route = getattr(scope.get("route"), "path", "other")
                method, seconds = _method(scope), time.monotonic() - begun
                self._metrics.answered(method, route, status, None if endless else seconds)
                if route not in _UNTOLD:
                    state = scope.get("state", {})
                    about = {"request_id": state.get(STATE, ""), "owner": state.get(OWNER, "")}
                    about |= {"method": method, "route": route, "status": status, "seconds": round(seconds, 4)}
                    log.info("answered", extra={ABOUT: about})


def _method(scope: Scope) -> str:
    method = str(scope["method"])
    return method if method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS") else "other"
