"""A short clip restaged while the client waits."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack, suppress

from fastapi import APIRouter, Request, Response

from actors.video.scan import inspect
from cluster.errors import MediaError
from jobs.limits import for_short_clips, limits_of
from serve.desk import Desk
from serve.edge.auth import Principal
from serve.edge.negotiation import Preference
from serve.edge.problems import Problem, again, responses
from serve.intake import Accepted, Incoming, accept, check_webhook, media_or_problem, parsed, restage_payload
from serve.payload import INPUT, ON_DEMAND
from serve.performers import unless_gone
from serve.routes.access import Asks, TheDesk
from serve.routes.results import send_result
from serve.routes.tasks import ACCEPTED, COMMON, accepted, answer_of, body_of, missing
from serve.schemas import NewTaskFields, TaskForm
from serve.store import Document, NewTask, StoreError, Task, TaskState

router = APIRouter(prefix="/v1", tags=["on demand"])

_LOOK_SECONDS = 0.1
_PREFER = {
    "name": "Prefer",
    "in": "header",
    "description": "`respond-async`: answer 202 at once. `wait=N`: answer 202 when it takes longer than N seconds.",
    "schema": {"type": "string"},
    "example": "wait=30",
}
_BODY = body_of(form=TaskForm)
_BODY["parameters"] = [*_BODY["parameters"], _PREFER]


@router.post(
    "/restage",
    summary="Restage a short clip",
    response_class=Response,
    responses={
        200: {
            "description": "The restaged clip; `Link` names its task.",
            "content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}},
        },
        **ACCEPTED,
        **responses(400, 408, 409, 411, 413, 415, 422, 507, *COMMON),
    },
    openapi_extra=_BODY,
)
async def restage(request: Request, desk: TheDesk, principal: Asks) -> Response:
    """The clip is a task like any other, done before those that nobody waits for; it is answered with its result, or,
    when that takes too long, with the task. Longer clips are refused with 413: submit them as tasks."""
    preference = Preference.of(request.headers.get("prefer", ""), desk.service.on_demand_wait_s)
    wait_s = desk.service.on_demand_wait_s if preference.wait_s is None else preference.wait_s

    def make(incoming: Incoming) -> NewTask:
        said = parsed(NewTaskFields, incoming.fields)
        payload = restage_payload(desk, said, incoming)
        _check_short(desk, incoming)
        return NewTask(
            owner=principal.name,
            kind=said.kind,
            payload=payload.model_dump(mode="json"),
            priority=ON_DEMAND if wait_s else 0,
            webhook=check_webhook(desk, said.webhook),
            upload_bytes=incoming.bytes,
            id=incoming.folder.id,
        )

    if wait_s:
        desk.on_demand.check(principal.name)  # so that nobody sends what would be refused
    done = await accept(desk, principal, request, make, answer_of)
    ended = await _waited(desk, principal, request, str(done.answer["id"]), wait_s)
    headers = {"Preference-Applied": preference.applied} if preference.applied else {}
    if ended is None:
        response: Response = accepted(await _as_it_is(desk, principal, done))
    else:
        response = await _answer(desk, ended, request)
        headers["Link"] = f'</v1/tasks/{ended.id}>; rel="describedby"'
    response.headers.update(headers)
    return response


async def _as_it_is(desk: Desk, principal: Principal, done: Accepted) -> Document:
    with suppress(StoreError):
        if (found := await desk.store.get(str(done.answer["id"]), principal.name)) is not None:
            return answer_of(found)
    return done.answer


async def _waited(desk: Desk, principal: Principal, request: Request, task_id: str, seconds: float) -> Task | None:
    """The task as it ended, None when that takes too long. It is accepted: who gets no place to wait is not told to
    send it again."""
    with ExitStack() as place:
        if seconds:
            try:
                place.enter_context(desk.on_demand.taken(principal.name))
            except Problem:
                seconds = 0.0
        ended: Task | None = await unless_gone(
            lambda: _ended(desk, principal, task_id, seconds), request.is_disconnected
        )
    return ended


async def _ended(desk: Desk, principal: Principal, task_id: str, seconds: float) -> Task | None:
    deadline = time.monotonic() + seconds
    while not desk.ending.is_set():
        # It is accepted: whatever the store says of this look, the client is not to send it again.
        with suppress(StoreError):
            task = await desk.store.get(task_id, principal.name)
            if task is None:
                raise missing()
            if task.state.ended:
                return task
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        await asyncio.sleep(min(_LOOK_SECONDS, left))
    return None


async def _answer(desk: Desk, task: Task, request: Request) -> Response:
    if task.state is TaskState.DONE:
        return await send_result(desk, task, request)
    if task.state is TaskState.CANCELLED:
        raise Problem(409, "cancelled", "the task was cancelled")
    error = dict(task.error or {})
    status = int(error.get("status", 500))
    extra = {"task": f"/v1/tasks/{task.id}"}
    code, detail = str(error.get("code", "failed")), str(error.get("detail", "the task failed"))
    raise Problem(status, code, detail, headers=again(status), extra=extra)


def _check_short(desk: Desk, incoming: Incoming) -> None:
    """In a thread.

    Raises:
        Problem: 413, longer than what is done while a client waits.
        MediaError: not a video.
    """
    try:
        info = inspect(incoming.folder.input / INPUT, limits_of(for_short_clips(desk.config))).info
    except MediaError as error:
        raise media_or_problem(error) from error
    most = desk.service.on_demand_seconds
    if info.duration is None or info.duration > most:
        length = "unknown" if info.duration is None else f"{float(info.duration):.1f} s"
        raise Problem(
            413,
            "too_long",
            f"clips of at most {most:g} s are done while you wait, this one's length is {length}; send it to /v1/tasks",
        )
