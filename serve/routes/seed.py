"""The contract of the older service, kept to the letter; its tasks are the same durable tasks.

Of its chain (scenes, separation of voices, transcription) nothing is done here yet: a task restages with the configured
preset, and its result says which steps are missing.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse

from serve.desk import Desk
from serve.edge.auth import Principal
from serve.edge.negotiation import media_type
from serve.edge.problems import Problem, responses
from serve.folders import TaskFolder
from serve.intake import JSON, Incoming, accept, parsed, restage_payload
from serve.payload import INPUT
from serve.routes.access import Asks, TheDesk
from serve.routes.tasks import COMMON, IDEMPOTENCY, found
from serve.schemas import RestageChoices, SeedCreate, SeedForm, SeedTask
from serve.store import Document, NewTask, Task, TaskState

router = APIRouter(prefix="/api/v1/video-tasks", tags=["older contract"])

NOT_DONE = ("scene-detection", "audio-separation", "audio-transcription")

_WORDS = {
    TaskState.QUEUED: "pending",
    TaskState.RUNNING: "processing",
    TaskState.DONE: "completed",
    TaskState.FAILED: "failed",
    TaskState.CANCELLED: "cancelled",
}
_TEMPLATE = "#/components/schemas/{model}"
_REFUSED = responses(400, 408, 409, 411, 413, 415, 422, 507, *COMMON)


def _body(kind: str, model: Any) -> dict[str, Any]:
    content = {kind: {"schema": model.model_json_schema(ref_template=_TEMPLATE)}}
    return {"parameters": [IDEMPOTENCY], "requestBody": {"required": True, "content": content}}


@router.post(
    "/create",
    summary="Create a video task",
    response_model=SeedTask,
    responses=_REFUSED,
    openapi_extra=_body("application/json", SeedCreate),
)
async def create(request: Request, desk: TheDesk, principal: Asks) -> JSONResponse:
    """The server fetches the video."""
    if media_type(request) != JSON:
        raise Problem(
            415, "not_json", "send the video's URL as JSON, or the video itself to /api/v1/video-tasks/upload"
        )

    def make(incoming: Incoming) -> NewTask:
        said = parsed(SeedCreate, incoming.fields)
        desk.client.check(said.video_url)
        return _task(desk, principal, incoming, said.uid, said.video_split_audio_mode, said.video_url)

    return await _accepted(desk, principal, request, make)


@router.post(
    "/upload",
    summary="Upload a video",
    response_model=SeedTask,
    responses=_REFUSED,
    openapi_extra=_body("multipart/form-data", SeedForm),
)
async def upload(request: Request, desk: TheDesk, principal: Asks) -> JSONResponse:
    """The video comes in a form."""

    def make(incoming: Incoming) -> NewTask:
        said = parsed(SeedForm, {**incoming.fields, "file": incoming.files.get("file")})
        return _task(desk, principal, incoming, said.uid, said.video_split_audio_mode, "")

    return await _accepted(desk, principal, request, make)


@router.get("/get/{task_id}", summary="Look at a video task", responses=responses(404, *COMMON))
async def get(
    task_id: Annotated[str, Path(description="Id of a task.")],
    desk: TheDesk,
    principal: Asks,
) -> SeedTask:
    """Its state, in the older contract's words."""
    return _view(desk, await found(desk, principal, task_id))


async def _accepted(desk: Desk, principal: Principal, request: Request, make: Any) -> JSONResponse:
    def answer(task: Task) -> Document:
        return _view(desk, task).model_dump(mode="json")

    done = await accept(desk, principal, request, make, answer)
    return JSONResponse(dict(done.answer))


def _task(desk: Desk, principal: Principal, incoming: Incoming, uid: str, split_audio: str, url: str) -> NewTask:
    payload = restage_payload(
        desk, RestageChoices(), incoming, url=url, uid=uid, split_audio=split_audio, not_done=NOT_DONE
    )
    return NewTask(
        owner=principal.name,
        kind="restage",
        payload=payload.model_dump(mode="json"),
        upload_bytes=incoming.bytes,
        id=incoming.folder.id,
    )


def _view(desk: Desk, task: Task) -> SeedTask:
    payload, error = task.payload, task.error or {}
    done = task.state is TaskState.DONE
    made = {
        "scenes": [],
        "transcription": "",
        "video": f"/v1/tasks/{task.id}/result",
        "not_done": list(payload.get("not_done", ())),
    }
    return SeedTask.model_validate(
        {
            "task_id": task.id,
            "status": _WORDS[task.state],
            "video_url": payload.get("url") or _place(desk.data.of(task.id)),
            "uid": payload.get("uid", ""),
            "result": made if done else None,
            "error": str(error.get("detail", "failed")) if task.state is TaskState.FAILED else None,
        }
    )


def _place(folder: TaskFolder) -> str:
    """Where an upload is, below the data folder: where that lies is nobody's business."""
    return f"tasks/{folder.id}/{folder.input.name}/{INPUT}"
