"""Small bodies of JSON, as slow, as large and as deep as they may be."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request

from serve.edge.problems import Problem
from serve.transfer.pace import Pace, Patience, TooSlowError

_JSON_BYTES = 1 << 16
_JSON_DEPTH = 32
_JSON_PATIENCE = Patience(silence_seconds=20.0, bytes_per_second=256.0, total_seconds=60.0)


async def json_body(request: Request) -> dict[str, Any]:
    """A small JSON object of values that can be repeated.

    Raises:
        Problem: 400, 408, 413 or 422.
    """
    body, pace, stream = bytearray(), Pace(_JSON_PATIENCE), request.stream()
    while True:
        try:
            piece = await pace.wait(anext(stream, b""), len)
        except TooSlowError as error:
            raise Problem(408, "too_slow", f"the client {error}", headers={"Connection": "close"}) from error
        if not piece:
            break
        body += piece
        if len(body) > _JSON_BYTES:
            raise Problem(413, "too_large", f"a JSON body has at most {_JSON_BYTES:,} bytes")
    try:
        found = json.loads(body, parse_constant=_no_number)
        _check_depth(found)
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise Problem(400, "bad_json", "the body is not JSON as RFC 8259 has it, or too deep") from error
    if not isinstance(found, dict):
        raise Problem(422, "invalid", "the body is not a JSON object")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _check_depth(value: Any) -> None:
    """Refuse what is nested so deep that handling it may fail, wherever that is done."""
    level = [value]
    for _ in range(_JSON_DEPTH):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise ValueError("is nested too deep")
