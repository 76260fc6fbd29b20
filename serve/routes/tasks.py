"""Durable tasks: accepted, looked at, listed, cancelled, tried again."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from serve.desk import Desk
from serve.edge.auth import Principal
from serve.edge.negotiation import is_known
from serve.edge.problems import Problem, busy, responses
from serve.intake import Incoming, accept, check_webhook, parsed, restage_payload
from serve.payload import INPUT
from serve.routes.access import Asks, TheDesk
from serve.schemas import NewTaskBody, NewTaskFields, TaskForm, TaskList, TaskView, WebhookView
from serve.store import Document, NewTask, Quota, Task, TaskState
from serve.store.values import is_id

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])

_POLL_SECONDS = 1
#: Answers that every route of this group may give.
COMMON = (401, 403, 429, 500, 503)

TaskId = Annotated[str, Path(description="Id of a task.", examples=["0b9d6c1e-4f0a-4c39-9f0a-0d9c9d1f7c11"])]

_LOCATION = {"Location": {"description": "The task.", "schema": {"type": "string"}}}
_RETRY = {"Retry-After": {"description": "Seconds until the next look.", "schema": {"type": "integer"}}}
ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {"model": TaskView, "description": "Accepted; it is on disk.", "headers": {**_LOCATION, **_RETRY}}
}
IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A text of your own, at most 255 characters: the same request sent again does nothing, for a day.",
    "schema": {"type": "string", "maxLength": 255, "minLength": 1},
}


def body_of(*, form: type, json: type | None = None) -> dict[str, Any]:
    """The description of a body that is read as it arrives."""
    content: dict[str, Any] = {
        "multipart/form-data": {"schema": form.model_json_schema(ref_template="#/components/schemas/{model}")},  # type: ignore[attr-defined]
    }
    if json is not None:
        content["application/json"] = {
            "schema": json.model_json_schema(ref_template="#/components/schemas/{model}")  # type: ignore[attr-defined]
        }
    return {"parameters": [IDEMPOTENCY], "requestBody": {"required": True, "content": content}}


async def found(desk: Desk, principal: Principal, task_id: str) -> Task:
    """The caller's own task.

    Raises:
        Problem: 404, there is none, or it is somebody else's.
    """
    # What is no id does not come to the databases, of which some take no NUL.
    task = await desk.store.get(task_id, principal.name) if is_id(task_id) else None
    if task is None:
        raise missing()
    return task


def missing() -> Problem:
    """There is no such task, or it is somebody else's."""
    return Problem(404, "no_task", "there is no such task")


async def view_of(desk: Desk, task: Task) -> TaskView:
    """A task, with its place in the queue and how its webhook goes."""
    ahead = await desk.store.ahead(task) if task.state is TaskState.QUEUED else None
    webhook = None
    if task.webhook:
        told = await desk.store.deliveries_of(task.id) if task.state.ended else ()
        webhook = WebhookView.of(told[-1] if told else None)
    return TaskView.of(task, ahead, webhook)


def answer_of(task: Task) -> Document:
    """What a submission is answered."""
    return TaskView.of(task).model_dump(mode="json")


def accepted(answer: Document) -> JSONResponse:
    """202, with where to look and when."""
    headers = {"Location": answer["links"]["self"], "Retry-After": str(_POLL_SECONDS)}
    return JSONResponse(dict(answer), 202, headers)


@router.post(
    "",
    status_code=202,
    summary="Submit a task",
    response_model=TaskView,
    responses=ACCEPTED | responses(400, 408, 409, 411, 413, 415, 422, 507, *COMMON),
    openapi_extra=body_of(form=TaskForm, json=NewTaskBody),
)
async def submit(request: Request, desk: TheDesk, principal: Asks) -> Response:
    """Send the video in a form, or, as JSON, the URL from which the server fetches it."""

    def make(incoming: Incoming) -> NewTask:
        url, fields = "", dict(incoming.fields)
        if not incoming.files:
            url = parsed(NewTaskBody, fields).video_url
            desk.client.check(url)
            fields.pop("video_url")
        said = parsed(NewTaskFields, fields)
        payload = restage_payload(desk, said, incoming, url=url)
        return NewTask(
            owner=principal.name,
            kind=said.kind,
            payload=payload.model_dump(mode="json"),
            webhook=check_webhook(desk, said.webhook),
            upload_bytes=incoming.bytes,
            id=incoming.folder.id,
        )

    done = await accept(desk, principal, request, make, answer_of)
    return accepted(done.answer)


@router.get("", summary="List tasks", responses=responses(400, 422, *COMMON))
async def tasks(
    desk: TheDesk,
    principal: Asks,
    state: Annotated[TaskState | None, Query(description="Only tasks in this state.")] = None,
    kind: Annotated[str | None, Query(description="Only tasks of this kind.", pattern="^[a-z][a-z0-9-]{0,31}$")] = None,
    cursor: Annotated[str | None, Query(description="`next` of the page before.", max_length=256)] = None,
    limit: Annotated[int, Query(ge=1, le=500, description="Most tasks on a page.")] = 50,
) -> TaskList:
    """Your tasks, newest first."""
    page = await desk.store.page(principal.name, state=state, kind=kind, cursor=cursor, limit=limit)
    return TaskList(tasks=[TaskView.of(task) for task in page.tasks], next=page.cursor)


@router.get(
    "/{task_id}",
    summary="Look at a task",
    response_model=TaskView,
    responses=responses(404, *COMMON) | {304: {"description": "It is as it was (If-None-Match)."}},
)
async def task(task_id: TaskId, request: Request, desk: TheDesk, principal: Asks) -> Response:
    """State, progress, result and cost, and how its webhook goes."""
    seen = await found(desk, principal, task_id)
    body = (await view_of(desk, seen)).model_dump_json().encode()
    tag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if not seen.state.ended:
        headers["Retry-After"] = str(_POLL_SECONDS)
    if is_known(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


@router.delete(
    "/{task_id}",
    summary="Cancel or remove a task",
    response_model=TaskView,
    responses={
        202: {"model": TaskView, "description": "It is running and will stop within seconds."},
        204: {"description": "Removed with all its files (`purge`)."},
        **responses(404, 409, 422, *COMMON),
    },
)
async def cancel(
    desk: TheDesk,
    principal: Asks,
    task_id: TaskId,
    purge: Annotated[bool, Query(description="Remove a task that has ended, its result too.")] = False,
) -> Response:
    """A queued task is cancelled at once, a running one within seconds; with `purge` one that has ended is removed."""
    if purge:
        await _purge(desk, principal, await found(desk, principal, task_id))
        return Response(status_code=204)
    after = await desk.store.request_cancel(task_id, principal.name) if is_id(task_id) else None
    if after is None:
        raise missing()
    if after.state is TaskState.CANCELLED:
        await remove_files(desk, task_id)
    elif after.state.ended:
        raise Problem(409, "ended", f"the task is {after.state} already; `purge=true` removes it")
    view = await view_of(desk, after)
    return JSONResponse(view.model_dump(mode="json"), 200 if after.state.ended else 202)


async def remove_files(desk: Desk, task_id: str) -> None:
    """All files of a task."""
    await asyncio.to_thread(desk.data.remove, task_id)


async def _purge(desk: Desk, principal: Principal, seen: Task) -> None:
    # Its row first: a row without files would promise a result that is gone.
    if await desk.store.purge(ids=[seen.id], owner=principal.name):
        await remove_files(desk, seen.id)
        return
    now = await found(desk, principal, seen.id)
    if not now.state.ended:
        raise Problem(409, "not_ended", f"the task is {now.state}; cancel it first")
    if any(told.due for told in await desk.store.deliveries_of(now.id)):
        raise Problem(409, "owed", "its webhook is still to be told; try again later")
    raise busy("busy", "something else is being done with the task", _POLL_SECONDS)


@router.post(
    "/{task_id}/retry",
    status_code=202,
    summary="Try a task again",
    response_model=TaskView,
    responses=ACCEPTED | responses(404, 409, *COMMON),
)
async def retry(task_id: TaskId, desk: TheDesk, principal: Asks) -> Response:
    """A failed task goes on behind its last finished segment; a cancelled one needs its `video_url`, for its files are
    gone."""
    seen = await found(desk, principal, task_id)
    again = seen.state in (TaskState.FAILED, TaskState.CANCELLED)
    # The files of a cancelled task may still be there, and go any moment.
    kept = seen.state is TaskState.FAILED and (desk.data.of(seen.id).input / INPUT).exists()
    if again and not seen.payload.get("url") and not kept:
        raise Problem(409, "input_gone", "the uploaded video is not kept any more; submit it again")
    queued = None if principal.queued == float("inf") else int(principal.queued)
    after = await desk.store.retry(task_id, principal.name, quota=Quota(queued))
    if after is None:
        raise missing()
    return accepted(answer_of(after))
