"""What goes into the store and comes out of it: plain values, known to no database."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from cluster.errors import UsageError
from serve.store.errors import KeyReusedError

Document = Mapping[str, Any]
"""Anything that JSON can say, by name."""

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
OWNER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._@+-]{0,62}[A-Za-z0-9])?")
_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}")
MAX_URL = 2048
MAX_PRIORITY = 1000
DAY_SECONDS = 86_400.0


class TaskState(StrEnum):
    """Where a task is. `queued` and `running` change by themselves, the others end it (a retry queues it again)."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to it unless somebody asks."""
        return self not in (TaskState.QUEUED, TaskState.RUNNING)


def new_id() -> str:
    """A task's id, which its folder can have before the task is submitted."""
    return str(uuid.uuid4())


def is_id(text: str) -> bool:
    """Whether a text has the form of a task's id."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task as it is accepted.

    Attributes:
        owner: name of the token that sent it.
        kind: what is to be done (`restage`).
        payload: the request, and where its inputs lie.
        priority: higher ones are claimed first.
        webhook: URL that is told of its end, empty for none.
        upload_bytes: what its inputs count against the owner's daily volume.
        id: of its folder.

    Raises:
        UsageError: a name or an id of a form that is not given out, a URL of more than 2048 characters.
    """

    owner: str
    kind: str
    payload: Document
    priority: int = 0
    webhook: str = ""
    upload_bytes: int = 0
    id: str = field(default_factory=new_id)

    def __post_init__(self) -> None:
        # Databases compare trailing blanks and some characters each in their own way; plain names have no such doubles.
        for value, form, thing in ((self.owner, OWNER, "owner"), (self.kind, _KIND, "kind"), (self.id, _ID, "id")):
            if form.fullmatch(value) is None:
                raise UsageError(f"{thing} {value[:80]!r}", f"is not of the form {form.pattern}")
        if len(self.webhook) > MAX_URL or not self.webhook.isascii() or "\0" in self.webhook:
            raise UsageError("webhook", f"is longer than {MAX_URL} characters or not ASCII", remedy="percent-encode it")
        if not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise UsageError("priority", f"{self.priority} is not within ±{MAX_PRIORITY}")
        if not 0 <= self.upload_bytes < 2**63:
            raise UsageError("upload_bytes", f"{self.upload_bytes} is no number of bytes")


@dataclass(frozen=True, slots=True)
class Task:
    """A task as it is now. Times are aware and in UTC.

    Attributes:
        id, owner, kind, payload, priority, webhook, upload_bytes: as it was accepted.
        state: where it is.
        created, updated: when it was accepted, and when anything about it last changed.
        started: when it was first claimed, since the last retry if there was one.
        finished: when it ended.
        attempts: how often it was claimed, releases not counted.
        round: how often it was queued again by a retry.
        lease_owner, lease_until: who runs it, and until when it counts as alive without another heartbeat.
        cancel_requested: whether whoever runs it was asked to stop.
        progress, result, error, cost: documents of the runner; `error` is a problem (RFC 9457).
        last_event: number of its latest event.
    """

    id: str
    owner: str
    kind: str
    payload: Document
    priority: int
    webhook: str
    upload_bytes: int
    state: TaskState
    created: datetime
    updated: datetime
    started: datetime | None
    finished: datetime | None
    attempts: int
    round: int
    lease_owner: str
    lease_until: datetime | None
    cancel_requested: bool
    progress: Document | None
    result: Document | None
    error: Document | None
    cost: Document | None
    last_event: int


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run a task until its lease ends.

    Attributes:
        task: what to run.
        token: tells this claim from every other one, also from a later one of the same runner.
        lease_s: seconds that each heartbeat adds.
    """

    task: Task
    token: str
    lease_s: float


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a runner learns when it says that it is alive.

    Attributes:
        cancel: stop, and finish it as cancelled.
        lost: stop, somebody else has the task or it has ended; nothing was changed.
    """

    cancel: bool
    lost: bool


@dataclass(frozen=True, slots=True)
class Event:
    """One change of a task that its owner may see.

    Attributes:
        number: grows within a task, from 1; superseded progress leaves gaps.
        kind: `state` or `progress`.
        at: when.
        data: `state`, `attempts`, `cancel_requested`, `error` of a change of state; the progress itself otherwise.
    """

    number: int
    kind: str
    at: datetime
    data: Document


@dataclass(frozen=True, slots=True)
class Page:
    """Some tasks, newest first, and the cursor of those after them (None on the last page)."""

    tasks: tuple[Task, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Usage:
    """What an owner has: tasks that wait, tasks that run, bytes accepted within the window that was asked about, and
    seconds until the oldest of these leave it."""

    queued: int
    running: int
    upload_bytes: int
    upload_frees_s: float


@dataclass(frozen=True, slots=True)
class Quota:
    """What an owner may have, None for as much as it likes.

    Attributes:
        active: tasks queued or running.
        upload_bytes: bytes accepted within `window_s` seconds.
    """

    active: int | None = None
    upload_bytes: int | None = None
    window_s: float = DAY_SECONDS


@dataclass(frozen=True, slots=True)
class Delivery:
    """One webhook that is to be sent, held by whoever claimed it.

    Attributes:
        id: the same for each attempt, another one for each end of a task; fit for `webhook-id`.
        task_id, owner, url: whose end is told, and to whom.
        message: the task as it ended: id, kind, state, created, started, finished (ISO 8601), attempts, result, error,
            cost.
        created: when the task ended.
        attempts: this one included.
        token: tells this claim from every other one.
    """

    id: str
    task_id: str
    owner: str
    url: str
    message: Document
    created: datetime
    attempts: int
    token: str


@dataclass(frozen=True, slots=True)
class Told:
    """How the telling of one end of a task went.

    Attributes:
        id, attempts: as in `Delivery`.
        delivered: whether the receiver took it.
        due: when it is tried next, None when it is settled: delivered or given up.
        answer: what the last attempt was answered (`reason`), None before there was one.
    """

    id: str
    attempts: int
    delivered: bool
    due: datetime | None
    answer: Document | None


@dataclass(frozen=True, slots=True)
class Reservation:
    """An idempotency key that this request alone may use until it is submitted, abandoned or runs out."""

    id: str
    token: str


@dataclass(frozen=True, slots=True)
class Remembered:
    """What an earlier request with the same idempotency key was answered."""

    fingerprint: str
    task_id: str
    answer: Document

    def replay(self, fingerprint: str) -> Document:
        """The answer again.

        Raises:
            KeyReusedError: this request is another one.
        """
        if fingerprint != self.fingerprint:
            raise KeyReusedError(
                "Idempotency-Key", "was used for another request", remedy="take a new key for each new request"
            )
        return self.answer
