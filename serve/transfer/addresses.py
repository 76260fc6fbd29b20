"""Where a stranger's URL may lead: to public addresses, and to private ones that the operator listed.

Every form in which a private IPv4 address travels inside an IPv6 one is unwrapped first. Python 3.11's `is_global`
alone is not enough (measured): it passes multicast, `::127.0.0.1`, `64:ff9b::7f00:1`, `2002:7f00:1::` and `fec0::1`.
So an IPv6 address must also lie in 2000::/3, all that IANA has given out for the public network, and the ranges of
IANA's special-purpose registries on whose parts Python's versions differ are closed whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from yarl import URL

from cluster.errors import TroupeError, UsageError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

WEB_PORTS = (80, 443)

_LONGEST_URL = 4096  # signed addresses of object stores have about 1,500 characters
_PUBLIC6 = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052; prefixes of an operator's own cannot be known here
_CLOSED: tuple[Network, ...] = (
    IPv4Network("192.0.0.0/24"),  # protocol assignments: gateways' anycast, a cloud's metadata at .192
    IPv4Network("192.88.99.0/24"),  # 6to4 relays
    IPv4Network("168.63.129.16/32"),  # the host of a virtual machine at Azure, inside public space
    IPv6Network("2001::/23"),  # protocol assignments, Teredo among them
    IPv6Network("2001:db8::/32"),
    IPv6Network("3fff::/20"),  # documentation, younger than Python 3.11
)
#: Interface identifiers of ISATAP, whose last 32 bits are an IPv4 address (RFC 5214).
_ISATAP = (0x00005EFE, 0x02005EFE)
_HOST = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", re.ASCII)
#: A last label that the C library would read as (part of) an IPv4 address: decimal, octal or hexadecimal.
_NUMERIC_END = re.compile(r"(^|\.)(0x[0-9a-f]*|[0-9]+)\.?$", re.ASCII)


class RefusedURLError(TroupeError):
    """A URL, or what it leads to, is not allowed. Nothing was sent there; the text tells no address."""


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Networks in CIDR notation.

    Raises:
        UsageError: one is not, has bits set behind its prefix, or would open everything.
    """
    found: list[Network] = []
    for text in texts:
        try:
            network = ip_network(text)
        except ValueError as error:
            raise UsageError("allow_networks", str(error), remedy="write networks as 10.1.2.0/24") from error
        if network.prefixlen == 0:
            raise UsageError("allow_networks", f"{text} is every address", remedy="list the networks that you mean")
        found.append(network)
    return tuple(found)


def is_allowed(address: Address, networks: Sequence[Network] = ()) -> bool:
    """Whether a stranger's URL may lead to `address`: it is public, or in one of `networks`."""
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return False
        address = address.ipv4_mapped or address  # one host in two notations, so both are meant by a network
    return any(address in network for network in networks) or _is_public(address)


def _is_public(address: Address) -> bool:
    if any(address in network for network in _CLOSED):
        return False
    if isinstance(address, IPv4Address):
        return address.is_global and not (address.is_multicast or address.is_reserved)
    if address in _NAT64:
        return _is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    if address not in _PUBLIC6:
        return False
    if address.sixtofour is not None:  # which some versions of Python take for private, whatever is in it
        return _is_public(address.sixtofour)
    if not address.is_global:
        return False
    if int(address) >> 32 & 0xFFFFFFFF in _ISATAP:
        return _is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    return True


def shown_url(url: URL | str) -> str:
    """A URL for messages and logs: without credentials, query and fragment, which often hold secrets."""
    try:
        url = URL(url) if isinstance(url, str) else url
        if not url.scheme or not url.host:
            return "the URL"
        text = str(url.with_user(None).with_query(None).with_fragment(None))
    except ValueError:
        return "the URL"
    return text if len(text) <= 200 else f"{text[:200]}…"


def check_url(text: str, ports: Iterable[int] = WEB_PORTS, networks: Sequence[Network] = ()) -> URL:
    """The URL, if it may be asked as far as its text tells; names are judged by what they resolve to, later.

    The result is the object that the request is made with, so nobody parses the text a second time otherwise.

    Raises:
        RefusedURLError: not http or https, credentials, another port, a host that is no name and no canonical
            address, or an address that is not allowed.
    """
    name = shown_url(text)
    if len(text) > _LONGEST_URL:
        raise RefusedURLError(name, f"has {len(text):,} characters, allowed {_LONGEST_URL:,}")
    if "\\" in text or any(character <= " " or character == "\x7f" for character in text):
        raise RefusedURLError(name, "has a space, a control character or a backslash in it", remedy="percent-encode it")
    try:
        url = URL(text)
        host, port = (url.raw_host or "").lower(), url.port
    except ValueError as error:
        raise RefusedURLError(name, "is not a URL", remedy="give one like https://example.com/video.mp4") from error
    if url.scheme not in ("http", "https") or not host:
        raise RefusedURLError(name, "is not an http:// or https:// URL with a host")
    authority = text.split("/")[2]
    if url.raw_user is not None or url.raw_password is not None or "@" in re.split("[?#]", authority)[0]:
        raise RefusedURLError(name, "has credentials in it", remedy="leave out what stands before the @")
    if port not in (allowed := sorted(set(ports))):
        raise RefusedURLError(name, f"has port {port}, allowed {', '.join(map(str, allowed))}")
    address = literal_address(host)
    if address is not None:
        if not is_allowed(address, networks):
            raise not_public(name)
    elif "[" in authority or _NUMERIC_END.search(host):
        raise RefusedURLError(name, "has a host that is no canonical address", remedy="write it like 192.0.2.1")
    elif len(host) > 253 or not _HOST.fullmatch(host):
        raise RefusedURLError(name, "has a host that is no name and no address")
    return url


def not_public(name: str) -> RefusedURLError:
    """The same for a name and for an address, so that answers do not map a private network."""
    return RefusedURLError(
        name, "is not at a public address", remedy="the operator can list private networks in allow_networks"
    )


def literal_address(host: str) -> Address | None:
    """The address that `host` is, in canonical notation; None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None
