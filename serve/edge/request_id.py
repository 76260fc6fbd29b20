"""One id for each request, through answers, logs and whatever the request starts."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-request-id"
STATE = "request_id"

_GIVEN = re.compile(rb"[A-Za-z0-9._-]{1,64}")

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request that is being answered; empty outside of one."""


class RequestIds:
    """ASGI middleware: takes a well-formed `X-Request-Id` or makes one, and puts it on the answer.

    Inside a request the id is in `request_id` and in `request.state.request_id`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == HEADER.encode()), b"")
        chosen = given.decode() if _GIVEN.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})[STATE] = chosen

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != HEADER.encode()]
                message["headers"] = [*headers, (HEADER.encode(), chosen.encode())]
            await send(message)

        token = request_id.set(chosen)
        try:
            await self._app(scope, receive, answer)
        finally:
            request_id.reset(token)
