"""Webhooks: signed as the standard says, tried again as it says, and only through the guarded client."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from cluster.errors import UsageError
from serve.transfer.fetch import GuardedClient
from serve.transfer.webhooks import PAUSES, Attempt, Outcome, Signer, Webhooks, message
from tests.serve.web import GOOD, Canary, WebServer, answer

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(range(1, 33))).decode()
NOW = datetime(2026, 1, 10, 12, 0, 0, 250_000, tzinfo=UTC)
BODY = message("task.done", NOW, {"id": "t-1", "name": "跳舞"})


def send(url: str, ports: tuple[int, ...], attempts: int = 0, now: datetime = NOW, jitter: float = 0.0) -> Attempt:
    async def run() -> Attempt:
        async with GuardedClient([f"{GOOD}/32"], ports) as client:
            webhooks = Webhooks(client, Signer([SECRET]), now=lambda: now, jitter=lambda: jitter)
            return await webhooks.send(url, "msg-1", BODY, attempts)

    return asyncio.run(run())


def test_signature_is_that_of_the_specification() -> None:
    """The example of the specification and of its libraries."""
    signer = Signer(["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
    at = datetime.fromtimestamp(1614265330, UTC)
    headers = signer.headers("msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', at)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert headers["webhook-timestamp"] == "1614265330"


def test_receiver_can_verify_what_arrives() -> None:
    with WebServer(answer) as server:
        assert send(server.url, (server.port,), now=datetime.now(timezone(timedelta(hours=8)))) == Attempt(
            Outcome.DELIVERED, None, "HTTP 200"
        )
    (seen,) = server.seen
    assert seen.method == "POST"
    assert seen.headers["content-type"] == "application/json"
    assert Webhook(SECRET).verify(seen.body, seen.headers)["data"] == {"id": "t-1", "name": "跳舞"}
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(seen.body, seen.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(seen.body.replace(b"done", b"fail"), seen.headers)


def test_both_secrets_sign_while_one_is_being_replaced() -> None:
    signer = Signer.from_environ("S", {"S": f"{SECRET} {OTHER}"})
    assert signer is not None
    headers = signer.headers("m", BODY, datetime.now(UTC))
    for secret in (SECRET, OTHER):
        Webhook(secret).verify(BODY, headers)


def test_body_has_the_standards_members() -> None:
    assert json.loads(BODY) == {
        "type": "task.done",
        "timestamp": "2026-01-10T12:00:00.250000Z",
        "data": {"id": "t-1", "name": "跳舞"},
    }


@pytest.mark.parametrize(
    "secret",
    ["", "whsec_", "secret", SECRET.removeprefix("whsec_"), "whsec_!!!", "whsec_" + base64.b64encode(b"x").decode()],
)
def test_weak_or_broken_secret_is_bad_usage_and_not_repeated(secret: str) -> None:
    with pytest.raises(UsageError) as error:
        Signer([secret])
    assert not secret or secret == "secret" or secret == "whsec_" or secret not in str(error.value)


def test_without_a_secret_there_is_no_signer() -> None:
    assert Signer.from_environ("S", {}) is None
    assert Signer.from_environ("S", {"S": "  "}) is None


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_any_2xx_delivers(status: int) -> None:
    with WebServer(lambda request: answer(request, status=status)) as server:
        assert send(server.url, (server.port,)).outcome is Outcome.DELIVERED


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 404, 408, 429, 500, 502, 503])
def test_other_answers_are_tried_again(
    status: int,
) -> None:
    with WebServer(lambda request: answer(request, status=status, Location="http://127.0.0.1/")) as server:
        assert send(server.url, (server.port,)) == Attempt(Outcome.AGAIN, 5.0, f"HTTP {status}")
    assert len(server.seen) == 1


def test_gone_and_a_refused_url_are_final() -> None:
    with WebServer(lambda request: answer(request, status=410)) as server, Canary() as canary:
        assert send(server.url, (server.port,)).outcome is Outcome.GIVEN_UP
        assert send(f"http://127.0.0.1:{canary.port}/", (canary.port,)).outcome is Outcome.GIVEN_UP
        assert send(f"http://{GOOD}:{server.port}/", (443,)).outcome is Outcome.GIVEN_UP
    assert canary.hits == 0
    assert len(server.seen) == 1


def test_absent_server_is_tried_again() -> None:
    with WebServer(answer) as server:
        port = server.port
    assert send(f"http://{GOOD}:{port}/", (port,)).outcome is Outcome.AGAIN


def test_pauses_grow_with_jitter_and_end_after_the_last() -> None:
    with WebServer(lambda request: answer(request, status=500)) as server:
        pauses = [send(server.url, (server.port,), attempts).pause for attempts in range(len(PAUSES))]
        assert pauses == [float(pause) for pause in PAUSES]
        assert send(server.url, (server.port,), 1, jitter=1.0).pause == 375.0
        last = send(server.url, (server.port,), len(PAUSES))
    assert last == Attempt(Outcome.GIVEN_UP, None, "HTTP 500, after 10 attempts")


@pytest.mark.parametrize(("asked", "pause"), [("60", 60.0), ("1", 5.0), ("99999999", 86_400.0), ("soon", 5.0)])
def test_receiver_can_ask_for_a_longer_pause_up_to_a_day(asked: str, pause: float) -> None:
    with WebServer(lambda request: answer(request, status=429, Retry_After=asked)) as server:
        assert send(server.url, (server.port,)).pause == pause
