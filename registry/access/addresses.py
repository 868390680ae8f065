"""Where a call comes from, for limits by address. Never says who calls."""

from __future__ import annotations

import ipaddress
from urllib.parse import unquote

_NOWHERE = "unknown"
_IPV6_SITE_BITS = 64  # what one subscriber has at least: RFC 6177


def address_of(peer: str, forwarded_for: str = "") -> str:
    """The host of a gRPC peer such as `ipv4:10.0.0.1:443`; the last of `x-forwarded-for` where a trusted proxy wrote one.

    IPv6 addresses of one /64 are one: whoever has one has all of them.
    """
    family, _, rest = peer.partition(":")
    host = unquote(rest).rpartition(":")[0].strip("[]") if family in ("ipv4", "ipv6") else ""
    return _site(forwarded_for.rpartition(",")[2].strip() or host)


def _site(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return _NOWHERE
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped or ipaddress.ip_network((int(address), _IPV6_SITE_BITS), strict=False))
    return str(address)
