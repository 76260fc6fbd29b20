"""Which form an answer has: Accept and Prefer, as RFC 9110 and RFC 7240 say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from serve.edge.problems import Problem

_WAIT = re.compile(r"wait\s*=\s*\"?([0-9]{1,6})\"?", re.IGNORECASE)


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
