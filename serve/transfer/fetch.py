"""The one client that asks addresses which strangers gave: for `video_url`, and for webhooks.

What a request goes to is decided three times from the same parsed URL: the text before anything is looked up
(`check_url`), every address that the name resolves to (a single one that is not allowed refuses the name), and the
address of each socket before it is opened. The name is looked up once for each connection and the connection goes to
what was checked, with the name still in Host and in TLS's SNI, so that a name which changes its answer gains nothing.
Redirects are followed by hand, each checked like the first URL. No proxy, cookie or credential of the environment is
used, and no connection is used twice.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from ssl import SSLContext
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from cluster.errors import TroupeError
from serve.transfer.addresses import (
    WEB_PORTS,
    Network,
    RefusedURLError,
    check_url,
    is_allowed,
    literal_address,
    not_public,
    parse_networks,
    shown_url,
)
from serve.transfer.pace import Pace, Patience, TooSlowError
from serve.transfer.spool import Spool, TooLargeError

log = logging.getLogger(__name__)

_CHUNK = 1 << 18
_LOOKUPS = 4  # threads that resolve names; a name server that never answers holds one for half a minute
_MOST_ADDRESSES = 8  # of one name that are tried
_PASSING = frozenset({408, 429})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class FetchError(TroupeError):
    """What a URL names could not be had; the text tells no address and nothing that the server said."""


class NotGivenError(FetchError):
    """The server answered that it does not give it: another try is answered the same."""


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What fetching one URL may cost.

    Attributes:
        max_bytes: size of the body.
        patience: silence, least rate and the whole time, redirects included.
        answer_seconds: from the start of one request to the end of its response's headers.
        redirects: most redirects followed.
    """

    max_bytes: int
    patience: Patience = field(default_factory=lambda: Patience(total_seconds=600.0))
    answer_seconds: float = 30.0
    redirects: int = 5


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that arrived whole. `url` is where it came from in the end, as `shown_url` gives it."""

    path: Path
    bytes: int
    sha256: str
    url: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a POST was answered with: status, and seconds from Retry-After where it gave them."""

    status: int
    retry_after: float | None


class SystemResolver(AbstractResolver):
    """The system's name service, asked from threads of its own, so that a slow one holds up nobody else."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="resolve")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        )
        return [
            ResolveResult(
                hostname=host, host=str(where[0]), port=port, family=kind, proto=proto, flags=socket.AI_NUMERICHOST
            )
            for kind, _, proto, _, where in found
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class _CheckedResolver(AbstractResolver):
    """Answers of another resolver, when all of them are allowed."""

    def __init__(self, inner: AbstractResolver, networks: Sequence[Network]) -> None:
        self._inner, self._networks = inner, networks

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        results = await self._inner.resolve(host, port, family)
        if not results:
            raise OSError(f"{host} has no address")
        for result in results:
            address = literal_address(result["host"])
            if address is None or not is_allowed(address, self._networks):
                log.warning("refused: %s resolves to %s", host, result["host"])
                raise not_public(host)
        # The connector tries one after the other, each for its connection timeout.
        return [{**result, "hostname": host, "port": port} for result in results[:_MOST_ADDRESSES]]

    async def close(self) -> None:
        await self._inner.close()


class GuardedClient:
    """Asks what strangers name, and only what is allowed. Used as `async with`, from one event loop.

    Args:
        networks: private networks that are allowed all the same, in CIDR notation.
        ports: ports that are allowed.
        resolver: what looks names up; the system's by default.
        ssl: another trust store than the system's.

    Raises:
        UsageError: a network is not one.
    """

    def __init__(
        self,
        networks: Iterable[str] = (),
        ports: Iterable[int] = WEB_PORTS,
        *,
        resolver: AbstractResolver | None = None,
        ssl: SSLContext | None = None,
    ) -> None:
        self._networks, self._ports = parse_networks(networks), tuple(ports)
        self._resolver, self._ssl = resolver, ssl

    async def __aenter__(self) -> Self:
        self._checked = _CheckedResolver(self._resolver or SystemResolver(), self._networks)
        connector = aiohttp.TCPConnector(
            resolver=self._checked,
            use_dns_cache=False,
            force_close=True,
            limit=0,  # the callers bound how many they start; a queue here would count against the peer's time
            socket_factory=self._socket,
            ssl=self._ssl or True,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            trust_env=False,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
            headers={"User-Agent": "Troupe", "Accept": "*/*", "Accept-Encoding": "identity"},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._session.close()
        await self._checked.close()

    def check(self, url: str) -> None:
        """Refuse at once what need not be looked up, for the answer to a request that names a URL.

        Raises:
            RefusedURLError: as `check_url`.
        """
        check_url(url, self._ports, self._networks)

    async def fetch(self, url: str, target: Path, limits: FetchLimits) -> Fetched:
        """The body of `url` as a new file at `target`, whole or not at all.

        Raises:
            RefusedURLError: the URL, or one that it redirects to, is not allowed.
            FetchError: it could not be had: the server is not there, answers otherwise (`NotGivenError` where it is
                not worth asking again), breaks off or is too slow.
            TooLargeError: it is larger than `limits.max_bytes`.
            SpoolError: the disk would not take it.
        """
        pace = Pace(limits.patience)
        where = check_url(url, self._ports, self._networks)
        for _ in range(limits.redirects + 1):
            async with self._asked("GET", where, pace, limits.answer_seconds) as response:
                if response.status not in _REDIRECTS:
                    return await _body(response, where, target, limits, pace)
                where = self._redirected(where, response.headers.get("Location"))
        raise FetchError(shown_url(url), f"redirects more than {limits.redirects} times")

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], *, seconds: float = 20.0) -> Answer:
        """Send `body`; the answer's own body is not read, and a redirect is an answer like any other.

        Raises:
            RefusedURLError: the URL is not allowed.
            FetchError: no answer within `seconds`.
        """
        where = check_url(url, self._ports, self._networks)
        pace = Pace(Patience(silence_seconds=seconds, total_seconds=seconds))
        async with self._asked("POST", where, pace, seconds, data=body, headers=dict(headers)) as response:
            return Answer(response.status, _seconds(response.headers.get("Retry-After")))

    @asynccontextmanager
    async def _asked(
        self, method: str, url: URL, pace: Pace, seconds: float, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, answered; closed with its connection whatever comes of it."""
        request = self._session.request(method, url, allow_redirects=False, **options)
        try:
            async with asyncio.timeout(seconds):
                response = await pace.wait(request)
        except RefusedURLError:
            raise
        except (aiohttp.ClientError, TooSlowError, TimeoutError, OSError, ValueError) as error:
            raise _failure(url, error) from error
        try:
            yield response
        except (aiohttp.ClientError, TooSlowError, ConnectionError) as error:
            raise _failure(url, error) from error
        finally:
            response.close()

    def _redirected(self, url: URL, location: str | None) -> URL:
        if not location:
            raise FetchError(shown_url(url), "redirects without saying where to")
        try:
            following = str(url.join(URL(location)))
        except ValueError as error:
            raise RefusedURLError(shown_url(url), "redirects to what is not a URL") from error
        if any(character <= " " or character in "\\\x7f" for character in location):
            raise RefusedURLError(shown_url(url), "redirects to what is not a URL")
        return check_url(following, self._ports, self._networks)

    def _socket(self, info: tuple[Any, ...]) -> socket.socket:
        """The last door: a socket to an address that was checked, whichever way the connector came by it."""
        family, kind, protocol, _, where = info
        address = literal_address(str(where[0]))
        if address is None or not is_allowed(address, self._networks) or (len(where) == 4 and where[3]):
            raise not_public("the URL")
        return socket.socket(family, kind, protocol)


async def _body(response: aiohttp.ClientResponse, url: URL, target: Path, limits: FetchLimits, pace: Pace) -> Fetched:
    name = shown_url(url)
    if response.status != 200:
        definite = 400 <= response.status < 500 and response.status not in _PASSING
        raise (NotGivenError if definite else FetchError)(name, f"answers with HTTP {response.status}")
    if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise FetchError(name, "sends a compressed body though none was asked for")
    if (response.content_length or 0) > limits.max_bytes:  # to fail early; what comes is counted all the same
        raise TooLargeError(name, f"is over the size limit of {limits.max_bytes:,} bytes")
    async with Spool(target, limits.max_bytes) as spool:
        while piece := await pace.wait(response.content.read(_CHUNK), len):
            try:
                await spool.write(piece)
            except TooLargeError as error:
                raise TooLargeError(name, error.reason) from error
        if not spool.bytes:
            raise FetchError(name, "is empty")
        stored = await spool.finish()
    return Fetched(stored.path, stored.bytes, stored.sha256, name)


def _failure(url: URL, error: Exception) -> FetchError:
    """What went wrong in words of ours: the library's texts hold addresses."""
    log.info("%s: %s: %s", shown_url(url), type(error).__name__, error)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        reason = "has a name that is not known"
    elif isinstance(error, aiohttp.ClientSSLError):
        reason = "has no valid certificate, or speaks no TLS"
    elif isinstance(error, TooSlowError):
        reason = str(error)
    elif isinstance(error, TimeoutError):
        reason = "did not answer in time"
    elif isinstance(error, aiohttp.ClientConnectorError):
        reason = "takes no connections"
    elif isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError | ConnectionError):
        reason = "broke off"
    else:
        reason = "does not speak HTTP as it should"
    return FetchError(shown_url(url), reason)


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; its other form, a date, is not used by those who throttle."""
    return float(header) if header and header.isascii() and header.isdigit() and len(header) < 10 else None
