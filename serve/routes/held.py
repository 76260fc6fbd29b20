"""An answer that keeps its request's place until it has been sent."""

from __future__ import annotations

from collections.abc import AsyncIterable
from contextlib import ExitStack
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


class Held(StreamingResponse):
    """Gives the place back whatever happens: a client that is gone already is sent nothing, not even the first line."""

    def __init__(self, content: AsyncIterable[str | memoryview], place: ExitStack, **options: Any) -> None:
        super().__init__(content, **options)
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            await super().__call__(scope, receive, send)
