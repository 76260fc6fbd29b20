"""Every failure as a problem (RFC 9457): what went wrong and what to do, never a path of this machine or a stack.

`code` is the stable word for programs; `detail` is for people and may change.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.errors import ClusterError, JobError, MediaError, RoomError, TroupeError, UsageError, WeightsError
from serve.edge.request_id import STATE, RequestIds
from serve.store.errors import (
    CursorError,
    KeyBusyError,
    KeyReusedError,
    QuotaError,
    StoreBusyError,
    StoreError,
    TaskStateError,
)
from serve.transfer.addresses import RefusedURLError
from serve.transfer.fetch import FetchError
from serve.transfer.spool import SpoolError, TooLargeError

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

_LONGEST_DETAIL = 600
_RETRY_SECONDS = 5
#: First match wins. 422 is for what was read and is not usable, 503 for what may work later.
_KINDS: tuple[tuple[type[TroupeError], int, str], ...] = (
    (RefusedURLError, 422, "url_refused"),
    (FetchError, 422, "url_failed"),
    (TooLargeError, 413, "too_large"),
    (SpoolError, 507, "storage"),
    (KeyReusedError, 422, "key_reused"),
    (KeyBusyError, 409, "key_busy"),
    (CursorError, 400, "bad_cursor"),
    (QuotaError, 429, "quota"),
    (TaskStateError, 409, "task_state"),
    (StoreBusyError, 429, "busy"),
    (StoreError, 503, "store"),
    (MediaError, 422, "media_refused"),
    (UsageError, 400, "bad_request"),
    (WeightsError, 422, "weights_missing"),
    (RoomError, 503, "no_room"),
    (ClusterError, 503, "unavailable"),
    (TroupeError, 500, "failed"),
)
_CODES = {400: "bad_request", 401: "unauthorized", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}
#: What a driver says may name the database, its host and its user.
_STORE = "the database is not there just now, or is full; the service's log has the reason"
#: A URL, which stays, or an absolute path that is not part of a longer word, of which the last part stays.
_PATH = re.compile(
    r"""(\b(?!file:)[a-z][a-z0-9+.-]*://[^\s'"<>/][^\s'"<>]*)"""
    r"""|(?<![\w.~/-])(?:file:)?~?/(?:[^\s'"<>|;,()]*/)*([^\s'"<>|;,()/]*)""",
    re.IGNORECASE,
)

#: An option of the command line, unless in a command that somebody is to type; over HTTP it is a field.
_OPTION = re.compile(r"`[^`]*`|--([a-z][a-z-]*)")


class FieldProblem(BaseModel):
    """One part of a request that is wrong."""

    where: str = Field(description="`body`, `query`, `path` or `header`.", examples=["body"])
    pointer: str = Field(description="JSON Pointer to it from there.", examples=["/upscale"])
    detail: str = Field(description="What is wrong with it.", examples=["Input should be a valid string"])


class ProblemDetails(BaseModel):
    """A failure, as RFC 9457 describes it."""

    model_config = ConfigDict(extra="allow")
    type: str = Field(default="about:blank", description="Always `about:blank`: see `code`.")
    title: str = Field(description="The status in words.", examples=["Unprocessable Content"])
    status: int = Field(description="The HTTP status.", examples=[422])
    detail: str = Field(description="What went wrong, for people.", examples=["input-0: has no video stream"])
    code: str = Field(description="What went wrong, for programs; stable.", examples=["media_refused"])
    request_id: str = Field(default="", description="Id of the request, also in logs and in `X-Request-Id`.")
    errors: list[FieldProblem] = Field(default=[], description="What exactly is wrong in the request, where known.")


class Problem(Exception):  # noqa: N818 - RFC 9457's word
    """What a request is answered with instead of a result.

    Args:
        status: HTTP status.
        code: a stable word.
        detail: for people; no path, no address.
        headers: of the answer.
        errors: parts of the request that are wrong.
        extra: further members of the body, which some clients expect.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        errors: Iterable[FieldProblem] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status, self.code, self.detail = status, code, detail
        self.headers, self.errors, self.extra = dict(headers or {}), tuple(errors), dict(extra or {})

    def body(self, request_id: str = "") -> dict[str, Any]:
        """The members of the answer, ready for JSON; also what a failed task keeps."""
        try:
            title = HTTPStatus(self.status).phrase
        except ValueError:
            title = "Error"
        details = ProblemDetails(
            title=title, status=self.status, detail=self.detail, code=self.code, request_id=request_id
        )
        details.errors = list(self.errors)
        empty = {name for name in ("request_id", "errors") if not getattr(details, name)}
        return details.model_dump(exclude=empty) | self.extra


def busy(code: str, detail: str, seconds: float, status: int = 429) -> Problem:
    """A refusal that will pass: 429, or 503, with Retry-After in whole seconds, at least one."""
    return Problem(status, code, detail, headers={"Retry-After": str(max(1, math.ceil(seconds)))})


def again(status: int) -> dict[str, str]:
    """The headers that say when to try again, for the statuses that may pass."""
    return {"Retry-After": str(_RETRY_SECONDS)} if status in (429, 503) else {}


def problem_of(error: BaseException) -> Problem:
    """The problem that an exception is to a client. What was not raised on purpose tells nothing but that."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, TroupeError):
        # Some damage shows only when a segment is played.
        blamed = error.__cause__ if isinstance(error, JobError) and isinstance(error.__cause__, MediaError) else error
        status, code = next((status, code) for kind, status, code in _KINDS if isinstance(blamed, kind))
        told = _STORE if isinstance(error, StoreError) and not isinstance(error, StoreBusyError) else _told(error)
        return Problem(status, code, told, headers=again(status))
    if isinstance(error, ClientDisconnect):
        return Problem(400, "disconnected", "the client went away before its request was complete")
    return Problem(500, "internal", "something went wrong that should not; the log has it under this request id")


def _told(error: TroupeError) -> str:
    """The error's text in the words of HTTP, without folders of this machine, one line."""
    thing = error.thing.rpartition("/")[2] if error.thing.startswith("/") else error.thing
    place = "" if error.place.startswith("/") else error.place
    head = ": ".join(without_paths(part) for part in (thing, place, error.reason) if part)
    text = f"{head}; {without_paths(error.remedy)}" if error.remedy else head
    line = with_fields(text).strip().partition("\n")[0]
    return line if len(line) <= _LONGEST_DETAIL else f"{line[:_LONGEST_DETAIL]}…"


def without_paths(text: str) -> str:
    """`text` with absolute paths cut to their last part; URLs stay."""
    return _PATH.sub(lambda found: found[1] or found[2] or "", text)


def with_fields(text: str) -> str:
    """`text` of modules that serve the command line too, in which options are the fields that they are over HTTP."""
    return _OPTION.sub(lambda found: found[1].replace("-", "_") if found[1] else found[0], text)


# --- answering


def respond(problem: Problem, request_id: str) -> Response:
    """The answer that a problem is."""
    return JSONResponse(
        problem.body(request_id), status_code=problem.status, headers=problem.headers, media_type=MEDIA_TYPE
    )


class Problems:
    """ASGI middleware: what no handler took becomes a 500 here, logged, and goes no further.

    After the answer has begun nothing can be said any more: the exception goes on, so that the connection breaks and
    the client sees that the answer is not whole.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = False

        async def answer(message: Message) -> None:
            nonlocal began
            began = began or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except Exception as error:
            problem = problem_of(error)
            if problem.status >= 500:
                log.exception("%s %s failed", scope["method"], scope["path"])
            if began:
                raise
            await respond(problem, _id(scope))(scope, receive, send)


def install(app: FastAPI) -> None:
    """Every failure of `app` is answered with a problem, with a request id, and its OpenAPI says so.

    Args:
        app: before its first request.
    """
    app.add_middleware(Problems)
    app.add_middleware(RequestIds)  # the outermost, so that no answer is without an id
    for kind, handler in (
        (Problem, _on_own),
        (TroupeError, _on_own),
        (ClientDisconnect, _on_own),
        (HTTPException, _on_http),
        (RequestValidationError, _on_validation),
    ):
        app.add_exception_handler(kind, handler)
    _describe(app)


async def _on_own(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    if problem.status >= 500:
        log.error("%s %s: %s", request.method, request.url.path, error, exc_info=error)
    return respond(problem, _id(request.scope))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    if status < 400 or status in (204, 304):
        return Response(status_code=status, headers=error.headers)
    detail = {
        404: "there is nothing at this path",
        405: f"{request.method} is not allowed here",
    }.get(status, without_paths(str(error.detail)))
    code = _CODES.get(status, f"http_{status}")
    headers = {**(error.headers or {}), **({"Allow": _allowed(request)} if status == 405 else {})}
    return respond(Problem(status, code, detail, headers=headers), _id(request.scope))


def _allowed(request: Request) -> str:
    """All methods of a path (RFC 9110, 10.2.1): the framework names those of the first route that it finds."""
    fitting = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted({method for route in fitting for method in getattr(route, "methods", None) or ()}))


async def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return respond(_invalid(error), _id(request.scope))


def _invalid(error: RequestValidationError) -> Problem:
    """Which fields are wrong; what the client sent is not repeated."""
    found = []
    for one in error.errors()[:20]:
        where, *path = (str(part) for part in one["loc"])
        escaped = (part.replace("~", "~0").replace("/", "~1")[:100] for part in path)
        found.append(FieldProblem(where=where, pointer="".join(f"/{part}" for part in escaped), detail=one["msg"]))
    named = ", ".join(f"{field.where}{field.pointer}" for field in found[:5])
    return Problem(422, "invalid", f"the request is not valid at {named}", errors=found)


def _id(scope: Scope) -> str:
    return str(scope.get("state", {}).get(STATE, ""))


# --- describing

_REF = {"$ref": "#/components/schemas/ProblemDetails"}
_TEXTS = {
    400: "The request cannot be understood.",
    401: "No token, or none that is known here.",
    403: "Not allowed.",
    404: "There is no such thing, or it is not yours.",
    405: "This path has no such method.",
    406: "The result cannot have the form that was asked for.",
    408: "The body came too slowly.",
    409: "Not possible in the present state.",
    410: "It was there, and is not kept any more.",
    411: "A body of this size needs Content-Length.",
    413: "Too large.",
    415: "Not a kind of body that is taken here.",
    416: "The file has no such part; Content-Range says how long it is.",
    422: "The request was read and is not usable; `errors` says where.",
    429: "Too many requests, tasks or uploads; Retry-After says when to try again.",
    500: "A fault of the service.",
    503: "Not possible just now; Retry-After says when to try again.",
    507: "The disk is full.",
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses=` for problems of these statuses."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        headers: dict[str, Any] = {}
        if status in (429, 503):
            headers["Retry-After"] = {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
        if status == 416:
            headers["Content-Range"] = {"description": "`bytes */LENGTH`.", "schema": {"type": "string"}}
        if status == 401:
            headers["WWW-Authenticate"] = {"description": "`Bearer`.", "schema": {"type": "string"}}
        found[status] = {"description": _TEXTS[status], "content": {MEDIA_TYPE: {"schema": _REF}}}
        if headers:
            found[status]["headers"] = headers
    return found


def _describe(app: FastAPI) -> None:
    """The document names the problem's schema, also where FastAPI would put its own form of 422."""
    plain: Callable[[], dict[str, Any]] = app.openapi

    def document() -> dict[str, Any]:
        found = plain()
        schemas = found.setdefault("components", {}).setdefault("schemas", {})
        own = ProblemDetails.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(own.pop("$defs", {}) | {"ProblemDetails": own})
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for path in found.get("paths", {}).values():
            for operation in path.values():
                answers = operation.get("responses", {}) if isinstance(operation, dict) else {}
                if "HTTPValidationError" in str(answers.get("422")):
                    answers["422"] = responses(422)[422]
        return found

    app.openapi = document  # type: ignore[method-assign]
