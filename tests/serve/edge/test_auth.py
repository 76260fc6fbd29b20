"""Who may ask and how much: tokens, rate limits, quotas, and what the loopback service refuses."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
from fastapi import Depends, FastAPI
from starlette.testclient import TestClient

from cluster.errors import UsageError
from serve.edge.auth import (
    LOCAL,
    Auth,
    Principal,
    TokenBucket,
    Tokens,
    UploadQuota,
    check_queued,
    new_token,
    refuse_open_host,
)
from serve.edge.problems import Problem, install

GOOD, OTHER = "studio-token-0123456789", "phone-token-0123456789"


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.yaml"
    path.write_text(
        f"- {{name: studio, sha256: {sha256(GOOD)}, queued: 3, requests_per_minute: 60, upload_gib_per_day: 0.5}}\n"
        "- {name: phone, token_env: PHONE}\n"
    )
    return path


@pytest.fixture
def tokens(file: Path) -> Tokens:
    return Tokens.load(file, {"PHONE": OTHER})


def served(
    tokens: Tokens | None, clock: Clock, base: str = "http://127.0.0.1:8000", peer: str = "1.2.3.4"
) -> TestClient:
    app = FastAPI()
    install(app)
    auth = Auth(tokens, clock)

    @app.post("/who")
    @app.get("/who")
    async def who(principal: Principal = Depends(auth)) -> str:  # noqa: B008 - FastAPI's way for a local name
        return principal.name

    return TestClient(app, base_url=base, client=(peer, 5000))


def test_limits_come_from_the_file(tokens: Tokens) -> None:
    assert tokens.match(GOOD.encode()) == Principal("studio", 3, 60, 2**29)
    assert tokens.match(OTHER.encode()) == Principal("phone", 100, 600, 100 * 2**30)
    assert tokens.match(b"") is None
    assert tokens.match(GOOD.upper().encode()) is None


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ([("authorization", f"Bearer {GOOD}")], "studio"),
        ([("authorization", f"bearer  {GOOD} ")], "studio"),
        ([("x-token", OTHER)], "phone"),
        ([("x-token", GOOD), ("authorization", f"Bearer {GOOD}")], "studio"),
        ([], None),
        ([("authorization", f"Basic {GOOD}")], None),
        ([("authorization", GOOD)], None),
        ([("authorization", "Bearer")], None),
        ([("x-token", "")], None),
        ([("x-token", GOOD + "x")], None),
        ([("x-token", sha256(GOOD))], None),
        ([("x-token", "ä" * 100)], None),
        ([("x-token", GOOD), ("x-token", OTHER)], None),
        ([("x-token", GOOD), ("authorization", f"Bearer {OTHER}")], None),
        ([("x-token", GOOD), ("authorization", "Basic eDp5")], None),
        ([("cookie", f"x-token={GOOD}")], None),
    ],
)
def test_token_in_either_header_says_who_asks(tokens: Tokens, headers: list[tuple[str, str]], name: str | None) -> None:
    answer = served(tokens, Clock()).get("/who", headers=[(key, value.encode()) for key, value in headers])
    if name is None:
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["code"] == "unauthorized"
    else:
        assert answer.json() == name


def test_rate_limit_is_the_tokens_own_and_says_when_to_come_back(tokens: Tokens) -> None:
    clock = Clock()
    client = served(tokens, clock)
    studio, phone = {"x-token": GOOD}, {"x-token": OTHER}
    assert [client.get("/who", headers=studio).status_code for _ in range(61)] == [200] * 60 + [429]
    refused = client.get("/who", headers=studio)
    assert (refused.headers["retry-after"], refused.json()["code"]) == ("1", "rate_limit")
    assert client.get("/who", headers=phone).status_code == 200
    clock.now += 1
    assert [client.get("/who", headers=studio).status_code for _ in range(2)] == [200, 429]


def test_strangers_are_limited_by_address_and_do_not_shut_out_tokens(tokens: Tokens) -> None:
    client = served(tokens, Clock())
    assert [client.get("/who").status_code for _ in range(61)] == [401] * 60 + [429]
    assert client.get("/who", headers={"x-token": GOOD}).status_code == 200
    assert served(tokens, Clock(), peer="1.2.3.5").get("/who").status_code == 401


def test_strangers_of_one_ipv6_network_are_one(tokens: Tokens) -> None:
    clock = Clock()
    app = served(tokens, clock).app
    codes = [TestClient(app, client=(f"2001:db8::{number:x}", 1)).get("/who").status_code for number in range(1, 62)]
    assert codes == [401] * 60 + [429]
    assert TestClient(app, client=("2001:db8:0:1::1", 1)).get("/who").status_code == 401


def test_forwarding_headers_do_not_make_another_stranger(tokens: Tokens) -> None:
    client = served(tokens, Clock())
    codes = [client.get("/who", headers={"x-forwarded-for": f"9.9.9.{n}"}).status_code for n in range(61)]
    assert codes[-1] == 429


@pytest.mark.parametrize(
    ("base", "headers", "status"),
    [
        ("http://127.0.0.1:8000", {}, 200),
        ("http://localhost:8000", {}, 200),
        ("http://[::1]:8000", {}, 200),
        ("http://[::1]", {}, 200),
        ("http://localhost", {}, 200),
        ("http://LOCALHOST:8000", {"origin": "http://localhost:8000", "sec-fetch-site": "same-origin"}, 200),
        ("http://rebound.example:8000", {}, 403),
        ("http://localhost.evil.example", {}, 403),
        ("http://192.168.1.5:8000", {}, 403),
        ("http://127.0.0.1:8000", {"origin": "https://evil.example"}, 403),
        ("http://127.0.0.1:8000", {"origin": "null"}, 403),
        ("http://127.0.0.1:8000", {"origin": "http://127.0.0.1:9000"}, 403),
        ("http://127.0.0.1:8000", {"sec-fetch-site": "cross-site"}, 403),
        ("http://127.0.0.1:8000", {"sec-fetch-site": "same-site"}, 403),
        ("http://127.0.0.1:8000", {"x-forwarded-for": "127.0.0.1"}, 403),
        ("http://127.0.0.1:8000", {"x-forwarded-proto": "https"}, 403),
        ("http://127.0.0.1:8000", {"forwarded": "for=127.0.0.1"}, 403),
        ("http://127.0.0.1:8000", {"via": "1.1 proxy"}, 403),
    ],
)
def test_without_tokens_only_this_machine_asks_and_no_proxy_nor_page_of_another_site(
    base: str, headers: dict[str, str], status: int
) -> None:
    answer = served(None, Clock(), base).post("/who", headers=headers)
    assert answer.status_code == status
    if status == 200:
        assert answer.json() == LOCAL.name


def test_with_tokens_other_hosts_and_sites_are_a_matter_of_the_token(tokens: Tokens) -> None:
    client = served(tokens, Clock(), "https://studio.example")
    assert client.get("/who", headers={"x-token": GOOD, "origin": "https://app.example"}).json() == "studio"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "studio.example", "127.0.0.1.example"])
def test_open_host_without_tokens_is_refused(host: str, tokens: Tokens) -> None:
    with pytest.raises(UsageError, match=r"troupe\.service\.tokens"):
        refuse_open_host(host, None)
    refuse_open_host(host, tokens)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_no_tokens(host: str) -> None:
    refuse_open_host(host, None)


HASH = sha256(GOOD)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "valid list"),
        ("[]", "lists no token"),
        ("{a: 1}", "valid list"),
        ("- [", "not YAML"),
        ("- {name: a}", "either sha256 or token_env"),
        (f"- {{name: a, sha256: {HASH}, token_env: PHONE}}", "either sha256 or token_env"),
        (f"- {{name: a, sha256: {HASH[:-1]}}}", "sha256"),
        (f"- {{name: a, token: {GOOD}}}", "Extra inputs"),
        (f"- {{name: 'a b', sha256: {HASH}}}", "name"),
        (f"- {{name: studio-, sha256: {HASH}}}", "name"),  # the store takes no such owner
        (f"- {{name: a, sha256: {HASH}, queued: 0}}", "queued"),
        ("- {name: a, token_env: NONE}", "NONE is not set"),
        ("- {name: a, token_env: SHORT}", "SHORT is too short"),
        (f"- {{name: a, sha256: {HASH}}}\n- {{name: a, token_env: PHONE}}", "shares its name or its token"),
        (f"- {{name: a, sha256: {HASH}}}\n- {{name: b, sha256: {HASH}}}", "shares its name or its token"),
        (f"- {{name: a, sha256: {HASH}}}\n- {{name: b, token_env: SAME}}", "shares its name or its token"),
    ],
)
def test_broken_tokens_file_is_bad_usage_and_shows_no_secret(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "tokens.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=reason) as error:
        Tokens.load(path, {"PHONE": OTHER, "SHORT": "hunter2", "SAME": GOOD})
    for secret in (GOOD, OTHER, "hunter2", HASH):
        assert secret not in str(error.value)


def test_absent_tokens_file_is_bad_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        Tokens.load(tmp_path / "none.yaml", {})


def test_new_token_fits_its_hash_and_is_never_the_same() -> None:
    (token, digest), (other, _) = new_token(), new_token()
    assert digest == sha256(token)
    assert token != other
    assert len(token) > 40


def test_bucket_refills_steadily_and_holds_no_more_than_a_minute() -> None:
    clock = Clock()
    bucket = TokenBucket(30, clock)
    assert [bucket.take() for _ in range(30)] == [0.0] * 30
    assert bucket.take() == pytest.approx(2.0)
    clock.now += 1
    assert bucket.take() == pytest.approx(1.0)
    clock.now += 1e6
    assert [bucket.take() == 0 for _ in range(31)] == [True] * 30 + [False]
    assert TokenBucket(math.inf, clock).take() == 0
    assert TokenBucket(0.5, clock).take() == 0, "the first request of a slow token passes"


def test_upload_quota_is_of_the_last_24_hours() -> None:
    clock = Clock()
    quota = UploadQuota(100, clock)
    quota.take(60)
    clock.now += 12 * 3600
    quota.take(40)
    with pytest.raises(Problem) as refused:
        quota.take(1)
    assert (refused.value.status, refused.value.code) == (429, "upload_quota")
    wait = float(refused.value.headers["Retry-After"])
    clock.now += wait - 1.5
    assert quota.left == 0
    clock.now += 1.5
    assert quota.left == 60
    quota.check(60)


def test_quota_of_a_token_is_one_object_over_requests(tokens: Tokens) -> None:
    auth = Auth(tokens, Clock())
    studio = tokens.match(GOOD.encode())
    assert studio is not None
    auth.quota(studio).take(2**28)
    assert auth.quota(studio).left == 2**28
    assert auth.quota(LOCAL).left == math.inf


def test_task_quota_counts_what_is_queued_or_running() -> None:
    check_queued(Principal("a", queued=3), 2)
    check_queued(LOCAL, 10**9)
    with pytest.raises(Problem) as refused:
        check_queued(Principal("a", queued=3), 3)
    assert refused.value.status == 429
    assert "Retry-After" in refused.value.headers
