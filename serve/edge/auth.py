"""Who asks, and how much they may: tokens, rate limits and quotas.

A tokens file is a YAML list, one entry a token; it holds hashes or names of environment variables, never tokens:

    - name: studio
      sha256: 5e88…                  # of the token; `troupe tokens new` prints both
      queued: 100                    # tasks queued or running at once
      requests_per_minute: 600
      upload_gib_per_day: 100
    - name: phone
      token_env: TROUPE_TOKEN_PHONE

Requests, and all bytes that come, are counted in this process and start anew with it; tasks, and the uploads of those
that were accepted, are counted by the store.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from fastapi import Request
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from cluster.config import Config
from cluster.errors import UsageError
from serve.edge.problems import Problem, busy
from serve.store.values import OWNER

_SHORTEST_TOKEN = 16
_STRANGERS_PER_MINUTE = 60.0
_STRANGERS_KEPT = 10_000
_HOURS = 24
_VOLUME_USED = "the upload quota of this token for 24 hours is used up"
#: Headers of requests that came through a proxy, beside X-Forwarded-….
_FORWARDED = frozenset({"forwarded", "via", "x-real-ip"})


class TokenSettings(BaseModel):
    """One entry of a tokens file.

    Attributes:
        name: the owner of what this token creates; also in logs.
        sha256: hex SHA-256 of the token.
        token_env: environment variable with the token itself, instead of the hash.
        queued: most tasks queued or running at once.
        requests_per_minute: over a minute; a pause of a minute allows as many at once.
        upload_gib_per_day: over the last 24 hours.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=f"^{OWNER.pattern}$")
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    token_env: str | None = None
    queued: int = Field(default=100, ge=1)
    requests_per_minute: float = Field(default=600, gt=0)
    upload_gib_per_day: float = Field(default=100, gt=0)

    @model_validator(mode="after")
    def _one_secret(self) -> TokenSettings:
        if (self.sha256 is None) == (self.token_env is None):
            raise ValueError("needs either sha256 or token_env")
        return self


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: the name that owns tasks, and what it may.

    Attributes:
        name: owner of what is created.
        queued: most tasks queued or running at once.
        requests_per_minute: rate limit.
        upload_bytes_per_day: upload quota.
    """

    name: str
    queued: float = math.inf
    requests_per_minute: float = math.inf
    upload_bytes_per_day: float = math.inf


LOCAL = Principal("local")
"""Everybody, where there is no tokens file and the service answers on loopback only."""


def new_token() -> tuple[str, str]:
    """A new token, and the SHA-256 that goes into the tokens file."""
    token = f"troupe_{secrets.token_urlsafe(32)}"
    return token, hashlib.sha256(token.encode()).hexdigest()


class Tokens:
    """The tokens that are known, by the SHA-256 of each.

    Raises:
        UsageError: two share a name or a secret.
    """

    def __init__(self, known: Mapping[bytes, Principal]) -> None:
        self._known = dict(known)

    @classmethod
    def load(cls, path: Path, environ: Mapping[str, str]) -> Tokens:
        """Reads a tokens file.

        Raises:
            UsageError: it cannot be read or does not validate, an environment variable is missing or too short, or
                two entries share a name or a token. No text repeats a secret.
        """
        try:
            entries = TypeAdapter(list[TokenSettings]).validate_python(yaml.safe_load(path.read_text("utf-8")))
        except OSError as error:
            raise UsageError(path, error.strerror or str(error), remedy="see troupe.service.tokens") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(path, "is not YAML", remedy="write a list of tokens as in docs/http.md") from error
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise UsageError(path, str(first["msg"]), place=place, remedy="see docs/http.md") from error
        if not entries:
            raise UsageError(path, "lists no token", remedy="add one, or leave out troupe.service.tokens")
        known: dict[bytes, Principal] = {}
        for entry in entries:
            digest = _digest_of(entry, path, environ)
            principal = Principal(entry.name, entry.queued, entry.requests_per_minute, entry.upload_gib_per_day * 2**30)
            if digest in known or any(other.name == entry.name for other in known.values()):
                raise UsageError(path, f"{entry.name} shares its name or its token with an earlier entry")
            known[digest] = principal
        return cls(known)

    def __len__(self) -> int:
        return len(self._known)

    def match(self, presented: bytes) -> Principal | None:
        """Whose token this is, in a time that does not depend on how nearly it is one."""
        digest, found = hashlib.sha256(presented).digest(), None
        for known, principal in self._known.items():
            if hmac.compare_digest(known, digest):
                found = principal
        return found


def _digest_of(entry: TokenSettings, path: Path, environ: Mapping[str, str]) -> bytes:
    if entry.sha256 is not None:
        return bytes.fromhex(entry.sha256)
    token = environ.get(entry.token_env or "", "")
    if len(token) < _SHORTEST_TOKEN:
        reason = f"{entry.token_env} is not set" if not token else f"{entry.token_env} is too short to be a token"
        raise UsageError(path, reason, place=entry.name, remedy=f"set it to at least {_SHORTEST_TOKEN} characters")
    return hashlib.sha256(token.encode()).digest()


def refuse_open_host(host: str, tokens: Tokens | None) -> None:
    """Refuse to listen where others can connect while nobody has to show a token.

    Raises:
        UsageError: `host` is not a loopback address and there are no tokens.
    """
    if tokens is None and host != "localhost" and not _is_loopback(host):
        raise UsageError(
            f"http_options.host {host!r}",
            "is open to other machines, and there are no tokens",
            remedy="set troupe.service.tokens to a tokens file, or listen on 127.0.0.1",
        )


def tokens_of(config: Config, environ: Mapping[str, str]) -> Tokens | None:
    """The tokens that may ask; None where everybody on this machine may.

    Raises:
        UsageError: the file is broken, or there is none and the address is open to others.
    """
    path = config.troupe.service.tokens
    tokens = Tokens.load(Path(path), environ) if path else None
    refuse_open_host(config.http.host, tokens)
    return tokens


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class TokenBucket:
    """Allows `per_minute` requests, all at once after a minute's pause."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._most, self._clock = per_minute / 60, max(1.0, per_minute), clock
        self._left, self._at = self._most, clock()

    def take(self) -> float:
        """0 when one more is allowed now, else the seconds until then."""
        if math.isinf(self._rate):
            return 0.0
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self._rate


class UploadQuota:
    """Bytes that one token uploaded in the last 24 hours, counted by the hour, so kept up to an hour longer."""

    def __init__(self, most: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._hours: deque[tuple[int, int]] = deque()

    @property
    def left(self) -> float:
        """Bytes that may still come."""
        oldest = int(self._clock() // 3600) - _HOURS
        while self._hours and self._hours[0][0] < oldest:
            self._hours.popleft()
        return self._most - sum(count for _, count in self._hours)

    def check(self, count: int) -> None:
        """Refuse what would not fit.

        Raises:
            Problem: 429, with when the oldest hour is forgotten.
        """
        if count > self.left:
            hours = self._hours[0][0] + _HOURS + 1 - self._clock() / 3600 if self._hours else 1.0
            raise busy("upload_quota", _VOLUME_USED, hours * 3600)

    def take(self, count: int) -> None:
        """Count bytes that came; raises as `check`."""
        self.check(count)
        hour = int(self._clock() // 3600)
        if self._hours and self._hours[-1][0] == hour:
            self._hours[-1] = (hour, self._hours[-1][1] + count)
        else:
            self._hours.append((hour, count))


def check_queued(principal: Principal, count: int) -> None:
    """Refuse one more task while `count` are queued or running.

    Raises:
        Problem: 429.
    """
    if count >= principal.queued:
        raise busy("task_quota", f"{count} tasks of this token are queued or running, as many as it may have", 30)


def check_volume(principal: Principal, count: int, more: int, frees_s: float) -> None:
    """Refuse `more` bytes after the `count` that tasks brought in 24 hours, some of which are forgotten in `frees_s`.

    Raises:
        Problem: 429.
    """
    if count + more > principal.upload_bytes_per_day:
        raise busy("upload_quota", _VOLUME_USED, frees_s)


BEARER = HTTPBearer(auto_error=False, description="A token of the tokens file.")
X_TOKEN = APIKeyHeader(name="x-token", auto_error=False, description="The same token, for older clients.")


class Auth:
    """FastAPI dependency: who asks. `Depends(auth)` gives a `Principal`, or the request ends with 401, 403 or 429.

    Without tokens everybody is `LOCAL`; then only a loopback name is accepted in Host, no request that came through a
    proxy, and none that a web page of another site sent, because a browser on this machine can reach loopback too.

    Args:
        tokens: None where the service listens on loopback only.
        clock: seconds that only grow.
    """

    def __init__(self, tokens: Tokens | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens, self._clock = tokens, clock
        self._buckets: dict[str, TokenBucket] = {}
        self._quotas: dict[str, UploadQuota] = {}
        self._strangers: OrderedDict[str, TokenBucket] = OrderedDict()

    async def __call__(self, request: Request) -> Principal:
        if self._tokens is None:
            _refuse_other_sites(request)
            return LOCAL
        principal = self._matched(request, self._tokens)
        if principal is None:
            self._count_stranger(request)
            raise Problem(
                401,
                "unauthorized",
                "send a known token as `Authorization: Bearer …` or `x-token: …`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        bucket = self._buckets.get(principal.name)
        if bucket is None:
            bucket = self._buckets[principal.name] = TokenBucket(principal.requests_per_minute, self._clock)
        if wait := bucket.take():
            raise busy("rate_limit", "more requests than this token may send", wait)
        return principal

    @property
    def owners(self) -> int:
        """How many there are who may ask, each with tasks of its own."""
        return 1 if self._tokens is None else len(self._tokens)

    def quota(self, principal: Principal) -> UploadQuota:
        """The upload quota of `principal`, the same object each time."""
        quota = self._quotas.get(principal.name)
        if quota is None:
            quota = self._quotas[principal.name] = UploadQuota(principal.upload_bytes_per_day, self._clock)
        return quota

    def _matched(self, request: Request, tokens: Tokens) -> Principal | None:
        """All tokens that a request shows must be one and the same."""
        shown: set[bytes] = set()
        for header in request.headers.getlist("authorization"):
            scheme, _, value = header.partition(" ")
            shown.add(value.strip().encode("latin-1") if scheme.lower() == "bearer" else b"")
        shown.update(header.strip().encode("latin-1") for header in request.headers.getlist("x-token"))
        found = {tokens.match(value) for value in shown}
        return found.pop() if len(found) == 1 else None

    def _count_stranger(self, request: Request) -> None:
        address = _address_of(request.scope)
        bucket = self._strangers.pop(address, None) or TokenBucket(_STRANGERS_PER_MINUTE, self._clock)
        self._strangers[address] = bucket
        if len(self._strangers) > _STRANGERS_KEPT:
            self._strangers.popitem(last=False)
        if wait := bucket.take():
            raise busy("rate_limit", "too many requests without a known token", wait)


def _address_of(scope: Mapping[str, Any]) -> str:
    """The peer; of IPv6 its /64, which one person has whole. Forwarding headers are not believed."""
    host = str((scope.get("client") or ("unknown",))[0])
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host


def _refuse_other_sites(request: Request) -> None:
    if any(name in _FORWARDED or name.startswith("x-forwarded-") for name in request.headers):
        raise Problem(
            403, "proxied", "without tokens no proxy may stand before the service: whoever asks would count as local"
        )
    host = request.headers.get("host", "").lower()
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if name != "localhost" and not _is_loopback(name.strip("[]")):
        raise Problem(403, "other_host", "without tokens the service answers to localhost and 127.0.0.1 only")
    origin = request.headers.get("origin", "")
    site = request.headers.get("sec-fetch-site", "none")
    if (origin and origin.lower().partition("://")[2] != host) or site not in ("none", "same-origin"):
        raise Problem(403, "other_site", "without tokens no web page of another site may ask")
