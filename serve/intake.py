"""Accepting a task: what the client says and sends becomes a row and a folder, or nothing of it is left."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from actors.video.image import encode_still
from actors.video.image_header import kind_of
from actors.video.stills import KINDS, Stills
from cluster.errors import MediaError
from cluster.files import written_whole
from jobs.restage.settings import MATTE_GIVEN
from serve.choices import check_background, check_weights, settings_of
from serve.desk import Desk
from serve.edge.auth import Principal, check_queued, check_volume
from serve.edge.negotiation import media_type
from serve.edge.problems import Problem, busy
from serve.edge.request_id import request_id
from serve.folders import TaskFolder
from serve.logs import ABOUT
from serve.payload import BACKGROUND, INPUT, MASK, RestagePayload
from serve.schemas import RestageChoices
from serve.store import (
    Document,
    KeyBusyError,
    NewTask,
    Quota,
    QuotaError,
    Remembered,
    Reservation,
    StoreBusyError,
    StoreError,
    Task,
)
from serve.transfer.json_body import json_body
from serve.transfer.multipart import shown_name
from serve.transfer.spool import SpoolError, TooLargeError
from serve.transfer.uploads import Upload, UploadedFile

log = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)

_KEY_CHARACTERS = 255
_HOLD_SECONDS = 60.0
_BUSY_SECONDS = 30.0
JSON, _FORM = "application/json", "multipart/form-data"
#: Names that files may have in a form, and what they become in the task's folder.
_FILES = {"file": INPUT, "mask": MASK, "background": BACKGROUND}


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request's body, received.

    Attributes:
        folder: of the task that is to be.
        fields: of the form, or the JSON body.
        files: names in the folder, by the form's names.
        name: what the client calls the video.
        bytes: of all files.
        digests: SHA-256 by the form's names.
    """

    folder: TaskFolder
    fields: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    bytes: int = 0
    digests: Mapping[str, str] = field(default_factory=dict)

    def fingerprint(self, path: str) -> str:
        """The same for the same request sent again."""
        said = json.dumps([path, dict(self.fields), dict(self.digests)], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a request: a new task, or the answer to the request that was the same before it."""

    task: Task | None
    answer: Document


async def accept(
    desk: Desk,
    principal: Principal,
    request: Request,
    make: Callable[[Incoming], NewTask],
    answer: Callable[[Task], Document],
) -> Accepted:
    """Receives a request and submits the task that `make` makes of it.

    Args:
        desk: its tools.
        principal: who asks.
        request: JSON, multipart/form-data, or the video itself as the body.
        make: the task; in a thread, so it may look at the files.
        answer: what the request is answered, kept for its repetition under the same Idempotency-Key.

    Raises:
        Problem, TroupeError: the request is refused; nothing of it is left.
        StoreError, CancelledError: the same, unless the task was being written. Then it may be accepted, so its files
            stay; the same Idempotency-Key tells.
    """
    if media_type(request) in (JSON, _FORM) and request.query_params:
        raise Problem(422, "invalid", "a form, or JSON, holds the choices: the query is for those of a raw body")
    # Before a place is taken: who sends a small body slowly keeps nobody else from one. Files have places of their own.
    said = await json_body(request) if media_type(request) == JSON else None
    with desk.accepting.taken(principal.name):
        return await _accept(desk, principal, request, said, make, answer)


async def _accept(
    desk: Desk,
    principal: Principal,
    request: Request,
    said: dict[str, Any] | None,
    make: Callable[[Incoming], NewTask],
    answer: Callable[[Task], Document],
) -> Accepted:
    desk.uploads.check_place(request, principal.name)
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= _KEY_CHARACTERS:
        raise Problem(400, "idempotency_key", f"Idempotency-Key has more than {_KEY_CHARACTERS} characters or none")
    held = None if key is None else await desk.store.reserve(principal.name, key, hold_s=_HOLD_SECONDS)
    folder: TaskFolder | None = None
    holding = asyncio.create_task(_hold(desk, held))
    try:
        if not isinstance(held, Remembered):  # whose own task may be the last that there is room for
            await _check_room(desk, principal, request)
        folder = await asyncio.to_thread(desk.data.create)
        incoming = Incoming(folder, said) if said is not None else await _receive(desk, principal, request, folder)
        fingerprint = incoming.fingerprint(str(request.scope["path"]))
        if isinstance(held, Remembered):
            return Accepted(None, held.replay(fingerprint))
        new = await asyncio.to_thread(make, incoming)
        await asyncio.to_thread(desk.data.sync, folder)
        quota = Quota(_whole(principal.queued), _whole(principal.upload_bytes_per_day))
        # From here on only these refusals say that no row asks for the folder; what no row knows is swept later.
        written, folder = folder, None
        try:
            task = await desk.store.submit(new, quota=quota, reservation=held, fingerprint=fingerprint, answer=answer)
        except (QuotaError, KeyBusyError, StoreBusyError):
            folder = written
            raise
        held = None
        log.info("accepted", extra={ABOUT: {"task_id": task.id, "owner": task.owner}})
        return Accepted(task, answer(task))
    finally:
        holding.cancel()
        await asyncio.shield(_give_up(desk, folder, held))


async def _hold(desk: Desk, held: Reservation | Remembered | None) -> None:
    """Keeps the key of a request while its body comes, for no longer than a moment at a time: if the end of it cannot
    be told, the client's next try is not refused for as long as the longest upload takes."""
    while isinstance(held, Reservation):
        await asyncio.sleep(_HOLD_SECONDS / 3)
        with suppress(StoreError):
            await desk.store.renew(held, hold_s=_HOLD_SECONDS)


async def _give_up(desk: Desk, folder: TaskFolder | None, held: Reservation | Remembered | None) -> None:
    if folder is not None:
        await asyncio.to_thread(desk.data.remove, folder.id)
    if isinstance(held, Reservation):
        with suppress(StoreError):  # the client hears why it is refused; the key is free in a minute all the same
            await desk.store.abandon(held)


async def _check_room(desk: Desk, principal: Principal, request: Request) -> None:
    """Refuses before the body is read what would be refused once it is there."""
    usage = await desk.store.usage(principal.name)
    check_queued(principal, usage.queued + usage.running)
    files = "0" if media_type(request) == JSON else request.headers.get("content-length", "0")
    if files.isascii() and files.isdigit():  # else the body is refused for it
        check_volume(principal, usage.upload_bytes, int(files[:18]), usage.upload_frees_s)
    counts = await desk.store.counts()
    if sum(count for state, count in counts.items() if not state.ended) >= desk.service.max_active:
        raise busy("queue_full", "the queue is full", _BUSY_SECONDS)


async def _receive(desk: Desk, principal: Principal, request: Request, folder: TaskFolder) -> Incoming:
    upload = await desk.uploads.receive(request, folder.input, desk.auth.quota(principal), principal.name)
    if media_type(request) == _FORM:
        return await _taken_in(desk, upload, dict(upload.fields), folder, raw=False)
    # A video as the body: its choices are in the query.
    return await _taken_in(desk, upload, dict(request.query_params), folder, raw=True)


async def _taken_in(desk: Desk, upload: Upload, fields: dict[str, Any], folder: TaskFolder, *, raw: bool) -> Incoming:
    """Gives the files their names."""
    names, digests, name = {}, {}, ""
    for file in upload.files:
        part = "file" if raw else file.field
        if part not in _FILES:
            raise Problem(422, "invalid", f"a form has the files {', '.join(_FILES)}")
        if part == "background":
            chosen = await _background(desk, file, folder)
        else:
            chosen = _FILES[part]
            await asyncio.to_thread(file.path.rename, folder.input / chosen)
        names[part], digests[part] = chosen, file.sha256
        if part == "file":
            name = file.name
    return Incoming(folder, fields, names, name, sum(file.bytes for file in upload.files), digests)


async def _background(desk: Desk, file: UploadedFile, folder: TaskFolder) -> str:
    """Gives an uploaded background its name, which says what it is: lanes tell images from videos by their suffix.

    An image is decoded here, in a process of its own, and written anew: a lane reads no stranger's image.
    """
    if not await asyncio.to_thread(_is_image, file.path):
        name = f"{BACKGROUND}.video"
        await asyncio.to_thread(file.path.rename, folder.input / name)
        return name
    most = desk.image_uploads.limits.max_bytes
    if file.bytes > most:
        raise TooLargeError("the background", f"is over the size limit of {most:,} bytes for an image")
    name = f"{BACKGROUND}.png"
    async with desk.images, desk.decoders:
        await asyncio.to_thread(_redraw, desk.stills, file.path, folder.input / name)
    return name


def _is_image(path: Path) -> bool:
    with path.open("rb") as file:
        return kind_of(file.read(12)) in KINDS


def _redraw(stills: Stills, path: Path, target: Path) -> None:
    try:
        image = stills.decode(path.read_bytes(), "the background")
        with written_whole(target) as partial:
            partial.write_bytes(encode_still(image.rgb, None, "png"))
        path.unlink()
    except MediaError as error:
        raise Problem(422, "background", str(error)) from error
    except OSError as error:
        raise SpoolError("the background", f"cannot be stored: {error.strerror or type(error).__name__}") from error


def parsed(model: type[M], fields: Mapping[str, Any]) -> M:
    """The fields as a model.

    Raises:
        RequestValidationError: 422, with what is wrong in each.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        found = [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)]
        raise RequestValidationError(found) from error


def restage_payload(
    desk: Desk, choices: RestageChoices, incoming: Incoming, *, url: str = "", **more: Any
) -> RestagePayload:
    """The payload of a restaging, whose choices are complete and possible.

    Raises:
        Problem: 422, no video, a background that is none, a mask without need or need without a mask.
        WeightsError: 422, the server has no weights for a model that is named.
    """
    if not url and "file" not in incoming.files:
        raise Problem(422, "no_file", "send the video as the file `file`, or its `video_url` as JSON")
    settings = settings_of(desk.config, choices, own_background="background" in incoming.files)
    if settings.background is not None:
        check_background(desk.library, settings.background)
    if (settings.matte == MATTE_GIVEN) and "mask" not in incoming.files:
        raise Problem(422, "no_mask", "`matte=given` needs the file `mask`")
    check_weights(settings)
    return RestagePayload(
        settings=settings,
        background=incoming.files.get("background", ""),
        name=incoming.name or shown_name(url.partition("?")[0]),
        url=url,
        allow_damaged=choices.allow_damaged,
        split_shots=choices.split_shots,
        request_id=request_id.get(),
        **more,
    )


def check_webhook(desk: Desk, url: str | None) -> str:
    """The webhook's URL, empty for none.

    Raises:
        Problem: 422, webhooks are not sent by this server.
        RefusedURLError: 422, not one that may be called.
    """
    if not url:
        return ""
    if desk.signer is None:
        raise Problem(422, "no_webhooks", "this server has no webhook secret, so it sends no webhooks")
    if not url.isascii():
        raise Problem(422, "url_refused", "`webhook` has characters that a URL has not: percent-encode them")
    desk.client.check(url)
    return url


def _whole(limit: float) -> int | None:
    return None if limit == float("inf") else int(limit)


def media_or_problem(error: MediaError) -> MediaError:
    """A media error in which the server's name of the file is not shown."""
    return MediaError("the file", error.reason, place=error.place, remedy=error.remedy)
