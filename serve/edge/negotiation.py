"""Which form a body and an answer have: the headers that say it, as RFC 9110 and RFC 7240 have them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request

from serve.edge.problems import Problem

_RANGES = re.compile(r"bytes=[ \t,]*(?:(?:[0-9]{1,18}-[0-9]{0,18}|-[0-9]{1,18})[ \t]*(?:,[ \t,]*|$))+", re.IGNORECASE)
_RANGE = re.compile(r"([0-9]*)-([0-9]*)")
_WAIT = re.compile(r"wait\s*=\s*\"?([0-9]{1,6})\"?", re.IGNORECASE)


def media_type(request: Request) -> str:
    """That of a body, in small letters and without parameters; empty where Content-Type says none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def best_kind(accept: str, kinds: Sequence[str]) -> str:
    """The image type (`png`) that an Accept header prefers among `kinds`; empty where it takes them all alike.

    Raises:
        Problem: 406, it takes none of them.
    """
    ranges = [_media_range(part) for part in accept.split(",") if part.strip()] or [("*/*", 1.0)]
    weights = {kind: _weight(f"image/{kind}", ranges) for kind in kinds}
    best = max(weights.values())
    if best <= 0:
        listed = ", ".join(f"image/{kind}" for kind in kinds)
        raise Problem(406, "not_acceptable", f"the answer can be {listed}")
    return "" if len(set(weights.values())) == 1 else next(kind for kind in kinds if weights[kind] == best)


def _media_range(text: str) -> tuple[str, float]:
    name, *parameters = (part.strip().lower() for part in text.split(";"))
    weight = 1.0
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            weight = float(value) if re.fullmatch(r"\s*(0(\.[0-9]{0,3})?|1(\.0{0,3})?)\s*", value) else 0.0
    return ("image/jpeg" if name == "image/jpg" else name), weight


def _weight(media: str, ranges: Sequence[tuple[str, float]]) -> float:
    """That of the most precise range that fits."""
    for wanted in (media, "image/*", "*/*"):
        found = [weight for name, weight in ranges if name == wanted]
        if found:
            return max(found)
    return 0.0


def is_known(header: str, tag: str) -> bool:
    """Whether an If-None-Match header names the entity tag, weakly compared, or all there are (RFC 9110, 13.1.2)."""
    known = [each.strip().removeprefix("W/") for each in header.split(",")]
    return tag.removeprefix("W/") in known or known == ["*"]


def satisfiable(header: str, size: int) -> str:
    """The ranges of a Range header that a file of `size` bytes has, as such a header; empty where the whole is to be
    sent, because the header is of another unit or not well formed (RFC 9110, 14.2).

    Raises:
        Problem: 416, it has none of them.
    """
    if _RANGES.fullmatch(header) is None:
        return ""
    ranges = _RANGE.findall(header)
    if any(first and last and int(first) > int(last) for first, last in ranges):
        return ""
    there = [f"{first}-{last}" for first, last in ranges if (int(first) < size if first else int(last) > 0 and size)]
    if not there:
        headers = {"Content-Range": f"bytes */{size}"}
        raise Problem(416, "no_such_range", f"the file has {size:,} bytes", headers=headers)
    return f"bytes={','.join(there)}"


@dataclass(frozen=True, slots=True)
class Preference:
    """What a Prefer header asks for: seconds to wait for the answer, None where it says nothing of it."""

    wait_s: float | None
    applied: str

    @classmethod
    def of(cls, header: str, most: float) -> Preference:
        """`respond-async` is to wait for nothing, `wait=N` for N seconds, at most `most`."""
        if re.search(r"(^|[,;\s])respond-async($|[,;\s])", header, re.IGNORECASE) and not _WAIT.search(header):
            return cls(0.0, "respond-async")
        if found := _WAIT.search(header):
            seconds = min(float(found[1]), most)
            return cls(seconds, f"wait={seconds:g}")
        return cls(None, "")
