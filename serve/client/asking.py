"""Asking a Troupe server over HTTP, again and again until it answers."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import random
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from cluster.errors import UsageError
from serve.client.refusals import AGAIN, FULL, NO_TROUPE, ServiceError, refusal_of, seconds_of

T = TypeVar("T")

_CONNECT_SECONDS = 15.0
#: Longest wait for the word to send a body (100 Continue). Some proxies forget to pass it on: then it is done without.
_WORD_SECONDS = 30.0
#: Longest time in which nothing moves: the server may be writing a large upload to a slow disk.
SILENCE_SECONDS = 120.0
#: Patience with a server that never answered yet: most likely its address is wrong.
_STRANGER_SECONDS = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
#: Each pause is up to so many times as long, lest all who were refused together come back together.
_SPREAD = 1.25
_TELLING = 2  # failures in a row; a single one is nobody's concern
_MOST_BYTES = 64 << 20  # of an answer that is no file; a page of 500 tasks has about one
#: Answers of proxies that do not know what became of a request.
_UNKNOWN = frozenset({502, 504})


class AgainError(Exception):
    """This attempt failed, another one may not.

    Args:
        reason: a clause about the server.
        pause: seconds until then, as the server said.
        refusal: what to raise when patience ends, where the server gave a reason of its own.
        moved: whether the attempt got further than those before it.
    """

    def __init__(
        self, reason: str, *, pause: float | None = None, refusal: ServiceError | None = None, moved: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason, self.pause, self.refusal, self.moved = reason, pause, refusal, moved


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request was answered: status, headers and the JSON object of its body, empty where it had none."""

    status: int
    headers: Mapping[str, str]
    body: dict[str, Any]


#: Makes the body of one attempt: files that it opens go on the stack, and each piece sent is told to the callable.
Fill = Callable[[ExitStack, Callable[[], None]], Mapping[str, Any]]


class Asker:
    """Asks one server, from one event loop.

    Args:
        server: its address; paths are below it.
        token: empty for none.
        patience_s: how long it may be away at a stretch before it is given up.
        away: told why, when it did not answer twice.

    Raises:
        UsageError: the address or the token cannot be one.
    """

    def __init__(self, server: str, token: str, patience_s: float, away: Callable[[str], None] | None = None) -> None:
        self._base = _address(server)
        self._headers = {"User-Agent": "troupe", "Accept-Encoding": "identity"} | _bearer(token)
        self._patience, self._told = patience_s, away
        self._met = False
        self._waits_for_word = True
        self._session: aiohttp.ClientSession | None = None

    @property
    def server(self) -> str:
        """The address, for people."""
        return str(self._base).rstrip("/")

    async def close(self) -> None:
        """Closes all connections."""
        if self._session is not None:
            await self._session.close()

    async def ask(
        self,
        method: str,
        path: str,
        *,
        thing: str = "",
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        fill: Fill | None = None,
        done_if_lost: Collection[str] = (),
    ) -> Answer:
        """One request, answered; sent again while the server is away, too busy or restarting.

        Args:
            method, path, params, headers: of the request.
            thing: what it is about, for errors; the server by default.
            fill: makes its body.
            done_if_lost: codes that mean, after an attempt whose answer was lost, that the attempt did it; the answer
                is without a body then.

        Raises:
            ServiceError: the server refuses it, is none of Troupe's, or was away for too long.
        """
        lost = False

        async def attempt() -> Answer:
            nonlocal lost
            try:
                return await self._exchange(method, path, thing, params, headers or {}, fill)
            except AgainError as error:
                lost = lost or error.refusal is None or error.refusal.status in _UNKNOWN
                raise

        try:
            return await self.persist(attempt)
        except ServiceError as error:
            if lost and error.code in done_if_lost:
                return Answer(error.status, {}, {})
            raise

    async def persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What `attempt` returns, repeated with growing pauses while it raises AgainError, within the patience; a
        server that has enough to do for now is waited for until it has room.

        Raises:
            ServiceError: patience is at its end.
        """
        since, pause, failures = None, _FIRST_PAUSE, 0
        while True:
            try:
                return await attempt()
            except AgainError as error:
                now = time.monotonic()
                if since is None or error.moved:
                    since, pause, failures = now, _FIRST_PAUSE, 0
                failures += 1
                patience = self._patience if self._met else min(self._patience, _STRANGER_SECONDS)
                wait, until = max(pause, error.pause or 0.0), f"for up to {patience:g} s"
                if error.refusal is not None and error.refusal.code in FULL:
                    since, until = now, "until there is room"
                elif now + wait - since > patience:
                    raise error.refusal or self._away(error.reason, now - since) from error
                if failures == _TELLING and self._told is not None:
                    self._told(f"{self.server}: {error.reason}; asked again {until}")
            await asyncio.sleep(wait * random.uniform(1, _SPREAD))
            pause = min(2 * pause, _LONGEST_PAUSE)

    @contextmanager
    def talking(self) -> Iterator[None]:
        """Turns what goes wrong with a connection into AgainError, or into ServiceError where no patience helps."""
        try:
            yield
        except aiohttp.ClientSSLError as error:
            raise ServiceError(
                self.server,
                "has no valid certificate, or speaks no TLS",
                remedy="check https:// and http:// in the address; SSL_CERT_FILE names further authorities",
            ) from error
        except aiohttp.ClientConnectorError as error:
            known = not isinstance(error, aiohttp.ClientConnectorDNSError)
            reason = "takes no connections" if known else "has a name that is not known"
            if not self._met:
                raise ServiceError(
                    self.server, reason, remedy=f"start it there with `troupe up`, or {NO_TROUPE}"
                ) from error
            raise AgainError(reason) from error
        except TimeoutError as error:
            raise AgainError("does not answer in time") from error
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError) as error:
            raise AgainError("broke the connection off") from error
        except aiohttp.ClientError as error:
            raise ServiceError(self.server, "does not speak HTTP as it should", remedy=NO_TROUPE) from error

    @asynccontextmanager
    async def request(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, answered. Redirects are not followed, for the token's sake."""
        if self._session is None:
            # Silence is bounded by whoever asks: aiohttp's bound on reading runs while a body is being sent too.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS)
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                timeout=timeout,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                proxy=_proxy(self._base),
            )
        asked = self._session.request(method, self._base / path, allow_redirects=False, **options)
        async with asked as response:
            self._met = True
            yield response

    async def read(self, response: aiohttp.ClientResponse, thing: str = "") -> Answer:
        """The answer of a request, read whole.

        Raises:
            AgainError: it may be another one soon.
            ServiceError: it is a refusal, or none of Troupe's.
        """
        raw = bytearray()
        async for piece in response.content.iter_any():
            raw += piece
            if len(raw) > _MOST_BYTES:
                raise ServiceError(self.server, "sends an answer without end", remedy=NO_TROUPE)
        body, status, headers = _object(bytes(raw)), response.status, response.headers
        if status in (204, 304) or (200 <= status < 300 and body is not None):
            return Answer(status, headers, body or {})
        refusal = refusal_of(self.server, status, headers, body, thing)
        if status in AGAIN or refusal.code == "key_busy":
            raise AgainError(refusal.reason, pause=seconds_of(headers), refusal=refusal)
        raise refusal

    async def _exchange(
        self,
        method: str,
        path: str,
        thing: str,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        fill: Fill | None,
    ) -> Answer:
        loop = asyncio.get_running_loop()
        sending = over = False
        with self.talking(), ExitStack() as stack:
            async with asyncio.timeout(None) as bound:

                def prolong() -> None:
                    nonlocal sending
                    self._met = sending = True
                    if not over and not bound.expired():
                        bound.reschedule(loop.time() + SILENCE_SECONDS)

                options = {} if fill is None else dict(fill(stack, lambda: _called(loop, prolong)))
                # With a word before it, a body that is refused is not sent, and the refusal is not lost in a connection
                # that the server closes.
                waits = "data" in options and self._waits_for_word
                bound.reschedule(loop.time() + (_WORD_SECONDS if waits else SILENCE_SECONDS))
                try:
                    async with self.request(
                        method, path, params=params, headers=headers, expect100=waits, **options
                    ) as response:
                        prolong()
                        return await self.read(response, thing)
                finally:
                    over = True
                    self._waits_for_word = self._waits_for_word and (sending or not waits or not bound.expired())

    def _away(self, reason: str, seconds: float) -> ServiceError:
        for_long = f" for {seconds:.0f} s" if seconds >= 1 else ""
        return ServiceError(
            self.server,
            f"{reason}{for_long}",
            remedy="see whether it runs, and run the command again; tasks that it accepted go on by themselves",
        )


def is_url(video: object) -> bool:
    """Whether a video is a URL, which the server fetches, and not a file."""
    return isinstance(video, str) and video.lower().startswith(("http://", "https://"))


def _address(server: str) -> URL:
    refused = UsageError(
        f"server {server!r}", "is not an http or https address", remedy="write it like http://127.0.0.1:8000"
    )
    try:
        url = URL(server.strip())
        fine = url.scheme in ("http", "https") and url.host and not url.query_string and not url.fragment and url.port
    except ValueError as error:
        raise refused from error
    if not fine:
        raise refused
    if url.user is not None or url.password is not None:
        raise UsageError("server", "has a user in its address", remedy="give a token with --token or TROUPE_TOKEN")
    return url


def _bearer(token: str) -> dict[str, str]:
    token = token.strip()
    if not token:
        return {}
    if not all("!" <= character <= "~" for character in token):
        raise UsageError(
            "token", "has characters that no token has", remedy="give it as `troupe tokens new` printed it"
        )
    return {"Authorization": f"Bearer {token}"}


def _proxy(base: URL) -> str | None:
    """That of the environment, as users behind one expect; never for this machine itself.

    Not by aiohttp's `trust_env`, which also takes credentials from .netrc, in place of the token.
    """
    host = base.host or ""
    if host == "localhost" or _is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(base.scheme)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _called(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    """From the thread that reads a file; the loop may be gone by then."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(what)


def _object(raw: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
