"""One id for each request, through answers, logs and whatever the request starts."""

from __future__ import annotations

import logging
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

    Inside a request the id is in `request_id` and in `request.state.request_id`.

    Args:
        app: what answers.
        on_answers: False behind Ray Serve's proxy, which gives every request an id and puts it on the answer itself.
    """

    def __init__(self, app: ASGIApp, on_answers: bool = True) -> None:
        self._app, self._on_answers = app, on_answers

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
            await self._app(scope, receive, answer if self._on_answers else send)
        finally:
            request_id.reset(token)


class RequestIdFilter(logging.Filter):
    """Gives every log record the attribute `request_id`."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True
