"""What tasks made, sent whole, in ranges, or not again when it is known."""

from __future__ import annotations

import asyncio
import os
from typing import Any, BinaryIO

from fastapi import APIRouter, Request, Response
from starlette.background import BackgroundTask
from starlette.responses import FileResponse

from serve.desk import Desk
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
    416: {"description": "There is no such part."},
    **responses(400, 404, 409, 410, *COMMON),
}


@router.get("/{task_id}/result", summary="Download a result", response_class=FileResponse, responses=_ANSWERS)
@router.head("/{task_id}/result", summary="Ask for a result's size", response_class=Response, responses=_ANSWERS)
async def result(task_id: TaskId, request: Request, desk: TheDesk, principal: Asks) -> Response:
    """The file, with ETag and ranges, so that a broken download goes on where it broke."""
    task = await found(desk, principal, task_id)
    return await send_result(desk, task, request)


async def send_result(desk: Desk, task: Task, request: Request) -> Response:
    """The result of a task as an answer.

    Raises:
        Problem: 409, it is not done; 410, its file is not kept any more.
    """
    if task.state is not TaskState.DONE or task.result is None:
        raise Problem(409, "not_done", f"the task is {task.state}")
    tag = f'"{task.result["sha256"]}"'
    if tag in (each.strip() for each in request.headers.get("if-none-match", "").split(",")):
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
    return _response(file, str(task.result["media_type"]), headers)


def _response(file: BinaryIO, media_type: str, headers: dict[str, str]) -> FileResponse:
    """By its descriptor: it was opened without following links, and is sent to its end though it is removed
    meanwhile."""
    return FileResponse(
        f"/proc/self/fd/{file.fileno()}",
        media_type=media_type,
        headers=headers,
        stat_result=os.fstat(file.fileno()),
        background=BackgroundTask(file.close),
    )
