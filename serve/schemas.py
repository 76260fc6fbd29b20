"""Bodies of requests and answers, as OpenAPI describes them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve.edge.problems import ProblemDetails
from serve.store import Task, TaskState, Told

_X264 = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo"
]


class RestageChoices(BaseModel):
    """What a restaging may be told, in the words of `troupe restage`. What is left out comes from the preset."""

    model_config = ConfigDict(extra="forbid")

    preset: str | None = Field(
        default=None, max_length=64, description="A named set of choices.", examples=["draft", "balanced", "quality"]
    )
    upscale: str | None = Field(
        default=None, max_length=64, description="`lanczos` or a Real-ESRGAN model.", examples=["realesr-animevideov3"]
    )
    target: str | None = Field(
        default=None,
        max_length=32,
        description="Size of the result: `720p`, `1080p`, `1440p`, `4k` (the short side), `WIDTHxHEIGHT`, or a factor.",
        examples=["1080p"],
    )
    scale: float | None = Field(default=None, gt=0, le=16, description="A factor, instead of `target`.", examples=[2])
    matte: str | None = Field(
        default=None,
        max_length=64,
        description="`auto`, `none`, `given` (with the file `mask`), `chroma`, `selfie` or an `rvm-…` model.",
        examples=["auto"],
    )
    background: str | None = Field(
        default=None,
        max_length=64,
        description="A colour or a category of the server's library. In a form it may be a file instead.",
        examples=["#20405f"],
    )
    crf: int | None = Field(
        default=None, ge=0, le=51, description="Constant quality of H.264, lower is better.", examples=[19]
    )
    x264: _X264 | None = Field(default=None, description="x264's preset.", examples=["fast"])
    denoise: float | None = Field(
        default=None, ge=0, le=1, description="Strength, for `realesr-general-x4v3`.", examples=[0.5]
    )
    max_input: int | None = Field(
        default=None, ge=16, le=8192, description="Largest short side that enters the upscaler.", examples=[720]
    )
    long_side: int | None = Field(
        default=None, ge=64, le=4096, description="Long side that a recurrent matting network looks at.", examples=[768]
    )
    allow_damaged: bool = Field(default=False, description="Finish damaged videos and count their damage.")
    split_shots: bool = Field(
        default=False, description="Start segments inside shots with warm-up frames: parallel, approximate."
    )


class NewTaskFields(RestageChoices):
    """A new task, without its files."""

    kind: Literal["restage"] = Field(default="restage", description="What is to be done.")
    webhook: str | None = Field(
        default=None,
        max_length=2048,
        description="URL that is told when the task ends (Standard Webhooks). The server needs a secret for it.",
        examples=["https://example.com/hooks/troupe"],
    )


class NewTaskBody(NewTaskFields):
    """A new task whose video the server fetches."""

    video_url: str = Field(
        min_length=1,
        max_length=2048,
        description="http or https URL of the video.",
        examples=["https://example.com/a.mp4"],
    )


Binary = Annotated[str, Field(json_schema_extra={"format": "binary"})]


class TaskForm(NewTaskFields):
    """A new task with its files, as multipart/form-data."""

    file: Binary = Field(description="The video.")
    mask: Binary | None = Field(default=None, description="Its mask video, for `matte=given`.")


class TaskProgressView(BaseModel):
    """How far a task is."""

    stage: str = Field(description="The stage at work; empty once all are through.", examples=["running"])
    stages: dict[str, float] = Field(
        description="Each stage and how much of it is through, 0 to 1.",
        examples=[{"fetching": 1, "planning": 1, "running": 0.25, "assembling": 0}],
    )
    frames: int = Field(description="Frames that are done.", examples=[72])
    total: int = Field(description="Frames in all; 0 before the video is planned.", examples=[288])
    fps: float = Field(description="Frames a second.", examples=[14.2])
    eta_s: float | None = Field(description="Seconds left; null before there is a pace.", examples=[15.2])
    paused: str = Field(default="", description="Why it waits; empty when it does not.")
    notes: list[str] = Field(default=[], description="What happened on the way, such as repeated calls.")


class ResultView(BaseModel):
    """What a task made."""

    url: str = Field(description="Where it is.", examples=["/v1/tasks/8d…/result"])
    media_type: str = Field(examples=["video/mp4"], description="Its type.")
    bytes: int = Field(description="Its size.", examples=[5242880])
    sha256: str = Field(description="SHA-256 of its bytes, in hex.", examples=["5e88…"])
    frames: int = Field(description="Frames.", examples=[288])
    damaged: int = Field(default=0, description="Frames of the input that were damaged (`allow_damaged`).")
    notices: list[str] = Field(
        description="What whoever uses it must know.", examples=[["sound track 0: flac became AAC"]]
    )
    not_done: list[str] = Field(default=[], description="Steps that were asked for and are not done here.")


class CostView(BaseModel):
    """What a task cost."""

    wall_s: float = Field(description="Seconds of the last attempt.", examples=[20.3])
    seconds: dict[str, float] = Field(
        description="Seconds of work by stage and model.", examples=[{"decode": 1.2, "realesr-animevideov3": 14.8}]
    )
    segments: int = Field(default=0, description="Segments that it was cut into.", examples=[2])
    retries: int = Field(default=0, description="Calls to pins that were repeated.")


class WebhookView(BaseModel):
    """How the telling of a task's end goes."""

    state: Literal["waiting", "delivered", "given_up"] = Field(
        description="`waiting` for the end, or for an attempt that goes better; the others are final."
    )
    attempts: int = Field(description="How often it was sent.", examples=[2])
    answer: str = Field(description="What came of the last attempt; empty before.", examples=["HTTP 500"])

    @classmethod
    def of(cls, told: Told | None) -> WebhookView:
        """That of the latest end; None before there was one."""
        if told is None:
            return cls(state="waiting", attempts=0, answer="")
        settled: Literal["delivered", "given_up"] = "delivered" if told.delivered else "given_up"
        answer = str((told.answer or {}).get("reason", ""))
        return cls(state=settled if told.due is None else "waiting", attempts=told.attempts, answer=answer)


class LinksView(BaseModel):
    """Where to go on."""

    self: str = Field(description="The task.")
    events: str = Field(description="Its server-sent events.")
    result: str | None = Field(default=None, description="Its result, once it is done.")
    retry: str | None = Field(default=None, description="To queue it again, when it failed or was cancelled.")


class TaskView(BaseModel):
    """A task."""

    id: str = Field(description="Its id.", examples=["0b9d6c1e-4f0a-4c39-9f0a-0d9c9d1f7c11"])
    kind: str = Field(description="What is done.", examples=["restage"])
    state: TaskState = Field(description="`queued` and `running` change by themselves; the others end it.")
    name: str = Field(description="What the client called the video.", examples=["dance.mp4"])
    created: datetime = Field(description="When it was accepted.")
    started: datetime | None = Field(description="When it was begun.")
    finished: datetime | None = Field(description="When it ended.")
    attempts: int = Field(description="How often it was begun.", examples=[1])
    ahead: int | None = Field(default=None, description="Queued tasks before it, while it is queued.", examples=[3])
    cancel_requested: bool = Field(description="Whether it is being cancelled.")
    settings: dict[str, Any] = Field(description="All choices, the preset's included.")
    progress: TaskProgressView | None = Field(description="How far it is; null before it was begun.")
    result: ResultView | None = Field(description="What it made; null unless it is done.")
    error: ProblemDetails | None = Field(description="Why it failed; null unless it did.")
    cost: CostView | None = Field(description="What it cost; null before it ended.")
    webhook: WebhookView | None = Field(
        default=None, description="How its webhook goes, where one task with a webhook is looked at."
    )
    links: LinksView = Field(description="Where to go on.")

    @classmethod
    def of(cls, task: Task, ahead: int | None = None, webhook: WebhookView | None = None) -> TaskView:
        """A task as its owner sees it."""
        here = f"/v1/tasks/{task.id}"
        done = task.state is TaskState.DONE and task.result is not None
        again = task.state in (TaskState.FAILED, TaskState.CANCELLED)
        return cls.model_validate(
            {
                **{name: getattr(task, name) for name in ("id", "kind", "state", "created", "started", "finished")},
                **{name: getattr(task, name) for name in ("attempts", "cancel_requested", "progress", "error", "cost")},
                "name": task.payload.get("name", ""),
                "settings": task.payload.get("settings", {}),
                "ahead": ahead,
                "webhook": webhook,
                "result": {"url": f"{here}/result", **(task.result or {})} if done else None,
                "links": {
                    "self": here,
                    "events": f"{here}/events",
                    "result": f"{here}/result" if done else None,
                    "retry": f"{here}/retry" if again else None,
                },
            }
        )


class TaskList(BaseModel):
    """Some tasks, newest first."""

    tasks: list[TaskView] = Field(description="The tasks.")
    next: str | None = Field(description="Give it as `cursor` for those after them; null on the last page.")


class Health(BaseModel):
    """Whether the service can work."""

    status: Literal["ok", "unavailable"] = Field(description="`ok` when every check is.")
    checks: dict[str, str] = Field(
        description="`ok` or what is wrong, by check.", examples=[{"store": "ok", "disk": "ok", "pin restage": "ok"}]
    )


SplitAudio = Literal["both", "mute", "un-mute"]


class SeedCreate(BaseModel):
    """The older contract's request."""

    video_url: str = Field(
        min_length=1, max_length=2048, description="URL of the video.", examples=["https://example.com/a.mp4"]
    )
    uid: str = Field(max_length=128, description="The user's id, given back as it came.", examples=["u-17"])
    video_split_audio_mode: SplitAudio = Field(
        default="both", description="Which parts of the sound are kept in the pieces; kept for later steps."
    )


class SeedForm(BaseModel):
    """The older contract's upload, as multipart/form-data."""

    file: Binary = Field(description="The video.")
    uid: str = Field(max_length=128, description="The user's id, given back as it came.", examples=["u-17"])
    video_split_audio_mode: SplitAudio = Field(default="both", description="As in `create`.")


class SeedResult(BaseModel):
    """What the older contract says of a completed task."""

    scenes: list[Any] = Field(description="Empty: scenes are not cut by this service yet.")
    transcription: str = Field(description="Empty: speech is not transcribed by this service yet.")
    video: str = Field(description="Where the restaged video is.", examples=["/v1/tasks/8d…/result"])
    not_done: list[str] = Field(description="Steps of the older contract that were not done.")


class SeedTask(BaseModel):
    """A task in the older contract's words."""

    task_id: str = Field(description="Its id, the same as in `/v1/tasks`.")
    status: Literal["pending", "processing", "completed", "failed", "cancelled"] = Field(description="Where it is.")
    video_url: str = Field(description="The URL, or the uploaded file's place in the data folder.")
    uid: str = Field(description="The user's id.")
    result: SeedResult | None = Field(description="What it made; null unless it is completed.")
    error: str | None = Field(description="Why it failed; null unless it did.")
