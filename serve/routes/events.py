"""A task's events as they happen: server-sent events, resumable by `Last-Event-ID`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse

from serve.desk import Desk
from serve.edge.auth import Principal
from serve.edge.problems import responses
from serve.routes.access import Asks, TheDesk
from serve.routes.held import Held
from serve.routes.tasks import COMMON, TaskId, found
from serve.store import Event, StoreError, Task, TaskState

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])

_LOOK_SECONDS = 0.5
_HEARTBEAT_SECONDS = 10.0
#: One event, by the names of its lines.
_EVENT = {
    "type": "object",
    "required": ["id", "event", "data"],
    "properties": {
        "id": {"type": "string", "description": "Its number."},
        "event": {"enum": ["state", "progress"], "description": "What is told."},
        "data": {"type": "string", "contentMediaType": "application/json", "description": "As in the task."},
    },
}


@router.get(
    "/{task_id}/events",
    summary="Follow a task",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Events `state` and `progress`, each with an id; the stream ends with the task.",
            "content": {
                "text/event-stream": {
                    "schema": _EVENT,
                    "example": 'id: 3\nevent: progress\ndata: {"stage": "running", "frames": 72, "total": 288}\n\n',
                }
            },
        },
        204: {"description": "The task has ended, and all of its events were seen."},
        **responses(404, 422, *COMMON),
    },
)
async def events(
    desk: TheDesk,
    principal: Asks,
    task_id: TaskId,
    request: Request,
    last_event_id: Annotated[
        int, Header(ge=0, le=2**53, description="Id of the last event that was seen.", examples=[3])
    ] = 0,
) -> Response:
    """Server-sent events: `state` whenever the state changes, `progress` at most once a second."""
    task = await found(desk, principal, task_id)
    if task.state.ended and last_event_id >= task.last_event:
        return Response(status_code=204)  # tells an EventSource not to come again
    with ExitStack() as stack:
        stack.enter_context(desk.streams[principal.name].taken(principal.name))
        place = stack.pop_all()
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    stream = _stream(desk, principal, task, last_event_id, request)
    return Held(stream, place, media_type="text/event-stream", headers=headers)


async def _stream(desk: Desk, principal: Principal, task: Task, last: int, request: Request) -> AsyncIterator[str]:
    beat = time.monotonic()
    yield "retry: 2000\n\n"
    while not desk.ending.is_set():
        try:
            new = await desk.store.events_since(task.id, last)
        except StoreError:
            return  # the client comes again
        for event in new:
            yield _lines(event)
            last, beat = event.number, time.monotonic()
        if not new or _is_end(new[-1]):  # which a retry may have followed since
            seen = await desk.store.get(task.id, principal.name)
            if seen is None or (seen.state.ended and last >= seen.last_event):
                return
        if not new:
            if time.monotonic() - beat > _HEARTBEAT_SECONDS:
                yield ": still there\n\n"
                beat = time.monotonic()
            await asyncio.sleep(_LOOK_SECONDS)
        if await request.is_disconnected():
            return


def _is_end(event: Event) -> bool:
    return event.kind == "state" and TaskState(event.data["state"]).ended


def _lines(event: Event) -> str:
    data = json.dumps({**event.data, "at": event.at.isoformat()}, ensure_ascii=False)
    return f"id: {event.number}\nevent: {event.kind}\ndata: {data}\n\n"
