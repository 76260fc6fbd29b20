"""What tasks made, sent whole, in ranges, or not again when it is known."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.background import BackgroundTask
from starlette.responses import FileResponse

from serve.desk import Desk
from serve.edge.negotiation import is_known, satisfiable
from serve.edge.problems import Problem, responses
from serve.folders import FolderError
from serve.routes.access import Asks, TheDesk
from serve.routes.tasks import COMMON, TaskId, found
from serve.store import Task, TaskState

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ETAG = {"ETag": {"description": "SHA-256 of the whole file.", "schema": {"type": "string"}}}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The result.", "content": {"video/mp4": _BINARY}, "headers": _ETAG},
    206: {"description": "The part that Range asked for.", "content": {"video/mp4": _BINARY}, "headers": _ETAG},
    304: {"description": "It is as it was (If-None-Match)."},
    **responses(404, 409, 410, 416, *COMMON),
}


@router.get("/{task_id}/result", summary="Download a result", response_class=FileResponse, responses=_ANSWERS)
@router.head("/{task_id}/result", summary="Ask for a result's size", response_class=Response, responses=_ANSWERS)
async def result(task_id: TaskId, request: Request, desk: TheDesk, principal: Asks) -> Response:
    """The file, with ETag and ranges, so that a broken download goes on where it broke."""
    task = await found(desk, principal, task_id)
    return await send_result(desk, task, request)


async def send_result(desk: Desk, task: Task, request: Request) -> Response:
    """The result of a task as an answer; to a request that did more than ask for it always the whole.

    Raises:
        Problem: 409, it is not done; 410, its file is not kept any more; 416, it has none of the ranges.
    """
    if task.state is not TaskState.DONE or task.result is None:
        raise Problem(409, "not_done", f"the task is {task.state}")
    tag = f'"{task.result["sha256"]}"'
    if request.method in ("GET", "HEAD") and is_known(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers={"ETag": tag})
    try:
        file = await asyncio.to_thread(desk.data.open_result, task.id, str(task.result["file"]))
    except FolderError as error:
        raise Problem(410, "gone", "the result is not kept any more; submit the video again") from error
    headers = {
        "ETag": tag,
        "Cache-Control": "private, no-cache",
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": f'inline; filename="{task.id}.mp4"',
    }
    with ExitStack() as stack:
        stack.enter_context(file)
        about = os.fstat(file.fileno())
        _keep_ranges(request, tag, about.st_size)
        # By its descriptor: it was opened without following links, and is sent to its end though it is removed
        # meanwhile.
        return FileResponse(
            f"/proc/self/fd/{file.fileno()}",
            media_type=str(task.result["media_type"]),
            headers=headers,
            stat_result=about,
            background=BackgroundTask(stack.pop_all().close),
        )


def _keep_ranges(request: Request, tag: str, size: int) -> None:
    """Leaves of a request's Range what is to be obeyed, for `FileResponse`, which takes other forms for errors."""
    asked, on_condition = request.headers.get("range", ""), request.headers.get("if-range", tag)
    kept = satisfiable(asked, size) if request.method == "GET" and on_condition == tag else ""
    others = [pair for pair in request.scope["headers"] if pair[0] != b"range"]
    request.scope["headers"] = [*others, (b"range", kept.encode())] if kept else others
