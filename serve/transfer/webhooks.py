"""Telling a client's server that something ended: Standard Webhooks 1.0.0, one attempt at a time.

What is sent and when comes from the caller, who keeps attempts and times; this module signs, sends and says when to
try again. The identifier of a message stays the same over its attempts, so that a receiver can tell a repetition.
"""

from __future__ import annotations

import base64
import binascii
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from standardwebhooks import Webhook

from cluster.errors import UsageError
from serve.transfer.addresses import RefusedURLError
from serve.transfer.fetch import FetchError, GuardedClient

#: Pauses in seconds after each failed attempt, as the specification proposes: in all about three days.
PAUSES = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)

_ATTEMPT_SECONDS = 20.0
_LONGEST_PAUSE = 86_400.0
_PREFIX = "whsec_"
_GONE = 410


class Outcome(StrEnum):
    """What came of one attempt."""

    DELIVERED = "delivered"
    AGAIN = "again"
    GIVEN_UP = "given up"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt: its outcome, seconds until the next one when there is one, and the reason for people."""

    outcome: Outcome
    pause: float | None
    reason: str


class Signer:
    """Signs messages with one secret, or with several while secrets are being replaced.

    Args:
        secrets: each `whsec_` and base64 of 24 to 64 bytes.

    Raises:
        UsageError: one is not; the text does not repeat it.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        if not secrets:
            raise UsageError("webhook secret", "is empty", remedy="set it, or unset it to send no webhooks")
        self._webhooks = [_webhook(secret) for secret in secrets]

    @classmethod
    def from_environ(cls, name: str, environ: Mapping[str, str]) -> Signer | None:
        """The signer of the secrets in an environment variable, separated by spaces; None where it is not set."""
        text = environ.get(name, "")
        return cls(text.split()) if text.strip() else None

    def headers(self, message_id: str, body: bytes, at: datetime) -> dict[str, str]:
        """Headers of one attempt at `at`, an aware time."""
        signatures = [webhook.sign(message_id, at.astimezone(UTC), body.decode()) for webhook in self._webhooks]
        return {
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(signatures),
        }


def _webhook(secret: str) -> Webhook:
    wrong = UsageError(
        "webhook secret",
        "is not `whsec_` and base64 of 24 to 64 bytes",
        remedy='make one with: echo "whsec_$(head -c 32 /dev/urandom | base64)"',
    )
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise wrong from None
    if not secret.startswith(_PREFIX) or not 24 <= len(key) <= 64:
        raise wrong
    return Webhook(key)


def message(kind: str, at: datetime, data: Mapping[str, Any]) -> bytes:
    """The body of a message: `type` such as `task.done`, `timestamp` (ISO 8601, UTC) and `data`."""
    timestamp = at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({"type": kind, "timestamp": timestamp, "data": dict(data)}, ensure_ascii=False).encode()


def told(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task as `Delivery.message` has it, in the words of `GET /v1/tasks/{id}`."""
    result = task.get("result")
    if result is None:
        return dict(task)
    shown = {name: value for name, value in result.items() if name != "file"}
    return {**task, "result": {"url": f"/v1/tasks/{task['id']}/result", **shown}}


class Webhooks:
    """Sends messages through the guarded client.

    Args:
        client: entered already.
        signer: see `Signer`.
        now: an aware time; by default the clock's.
        jitter: a number from 0 to 1 for each pause, so that receivers are not met by all messages at once.
    """

    def __init__(
        self,
        client: GuardedClient,
        signer: Signer,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._client, self._signer, self._now, self._jitter = client, signer, now, jitter

    async def send(self, url: str, message_id: str, body: bytes, attempts: int) -> Attempt:
        """One attempt to send `body` (of `message`); never raises for what the receiver or its URL does.

        Any 2xx delivers. 410 and a URL that is refused by its text are final; everything else is tried again, a
        redirect too, as the specification says. A name that leads to a private address is tried again: names change.

        Args:
            attempts: how many were made before this one.
        """
        headers = self._signer.headers(message_id, body, self._now())
        try:
            self._client.check(url)
        except RefusedURLError as error:
            return Attempt(Outcome.GIVEN_UP, None, str(error))
        try:
            answer = await self._client.post(url, body, headers, seconds=_ATTEMPT_SECONDS)
        except (FetchError, RefusedURLError) as error:
            return self._again(attempts, str(error), None)
        if 200 <= answer.status < 300:
            return Attempt(Outcome.DELIVERED, None, f"HTTP {answer.status}")
        if answer.status == _GONE:
            return Attempt(Outcome.GIVEN_UP, None, "HTTP 410: the receiver wants no more messages")
        return self._again(attempts, f"HTTP {answer.status}", answer.retry_after)

    def _again(self, attempts: int, reason: str, asked: float | None) -> Attempt:
        if attempts >= len(PAUSES):
            return Attempt(Outcome.GIVEN_UP, None, f"{reason}, after {attempts + 1} attempts")
        pause = PAUSES[attempts] * (1 + 0.25 * self._jitter())
        return Attempt(Outcome.AGAIN, max(pause, min(asked or 0.0, _LONGEST_PAUSE)), reason)
