"""Where a caller is: the address that its call comes from, and the region of that address.

The address is the connection's own. Of a call that Envoy brought it is the one that Envoy was called from: Envoy appends it to
x-forwarded-for (`use_remote_address` in `gateway.xds.listener`). Only Envoy is believed that, by its certificate: on the edge
port anybody may write the header. Owns what was looked up; there is never more of it than a bound. Never decides what follows
from a region: `gateway.regions` does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol
from urllib.parse import unquote

from gateway.callers import Context
from runtime.errors import InvalidArgument
from runtime.identity import Role
from runtime.ids import Region
from runtime.serving import RoleRequired, inner_peer

FORWARDED = "x-forwarded-for"
MAX_REMEMBERED = 65_536
_ADDRESS_CHARACTERS = 64
"""More than any IP address has; what is remembered is bounded in its length, too."""


class Lookup(Protocol):
    """Knows where addresses are: runtime.geolocation.Geolocation."""

    @property
    def editions(self) -> int: ...

    def region_of(self, address: str) -> Region | None: ...


class Whereabouts:
    """Belongs to one event loop. `inhabited` tells in which regions workers are now."""

    def __init__(self, lookup: Lookup, inhabited: Callable[[], Collection[Region]]) -> None:
        self._lookup, self._inhabited = lookup, inhabited
        self._remembered: dict[str, Region | None] = {}
        self._edition = lookup.editions

    def region_of(self, address: str) -> Region | None:
        """The region of this caller; None where nobody knows it, or no worker is there."""
        region = self._looked_up(address)
        return region if region in self._inhabited() else None

    def _looked_up(self, address: str) -> Region | None:
        if self._edition != self._lookup.editions:
            self._edition = self._lookup.editions
            self._remembered.clear()
        try:
            return self._remembered[address]
        except KeyError:
            if len(self._remembered) >= MAX_REMEMBERED:  # whoever calls again is soon back
                self._remembered.clear()
            found = self._remembered[address] = _found(self._lookup, address)
            return found


def caller_address(context: Context, headers: Mapping[str, str | bytes], proxies_before_envoy: int = 0) -> str:
    """From which IP address a call comes; empty where that is not known. `headers`: the call's metadata.

    `proxies_before_envoy`: so many trusted proxies stand before Envoy, each of which appended who called it.
    """
    if not _is_from_envoy(context):
        return peer_address(context.peer())
    hops = [each.strip() for each in str(headers.get(FORWARDED, "")).split(",") if each.strip()]
    address = hops[max(-1 - proxies_before_envoy, -len(hops))] if hops else ""
    return address if len(address) <= _ADDRESS_CHARACTERS else ""


def peer_address(peer: str) -> str:
    """The IP address of a connection as gRPC names its other end: `ipv4:1.2.3.4:5`, `ipv6:%5B::1%5D:5`; empty: it has none."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    return unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]


def _is_from_envoy(context: Context) -> bool:
    try:
        inner_peer(context, Role.ENVOY)
    except RoleRequired:
        return False
    return True


def _found(lookup: Lookup, address: str) -> Region | None:
    try:
        return lookup.region_of(address)
    except InvalidArgument:  # a proxy that names no address: nobody knows
        return None
