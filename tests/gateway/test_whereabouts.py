"""From which address a call comes, and in which region that is: on real ports, by real certificates."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from gateway.whereabouts import MAX_REMEMBERED, Whereabouts, caller_address, peer_address
from runtime.channel import inner_channel
from runtime.geolocation import Geolocation, overrides_of
from runtime.identity import Authority, Role
from runtime.ids import Region
from runtime.serving import Listen, serving
from tests.support.manual_clock import ManualClock

EUROPE, ASIA = Region("europe"), Region("asia")
HOPS = "6.6.6.6, 9.9.9.9, 203.0.113.7"


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.7:4711", "192.0.2.7"),
        ("ipv6:%5B2001:db8::7%5D:4711", "2001:db8::7"),
        ("ipv6:[2001:db8::7]:4711", "2001:db8::7"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:4711", "::ffff:192.0.2.7"),
        ("ipv6:%5Bfe80::1%25eth0%5D:4711", "fe80::1"),
        ("unix:/run/penstock.sock", ""),
        ("", ""),
    ],
)
def test_a_connection_is_named_by_grpc(peer: str, address: str) -> None:
    assert peer_address(peer) == address


@dataclass
class Door:
    """A server that answers with the address it takes its caller to have."""

    authority: Authority
    folder: Path
    ports: tuple[int, ...] = ()
    proxies: int = 0

    def register(self, server: grpc.aio.Server) -> None:
        async def ask(_: bytes, context: Any) -> bytes:
            headers: dict[str, str | bytes] = dict(context.invocation_metadata() or ())
            return caller_address(context, headers, self.proxies).encode()

        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {"Ask": grpc.unary_unary_rpc_method_handler(ask)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Door", handlers),))

    async def ask(self, role: Role | None, *forwarded: str) -> str:
        edge, inner = (f"127.0.0.1:{port}" for port in self.ports)
        if role is None:
            channel = grpc.aio.insecure_channel(edge)
        else:
            channel = inner_channel(inner, self.authority.enrol(self.folder / role.value, role), Role.GATEWAY)
        async with channel:
            call: Any = channel.unary_unary("/test.Door/Ask", None, None)
            return bytes(await call(b"", metadata=[("x-forwarded-for", each) for each in forwarded], timeout=10)).decode()


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    authority = Authority.open(tmp_path / "ca")
    made = Door(authority, tmp_path)
    listens = [Listen("127.0.0.1", 0), Listen("127.0.0.1", 0, authority.enrol(tmp_path / "own", Role.GATEWAY))]
    async with serving(listens, [made.register], [], drain_grace_s=0.1) as running:
        made.ports = running.ports
        yield made


async def test_envoy_is_believed_whom_it_was_called_by(door: Door) -> None:
    assert await door.ask(Role.ENVOY, HOPS) == "203.0.113.7"
    assert await door.ask(Role.ENVOY, "2001:db8::7") == "2001:db8::7"
    assert await door.ask(Role.ENVOY) == ""
    assert await door.ask(Role.ENVOY, " , ") == ""
    assert await door.ask(Role.ENVOY, "9" * 2_000) == ""


@pytest.mark.parametrize("role", [None, Role.OPERATOR, Role.GATEWAY])
async def test_nobody_else_is(door: Door, role: Role | None) -> None:
    assert await door.ask(role, HOPS) == "127.0.0.1"


@pytest.mark.parametrize(("proxies", "address"), [(1, "9.9.9.9"), (2, "6.6.6.6"), (3, "6.6.6.6"), (16, "6.6.6.6")])
async def test_trusted_proxies_before_envoy_are_passed_over(door: Door, proxies: int, address: str) -> None:
    door.proxies = proxies
    assert await door.ask(Role.ENVOY, HOPS) == address


class Book(Geolocation):
    """Counts how often it is asked."""

    asked = 0

    def region_of(self, address: str) -> Region | None:
        self.asked += 1
        return super().region_of(address)


def book() -> Book:
    return Book(EUROPE, ManualClock(), overrides=overrides_of("203.0.113.0/24=asia,198.51.100.0/24=africa"))


def test_a_callers_region_counts_where_workers_are() -> None:
    known, inhabited = book(), {EUROPE, ASIA}
    where = Whereabouts(known, lambda: inhabited)
    assert where.region_of("203.0.113.7") == ASIA
    assert where.region_of("198.51.100.7") is None, "nobody is in africa"
    assert where.region_of("10.0.0.1") == EUROPE
    assert where.region_of("what a proxy may write") is None
    inhabited.remove(ASIA)
    assert where.region_of("203.0.113.7") is None


def test_addresses_are_looked_up_once_and_anew_in_a_new_file() -> None:
    known = book()
    where = Whereabouts(known, lambda: {ASIA})
    for _ in range(3):
        where.region_of("203.0.113.7")
        where.region_of("8.8.8.8")
    assert known.asked == 2
    known.editions += 1
    where.region_of("203.0.113.7")
    assert known.asked == 3


def test_no_more_addresses_are_remembered_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_REMEMBERED < 100_000
    monkeypatch.setattr("gateway.whereabouts.MAX_REMEMBERED", 8)
    known = book()
    where = Whereabouts(known, lambda: {ASIA})
    for number in range(100):
        assert where.region_of(f"203.0.113.{number}") == ASIA
        assert len(where._remembered) <= 8
    for number in range(97, 100):
        where.region_of(f"203.0.113.{number}")
    assert known.asked == 100
