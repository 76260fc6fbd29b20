"""What a Troupe server refused, as errors that say what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.errors import TroupeError, UsageError

_PROBLEM = "application/problem+json"
#: Statuses of a server that may answer otherwise soon.
AGAIN = frozenset({429, 502, 503, 504})
#: Refusals of a server that is well and will take it when others of its tasks have ended.
FULL = frozenset({"task_quota", "queue_full"})
_USAGE = frozenset({400, 401, 403, 404, 406, 411, 415, 422})
#: 422 that is about one video, not about how it was asked for.
_VIDEOS = frozenset({"media_refused", "url_failed", "empty_file"})
_REMEDIES: dict[int | str, str] = {
    401: "give a token with --token or TROUPE_TOKEN; `troupe tokens new NAME` makes one for the server's tokens file",
    "no_task": "`troupe tasks list` shows yours",
    413: "send a smaller file, or have troupe.service.max_upload_gib raised",
    "other_host": "ask at 127.0.0.1 on its own machine, or have it listen with a tokens file",
    507: "have room made on the server's disk",
}
NO_TROUPE = "give --server or TROUPE_SERVER the address that `troupe up` prints"


class ServiceError(TroupeError):
    """What a server refused, or that it cannot be asked.

    Attributes:
        code: the stable word of the server's problem document; empty where it gave none.
        status: HTTP status; 0 where there was no answer.
    """

    def __init__(
        self, thing: object, reason: str, *, place: str = "", remedy: str = "", code: str = "", status: int = 0
    ) -> None:
        self.code, self.status = code, status
        super().__init__(thing, reason, place=place, remedy=remedy)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.thing, self.reason, self.place, self.remedy, self.code, self.status)


class ServiceUsageError(ServiceError, UsageError):
    """The server refused what cannot be: an unknown choice, a wrong token, no such task."""


def _rebuild(
    kind: type[ServiceError], thing: str, reason: str, place: str, remedy: str, code: str, status: int
) -> ServiceError:
    return kind(thing, reason, place=place, remedy=remedy, code=code, status=status)


def refusal_of(
    server: str, status: int, headers: Mapping[str, str], body: Mapping[str, Any] | None, thing: str = ""
) -> ServiceError:
    """The error that an answer is.

    Args:
        server: who answered.
        status, headers: of the answer.
        body: its JSON object, None where it has none.
        thing: what was asked for; the server by default.
    """
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if body is None or kind != _PROBLEM:
        return _stranger(server, status, headers, kind)
    code, detail = str(body.get("code", "")), str(body.get("detail", "")) or f"HTTP {status}"
    said = [str(each.get("detail", "")) for each in _parts(body)]
    reason = f"{detail} ({'; '.join(said)})" if said else detail
    remedy = _REMEDIES.get(code) or _REMEDIES.get(status, "")
    if status in (429, 503):
        pause = seconds_of(headers)
        remedy = "try again later" if pause is None else f"try again in {_duration(pause)}"
    elif status >= 500 and not remedy:
        remedy = f"the server's log has it as request {body.get('request_id', '')}"
    error = ServiceUsageError if status in _USAGE and code not in _VIDEOS else ServiceError
    return error(thing or server, reason, remedy=remedy, code=code, status=status)


def seconds_of(headers: Mapping[str, str]) -> float | None:
    """Retry-After in seconds; its other form, a date, is nothing that Troupe sends."""
    text = headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _stranger(server: str, status: int, headers: Mapping[str, str], kind: str) -> ServiceError:
    """An answer that Troupe does not give: of another server, or of a proxy before it."""
    reason, remedy = f"does not answer as Troupe does (HTTP {status}, {kind or 'of no type'})", NO_TROUPE
    if 300 <= status < 400:
        reason = f"redirects to {headers.get('Location', 'nowhere')}"
    elif status in AGAIN:
        reason = f"answers HTTP {status}, as a proxy does whose server is away"
        remedy = "see whether Troupe runs behind it, and run the command again"
    elif status == 413:
        remedy = "a proxy before it takes no body of this size: have its limit raised"
    return ServiceError(server, reason, remedy=remedy, status=status)


def _parts(problem: Mapping[str, Any]) -> list[dict[str, Any]]:
    errors = problem.get("errors")
    return [each for each in errors if isinstance(each, dict)] if isinstance(errors, list) else []


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
