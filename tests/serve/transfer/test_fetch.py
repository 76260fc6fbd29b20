"""The guarded client: what it never reaches, what it brings, and what it gives up."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from cluster.errors import TroupeError, UsageError
from serve.transfer import fetch as fetch_module
from serve.transfer.addresses import RefusedURLError, is_allowed, literal_address, parse_networks, shown_url
from serve.transfer.fetch import Answer, Fetched, FetchError, FetchLimits, GuardedClient, NotGivenError
from serve.transfer.pace import Patience
from serve.transfer.spool import Spool, TooLargeError
from tests.serve.web import GOOD, Canary, WebServer, answer

VIDEO = bytes(range(256)) * 4096  # 1 MiB
NETWORKS = (f"{GOOD}/32",)
LIMITS = FetchLimits(4 << 20, Patience(silence_seconds=5, total_seconds=20), answer_seconds=5)


class Stub(AbstractResolver):
    """Answers that a test chose: for each lookup of a name the next list, the last one again and again."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): lists for name, lists in answers.items()}
        self.asked: list[str] = []

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002
    ) -> list[ResolveResult]:
        self.asked.append(host)
        lists = self.answers.get(host.rstrip("."))
        if lists is None:
            raise OSError("no such name")
        addresses = lists.pop(0) if len(lists) > 1 else lists[0]
        kinds = {True: socket.AF_INET6, False: socket.AF_INET}
        return [
            ResolveResult(hostname=host, host=a, port=port, family=kinds[":" in a], proto=0, flags=0) for a in addresses
        ]

    async def close(self) -> None:
        return


def get(
    url: str,
    target: Path,
    ports: tuple[int, ...],
    networks: tuple[str, ...] = NETWORKS,
    resolver: AbstractResolver | None = None,
    limits: FetchLimits = LIMITS,
    trust: ssl.SSLContext | None = None,
) -> Fetched:
    async def run() -> Fetched:
        async with GuardedClient(networks, ports, resolver=resolver, ssl=trust) as client:
            return await client.fetch(url, target, limits)

    return asyncio.run(run())


@pytest.fixture
def canary() -> Iterator[Canary]:
    with Canary() as listening:
        yield listening


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "input"
    folder.mkdir()
    yield folder / "input-0"
    assert {path.name for path in folder.iterdir()} <= {"input-0"}, "something was left behind"


def beside(canary: Canary, respond: Callable[[BaseHTTPRequestHandler], None]) -> WebServer:
    """An allowed server on the canary's port, so that no answer about ports hides one about addresses."""
    return WebServer(respond, port=canary.port)


# --- what is never reached

REFUSED = """
http://127.0.0.1:{port}/            http://localhost:{port}/              http://LOCALHOST:{port}/
http://localhost:{port}              http://127.0.0.1.:{port}/             http://127.1:{port}/
http://127.0.1:{port}/              http://0177.1:{port}/                 http://0177.0.0.1:{port}/
http://0x7f.1:{port}/               http://0x7f.0x0.0x0.0x1:{port}/       http://0x7f000001:{port}/
http://2130706433:{port}/           http://017700000001:{port}/           http://127.000.000.001:{port}/
http://0:{port}/                    http://0.0.0.0:{port}/                http://127.255.255.254:{port}/
http://[::]:{port}/                 http://[::1]:{port}/                  http://[0:0:0:0:0:0:0:1]:{port}/
http://[::ffff:127.0.0.1]:{port}/   http://[::ffff:7f00:1]:{port}/        http://[::127.0.0.1]:{port}/
http://[::ffff:0:127.0.0.1]:{port}/ http://[64:ff9b::127.0.0.1]:{port}/   http://[64:ff9b:1::7f00:1]:{port}/
http://[2002:7f00:1::]:{port}/      http://[2002:7f00:1::1]:{port}/       http://[2001:0:7f00:1::80ff:fffe]:{port}/
http://[2001:4860::5efe:7f00:1]:{port}/ http://[2001:4860::200:5efe:7f00:1]:{port}/ http://[fe80::1]:{port}/
http://[fe80::1%25lo]:{port}/       http://[::1%25lo]:{port}/             http://[fc00::1]:{port}/
http://[fd00:ec2::254]:{port}/      http://[fec0::1]:{port}/              http://[ff02::1]:{port}/
http://[ff0e::1]:{port}/            http://[2001:db8::1]:{port}/          http://[3fff::1]:{port}/
http://[100::1]:{port}/             http://[5f00::1]:{port}/              http://[v1.x]:{port}/
http://10.0.0.1:{port}/             http://172.16.0.1:{port}/             http://192.168.0.1:{port}/
http://169.254.169.254:{port}/latest/meta-data/  http://100.100.100.200:{port}/  http://192.0.0.192:{port}/
http://168.63.129.16:{port}/        http://100.64.0.1:{port}/             http://198.18.0.1:{port}/
http://192.0.2.1:{port}/            http://192.88.99.1:{port}/            http://224.0.0.1:{port}/
http://240.0.0.1:{port}/            http://255.255.255.255:{port}/        http://[::ffff:10.0.0.1]:{port}/
http://[64:ff9b::a00:1]:{port}/     http://[2002:a00:1::]:{port}/         http://[::ffff:169.254.169.254]:{port}/
http://１２７.０.０.１:{port}/      http://127。0。0。1:{port}/           http://①②⑦.0.0.1:{port}/
http://ⓛocalhost:{port}/            http://%31%32%37.0.0.1:{port}/        http://127.0.0.1%2f.example:{port}/
https://127.0.0.1:{port}/           http://user:word@127.0.0.1:{port}/    http://@127.0.0.1:{port}/
http://127.0.0.2@127.0.0.1:{port}/  http://127.0.0.1:{port}#@127.0.0.2/   http://127.0.0.1:{port}?@127.0.0.2/
http://127.0.0.1:{port}\\@127.0.0.2/ http:/127.0.0.1:{port}/              http:127.0.0.1:{port}/
//127.0.0.1:{port}/                 127.0.0.1:{port}/                     ftp://127.0.0.1:{port}/
file:///etc/passwd                  gopher://127.0.0.1:{port}/_x          data:video/mp4;base64,AAAA
dict://127.0.0.1:{port}/            ws://127.0.0.1:{port}/                unix:///run/docker.sock
http://                             http:///v.mp4                         http://[::1
http://127.0.0.1:99999/             http://127.0.0.1:-1/                  http://*:{port}/
""".split()  # noqa: SIM905 - a table
SPACED = [
    "http://127.0.0.1:{port}/\r\nX-Injected: yes",
    "http://127.0.0.1\t:{port}/",
    " http://127.0.0.1:{port}/",
    "http://127.0.0.1\0.example:{port}/",
    "",
    "http://127.0.0.1:{port}/" + "a" * 5000,
]


@pytest.mark.parametrize("url", REFUSED + SPACED)
def test_canary_is_not_reached_by_any_writing_of_its_address(url: str, canary: Canary, target: Path) -> None:
    with pytest.raises(RefusedURLError) as error:
        get(url.format(port=canary.port), target, (canary.port, 80, 443))
    assert canary.hits == 0
    assert "127.0.0.1:" not in error.value.reason


def test_canary_is_reached_where_its_network_is_listed(canary: Canary, target: Path) -> None:
    """Without this the other tests could not fail."""
    got = get(f"http://localhost:{canary.port}/", target, (canary.port,), ("127.0.0.0/8", "::1/128"))
    assert canary.hits == 1
    assert got.path.read_bytes() == b"canary"


@pytest.mark.parametrize(
    "answers",
    [
        ["127.0.0.1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["0.0.0.0"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["fe80::1%lo"],
        ["8.8.8.8", "127.0.0.1"],
        ["127.0.0.1", "8.8.8.8"],
        [GOOD, "127.0.0.1"],
        [GOOD] * 20 + ["127.0.0.1"],
        ["not an address"],
    ],
)
@pytest.mark.parametrize("name", ["media.test", "media.test."])
def test_name_with_one_private_answer_is_refused_whole(
    name: str, answers: list[str], canary: Canary, target: Path
) -> None:
    with beside(canary, answer) as server, pytest.raises(RefusedURLError, match="public address") as error:
        get(f"http://{name}:{canary.port}/", target, (canary.port,), resolver=Stub(media_test=[answers]))
    assert canary.hits == 0
    assert server.seen == []
    assert not any(address in str(error.value) for address in answers)


def test_name_that_changes_its_answer_is_connected_where_it_was_checked(canary: Canary, target: Path) -> None:
    stub = Stub(media_test=[[GOOD], ["127.0.0.1"]])
    with beside(canary, lambda request: answer(request, VIDEO)) as server:
        got = get(f"http://media.test:{canary.port}/v.mp4", target, (canary.port,), resolver=stub)
    assert stub.asked == ["media.test"]
    assert got.path.read_bytes() == VIDEO
    assert server.seen[0].headers["host"] == f"media.test:{canary.port}"
    assert canary.hits == 0


def test_name_that_changes_its_answer_is_checked_again_at_a_redirect(canary: Canary, target: Path) -> None:
    stub = Stub(media_test=[[GOOD], ["127.0.0.1"]])
    with (
        beside(canary, lambda request: answer(request, status=302, Location="/again")),
        pytest.raises(RefusedURLError, match="public address"),
    ):
        get(f"http://media.test:{canary.port}/", target, (canary.port,), resolver=stub)
    assert stub.asked == ["media.test", "media.test"]
    assert canary.hits == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{port}/",
        "//127.0.0.1:{port}/",
        "http://localhost:{port}/",
        "http://[::1]:{port}/",
        "http://2130706433:{port}/",
        "http://x@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}/ x",
        "https://169.254.169.254/",
        "file:///etc/passwd",
        "http://127.0.0.2:22/",
        "http://[::1",
    ],
)
def test_redirect_is_checked_like_the_first_url(location: str, status: int, canary: Canary, target: Path) -> None:
    where = location.format(port=canary.port)
    with (
        beside(canary, lambda request: answer(request, status=status, Location=where)) as server,
        pytest.raises(RefusedURLError),
    ):
        get(f"http://{GOOD}:{canary.port}/", target, (canary.port, 443))
    assert len(server.seen) == 1
    assert canary.hits == 0


def test_socket_is_checked_too_where_everything_before_it_was_fooled(
    canary: Canary, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "check_url", lambda text, *_: URL(text))
    for host in ("127.0.0.1", "[::1]"):
        with pytest.raises(RefusedURLError, match="public address"):
            get(f"http://{host}:{canary.port}/", target, (canary.port,))
    assert canary.hits == 0


def test_proxies_and_credentials_of_the_environment_are_not_used(
    canary: Canary, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{canary.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {GOOD} login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with WebServer(lambda request: answer(request, VIDEO, Set_Cookie="a=b")) as server:
        get(server.url, target, (server.port,))
    assert canary.hits == 0
    assert set(server.seen[0].headers) == {"host", "user-agent", "accept", "accept-encoding", "connection"}


def test_other_ports_are_refused_until_they_are_listed(target: Path) -> None:
    with WebServer(lambda request: answer(request, VIDEO)) as server:
        with pytest.raises(RefusedURLError, match=f"port {server.port}, allowed 80, 443"):
            get(server.url, target, (443, 80))
        assert server.seen == []
        assert get(server.url, target, (server.port,)).bytes == len(VIDEO)


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("2002:808:808::1", True),
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("10.1.3.3", False),
        ("64:ff9b::a01:203", False),
        ("fd00:1::5", True),
        ("fd00:2::5", False),
        ("fd00:1::5%1", False),
    ],
)
def test_listed_networks_are_allowed_beside_the_public_ones(text: str, allowed: bool) -> None:
    address = literal_address(text)
    assert address is not None
    assert is_allowed(address, parse_networks(("10.1.2.0/24", "fd00:1::/32"))) is allowed


@pytest.mark.parametrize("text", ["10.0.0.1/8", "0.0.0.0/0", "::/0", "example.com", ""])
def test_list_of_networks_that_is_wrong_is_bad_usage(text: str) -> None:
    with pytest.raises(UsageError, match="allow_networks"):
        GuardedClient([text])


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:p@host/a/b.mp4?sig=secret#x", "https://host/a/b.mp4"),
        ("http://h/" + "a" * 300, "http://h/" + "a" * 191 + "…"),
        ("http://[", "the URL"),
        ("nonsense", "the URL"),
    ],
)
def test_url_in_a_message_has_no_secrets(url: str, shown: str) -> None:
    assert shown_url(url) == shown


# --- what is brought


def test_file_arrives_whole_with_its_hash(target: Path) -> None:
    with WebServer(lambda request: answer(request, VIDEO)) as server:
        got = get(f"{server.url}?sig=secret", target, (server.port,))
    assert got == Fetched(target, len(VIDEO), hashlib.sha256(VIDEO).hexdigest(), server.url)
    assert server.seen[0].path == "/v.mp4?sig=secret"
    assert target.stat().st_mode & 0o777 == 0o600


def test_redirects_are_followed_five_times_and_not_six(target: Path) -> None:
    def respond(request: BaseHTTPRequestHandler) -> None:
        left = int(request.path.rpartition("/")[2])
        answer(request, VIDEO) if not left else answer(request, status=302, Location=f"../x/{left - 1}")

    with WebServer(respond) as server:
        url = f"http://{GOOD}:{server.port}/x/"
        assert get(f"{url}5", target, (server.port,)).url == f"{url}0"
        target.unlink()
        with pytest.raises(FetchError, match="redirects more than 5 times"):
            get(f"{url}6", target, (server.port,))
        assert len(server.seen) == 12


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls_pair(authority: trustme.CA, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return serving, trusting


def test_pinned_address_is_asked_by_its_name_over_tls(authority: trustme.CA, target: Path) -> None:
    serving, trusting = tls_pair(authority, "media.test")
    with WebServer(lambda request: answer(request, VIDEO), tls=serving) as server:
        url = f"https://media.test:{server.port}/v.mp4"
        got = get(url, target, (server.port,), resolver=Stub(media_test=[[GOOD]]), trust=trusting)
    assert got.bytes == len(VIDEO)
    assert server.names == ["media.test"]
    assert server.seen[0].headers["host"] == f"media.test:{server.port}"


def test_certificate_of_another_name_is_refused(authority: trustme.CA, target: Path) -> None:
    serving, trusting = tls_pair(authority, "other.test")
    with WebServer(answer, tls=serving) as server, pytest.raises(FetchError, match="certificate"):
        url = f"https://media.test:{server.port}/v.mp4"
        get(url, target, (server.port,), resolver=Stub(media_test=[[GOOD]]), trust=trusting)
    assert server.seen == []


# --- what is given up


def drip(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    for _ in range(200):
        request.wfile.write(b"x")
        time.sleep(0.05)


def endless(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(VIDEO)


def endless_headers(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        request.wfile.write(b"X-More: " + b"y" * 4000 + b"\r\n")


def endless_line(request: BaseHTTPRequestHandler) -> None:
    while True:
        request.wfile.write(b"HTTP/1.1 200 " + b"y" * 4000)


def endless_hints(request: BaseHTTPRequestHandler) -> None:
    while True:
        request.wfile.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")


def silent(_: BaseHTTPRequestHandler) -> None:
    time.sleep(3)


def half(request: BaseHTTPRequestHandler) -> None:
    answer(request, VIDEO, length=2 * len(VIDEO))


def stops(request: BaseHTTPRequestHandler) -> None:
    answer(request, b"x", length=10)
    time.sleep(3)


def garbage(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")


def packed(request: BaseHTTPRequestHandler) -> None:
    answer(request, zlib.compress(VIDEO), Content_Encoding="deflate")


HASTY = FetchLimits(
    4 << 20,
    Patience(silence_seconds=0.5, bytes_per_second=1000, window_seconds=0.5, total_seconds=2),
    answer_seconds=0.5,
)


@pytest.mark.parametrize(
    ("respond", "reason"),
    [
        (silent, "did not answer in time|silent for 0.5 s"),
        (stops, "silent for 0.5 s"),
        (drip, "bytes a second, at least 1000 needed"),
        (endless_headers, "does not speak HTTP"),
        (endless_line, "does not speak HTTP"),
        (endless_hints, "did not answer in time"),
        (garbage, "does not speak HTTP"),
        (half, "broke off"),
        (packed, "compressed body"),
        (answer, "is empty"),
        (lambda request: answer(request, b"no", status=404), "HTTP 404"),
        (lambda request: answer(request, b"no", status=429), "HTTP 429"),
        (lambda request: answer(request, b"part", status=206), "HTTP 206"),
        (lambda request: answer(request, b"", status=302), "without saying where"),
    ],
)
def test_faulty_server_is_given_up_with_the_reason(
    respond: Callable[[BaseHTTPRequestHandler], None], reason: str, target: Path
) -> None:
    began = time.monotonic()
    with WebServer(respond) as server, pytest.raises(FetchError, match=reason) as error:
        get(server.url, target, (server.port,), limits=HASTY)
    assert time.monotonic() - began < 5
    assert GOOD not in error.value.reason
    assert isinstance(error.value, NotGivenError) == (reason == "HTTP 404")  # which a later try would hear again
    assert not target.exists()


def test_whole_time_is_bounded_however_steadily_bytes_come(target: Path) -> None:
    limits = FetchLimits(1 << 40, Patience(silence_seconds=5, bytes_per_second=1, total_seconds=0.5))
    with WebServer(endless) as server, pytest.raises(FetchError, match=r"took longer than 0.5 s"):
        get(server.url, target, (server.port,), limits=limits)


@pytest.mark.parametrize(
    "respond",
    [endless, lambda request: answer(request, b"x", length=10 << 20), lambda request: answer(request, VIDEO * 8)],
    ids=["endless", "length says so", "whole"],
)
def test_body_over_the_limit_is_refused(respond: Callable[[BaseHTTPRequestHandler], None], target: Path) -> None:
    with WebServer(respond) as server, pytest.raises(TooLargeError, match="4,194,304 bytes") as error:
        get(server.url, target, (server.port,))
    assert error.value.thing == server.url


def test_absent_servers_and_names_are_told_without_addresses(target: Path) -> None:
    with WebServer(answer) as server:
        port = server.port
    with pytest.raises(FetchError, match="takes no connections") as error:
        get(f"http://media.test:{port}/", target, (port,), resolver=Stub(media_test=[[GOOD]]))
    assert GOOD not in str(error.value)
    for stub in (Stub(), Stub(media_test=[[]])):
        with pytest.raises(FetchError, match="name that is not known"):
            get("http://media.test/", target, (80,), resolver=stub)


def test_name_service_that_never_answers_is_given_up(target: Path) -> None:
    class Stuck(Stub):
        async def resolve(self, *_: object) -> list[ResolveResult]:
            await asyncio.sleep(60)
            return []

    with pytest.raises(FetchError, match=r"did not answer in time|silent"):
        get("http://media.test/", target, (80,), resolver=Stuck(), limits=HASTY)


def test_slow_disk_slows_the_server_down(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server has sent beyond what is written is the sockets' buffers and the spool's, not the file."""
    sent = [0]
    gate = threading.Event()

    def write(file: int, block: memoryview) -> int:
        gate.wait(10)
        return os.write(file, block)

    def respond(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(64 << 20))
        request.end_headers()
        for _ in range(64):
            request.wfile.write(VIDEO)
            sent[0] += len(VIDEO)

    monkeypatch.setattr(fetch_module, "Spool", lambda path, most: Spool(path, most, write))

    async def run(url: str, port: int) -> int:
        async with GuardedClient(NETWORKS, (port,)) as client:
            task = asyncio.create_task(client.fetch(url, target, FetchLimits(64 << 20)))
            before = -1
            while before != sent[0] or not before:
                before = sent[0]
                await asyncio.sleep(0.3)
            gate.set()
            await task
            return before

    with WebServer(respond) as server:
        held = asyncio.run(run(server.url, server.port))
    assert held < 16 << 20  # Linux gives a loopback connection up to 4 + 6 MiB
    assert target.stat().st_size == 64 << 20


def test_cancelled_fetch_ends_and_leaves_nothing(target: Path) -> None:
    async def run(url: str, port: int, wait: float) -> None:
        async with GuardedClient(NETWORKS, (port,)) as client:
            task = asyncio.create_task(client.fetch(url, target, FetchLimits(1 << 40)))
            while not list(target.parent.iterdir()):
                await asyncio.sleep(0.001)
            await asyncio.sleep(wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with WebServer(endless) as server:
        for attempt in range(20):  # at each point of a write
            asyncio.run(run(server.url, server.port, attempt / 1000))
            assert list(target.parent.iterdir()) == []


# --- posting


def test_post_sends_the_body_and_follows_nothing(canary: Canary) -> None:
    where = f"http://127.0.0.1:{canary.port}/"

    async def run(url: str, port: int) -> Answer:
        async with GuardedClient(NETWORKS, (port, canary.port)) as client:
            with pytest.raises(TroupeError):
                await client.post(where, b"{}", {})
            return await client.post(url, b'{"a":1}', {"webhook-id": "m"})

    with WebServer(lambda request: answer(request, status=307, Location=where, Retry_After="7")) as server:
        assert asyncio.run(run(server.url, server.port)) == Answer(307, 7.0)
    assert [(seen.method, seen.body) for seen in server.seen] == [("POST", b'{"a":1}')]
    assert server.seen[0].headers["webhook-id"] == "m"
    assert canary.hits == 0
