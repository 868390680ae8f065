"""Hosts that may be called: patterns, what an address is, and whether the two agree. Pure: nothing is resolved.

What a name leads to is the operator's affair, who listed it; so no pattern stands for every name. Addresses that lead to the
machine's own metadata service, to nobody or to many are refused whatever is listed. Source: RFC 3927, RFC 4291, RFC 1918,
RFC 6598; WHATWG URL, "ends in a number" for names that some resolvers read as addresses.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from runtime.errors import Code, PenstockError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_URL = re.compile(r"(?P<scheme>https?)://(?P<host>\[[0-9a-fA-F:.]+\]|[\w.-]+)(:(?P<port>[0-9]{1,5}))?(/[\w.~%:+-]*)*", re.ASCII)
"""Stricter than any URL parser, so that none can read another host out of it."""

_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)")
_SHARED = ipaddress.ip_network("100.64.0.0/10")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class HostRefused(PenstockError, code=Code.FAILED_PRECONDITION, reason="UPSTREAM_HOST_REFUSED"):
    """This worker does not call that host."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model's base_url leads."""

    host: str
    port: int
    plain_http: bool
    address: Address | None
    """Where the host is one."""

    @property
    def private(self) -> bool:
        """What is sent there without TLS stays on this machine or in its own network."""
        if self.address is None:
            return is_loopback(self)
        return self.address.is_private or (self.address.version == 4 and self.address in _SHARED)


@dataclass(frozen=True, slots=True)
class HostPattern:
    """One of: a name, every name below one, a range of addresses."""

    name: str = ""
    below: bool = False
    network: Network | None = None
    port: int | None = None
    plain_http: bool = False


def origin_of(base_url: str, where: str) -> Origin:
    """Raises HostRefused for what is no plain http(s) URL, or leads to an address that no upstream has."""
    match = _URL.fullmatch(base_url)
    port = int(match["port"] or _DEFAULT_PORTS[match["scheme"]]) if match else 0
    if match is None or not 0 < port < 65536:
        raise HostRefused(f"{where} has base_url {base_url[:200]!r}; https://host/path is expected, without a user or a query")
    host = match["host"].strip("[]").rstrip(".").lower()
    address = _address(host)
    if address is None and (not _NAME.fullmatch(host) or _NUMBER.fullmatch(host.rsplit(".", 1)[-1])):
        raise HostRefused(f"{where} calls {host[:200]!r}, which is neither a name nor an address as it is usually written")
    origin = Origin(host, port, match["scheme"] == "http", address)
    if address is not None and (fault := _never(address)):
        raise HostRefused(f"{where} calls {host!r}, {fault}; no upstream model is called there")
    return origin


def parse_pattern(text: str, where: str) -> HostPattern:
    """Raises HostRefused for what is no pattern."""
    rest = text.strip().lower()
    plain_http = rest.startswith("http://")
    rest = rest.removeprefix("http://").removeprefix("https://")
    network = _network(rest)
    if network is not None:
        return HostPattern(network=network, plain_http=plain_http)
    host, port = _split_port(rest)
    network = _network(host)
    if network is not None:
        return HostPattern(network=network, port=port, plain_http=plain_http)
    below = host.startswith("*.")
    name = host.removeprefix("*.").rstrip(".")
    if not _NAME.fullmatch(name) or (below and "." not in name) or port == 0:
        raise HostRefused(
            f"{where} lists the host {text[:200]!r}; a name, '*.' and a name of two parts, an address or a range is expected,"
            " each with an optional port"
        )
    return HostPattern(name=name, below=below, port=port, plain_http=plain_http)


def allows(pattern: HostPattern, origin: Origin) -> bool:
    if pattern.port is not None and pattern.port != origin.port:
        return False
    if pattern.network is not None:
        return origin.address is not None and origin.address in pattern.network
    if pattern.below:
        return origin.host.endswith(f".{pattern.name}")
    return origin.host == pattern.name


def is_loopback(origin: Origin) -> bool:
    if origin.address is not None:
        return origin.address.is_loopback
    return origin.host == "localhost" or origin.host.endswith(".localhost")


def _address(host: str) -> Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped  # the same machine under another spelling
    return address


def _never(address: Address) -> str:
    if address.is_link_local:
        return "an address of the local link, where machines keep their own metadata and credentials"
    if address.is_unspecified:
        return "the address that stands for none"
    if address.is_multicast or (address.is_reserved and not address.is_loopback):
        return "an address that no machine has"
    return ""


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text.strip("[]"))
    except ValueError:
        return None


def _split_port(text: str) -> tuple[str, int | None]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or len(port) > 5:
        return text, None
    return host, int(port)
