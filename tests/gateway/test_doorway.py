"""A gateway's place behind the edge: two of them on one in-memory etcd, and a stream that says what an Envoy says."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from xds import core_pb2, discovery_pb2, discovery_pb2_grpc, endpoint_pb2

from gateway import doorway as doorways
from gateway.config import GatewaySettings
from gateway.doorway import Doorway, doorway
from gateway.xds.servicer import SERVICE
from gateway.xds.snapshot import ResourceType
from gateway.xds.types import AddressUnusable
from runtime.channel import inner_channel
from runtime.clock import SystemClock
from runtime.errors import FailedPrecondition
from runtime.identity import Authority, Role
from runtime.ids import GATEWAYS_PREFIX
from runtime.memory_store import MemoryStore
from runtime.revocations import Revocations
from runtime.serving import Listen, serving

ENDPOINTS = ResourceType.ENDPOINTS.value


async def at_once() -> None:
    """The fleet is known."""


@dataclass(slots=True)
class Standing:
    """One gateway, and the port on which Envoys ask it."""

    door: Doorway
    port: int


@dataclass(slots=True)
class Street:
    """A region: its etcd, its authority, and what is open."""

    folder: Path
    store: MemoryStore
    stack: AsyncExitStack
    authority: Authority
    streams: list[Any] = field(default_factory=list)

    def settings(self, name: str = "gateway", **changes: Any) -> GatewaySettings:
        identity = self.authority.enrol(self.folder / name, Role.GATEWAY)
        envoy = self.authority.enrol(self.folder / "envoy", Role.ENVOY)
        known: dict[str, Any] = {
            "identity_dir": identity.folder,
            "scheduler_address": "127.0.0.1:1",
            "registry_address": "127.0.0.1:1",
            "http_port": 1,
            "envoy_identity_dir": envoy.folder,
            "drain_notice_s": 10.0,
        }
        return GatewaySettings(**{**known, **changes})

    @asynccontextmanager
    async def door(self, name: str = "gateway", *, number: int = 0, **changes: Any) -> AsyncIterator[tuple[Doorway, int]]:
        """A gateway whose ports are bound, and of which nobody was told."""
        settings = self.settings(name, **changes)
        identity = self.authority.enrol(settings.identity_dir, Role.GATEWAY)
        async with doorway(settings, identity, self.store, Revocations(), SystemClock(), process=number) as door:
            register = partial(discovery_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server, door.discovery)
            async with serving([Listen("127.0.0.1", 0, identity)], [register], (SERVICE,), drain_grace_s=0.5) as running:
                yield door, running.ports[0]

    @asynccontextmanager
    async def open(
        self, name: str = "gateway", *, warm: Callable[[], Awaitable[object]] = at_once, number: int = 0, **changes: Any
    ) -> AsyncIterator[Standing]:
        async with self.door(name, number=number, **changes) as (door, port):
            await door.begin(port, warm)
            yield Standing(door, port)

    async def asked(self, standing: Standing) -> Asking:
        identity = self.authority.enrol(self.folder / "envoy", Role.ENVOY)
        channel = inner_channel(f"127.0.0.1:{standing.port}", identity, Role.GATEWAY)
        await self.stack.enter_async_context(channel)
        stub: Any = discovery_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
        call = stub.StreamAggregatedResources()
        node = core_pb2.Node(id="edge-1")
        await call.write(discovery_pb2.DiscoveryRequest(type_url=ENDPOINTS, node=node, resource_names=["gateways"]))
        return Asking(call)


@dataclass(slots=True)
class Asking:
    """What an Envoy says on its stream."""

    call: Any

    async def told(self, *, accepts: bool = True) -> dict[int, bool]:
        """The next answer: ports of gateways, and whether they drain."""
        async with asyncio.timeout(20):
            answer = await self.call.read()
        assert isinstance(answer, discovery_pb2.DiscoveryResponse), answer
        if accepts:
            version, nonce = answer.version_info, answer.nonce
            names = ["gateways"]
            await self.call.write(
                discovery_pb2.DiscoveryRequest(
                    type_url=ENDPOINTS, version_info=version, response_nonce=nonce, resource_names=names
                )
            )
        found = endpoint_pb2.ClusterLoadAssignment()
        assert answer.resources[0].Unpack(found)
        return {
            one.endpoint.address.socket_address.port_value: one.health_status == core_pb2.DRAINING
            for locality in found.endpoints
            for one in locality.lb_endpoints
        }

    async def told_until(self, wanted: dict[int, bool]) -> None:
        """Skip what was so in between."""
        while await self.told() != wanted:
            pass


@pytest.fixture
async def street(tmp_path: Path) -> AsyncIterator[Street]:
    async with MemoryStore(rng=random.Random(1)) as store, AsyncExitStack() as stack:
        yield Street(tmp_path, store, stack, Authority.open(tmp_path / "ca"))


async def test_every_gateway_tells_of_all_of_its_region(street: Street) -> None:
    async with street.open("a") as first:
        envoy = await street.asked(first)
        assert await envoy.told() == {first.port: False}
        async with street.open("b") as second, street.open("b", number=1) as third:
            await envoy.told_until({first.port: False, second.port: False, third.port: False})
            other = await street.asked(third)
            await other.told_until({first.port: False, second.port: False, third.port: False})
        await envoy.told_until({first.port: False})


async def test_who_knows_no_fleet_yet_is_asked_when_nobody_else_is_there(street: Street) -> None:
    known = asyncio.Event()
    async with street.open("a") as first, street.open("b", warm=known.wait) as second:
        envoy, other = await street.asked(first), await street.asked(second)
        for each in (envoy, other):
            await each.told_until({first.port: False, second.port: True})
        known.set()
        for each in (envoy, other):
            await each.told_until({first.port: False, second.port: False})


async def test_nothing_is_told_before_etcd_was_read(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorways, "FIRST_LOOK_S", 60.0)
    async with street.open("a") as first:
        while not (await street.store.range(GATEWAYS_PREFIX)).items:
            await asyncio.sleep(0.01)
        street.store.go_away()
        async with street.door("b") as (door, port):
            beginning = asyncio.create_task(door.begin(port, at_once))
            envoy = await street.asked(Standing(door, port))
            await door.discovery.until(lambda seen: bool(seen.edges() and seen.edges()[0].node))
            assert not beginning.done()
            street.store.come_back()
            assert await envoy.told() == {first.port: False, port: False}
            await beginning


async def test_without_etcd_it_tells_of_itself_after_a_while(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorways, "FIRST_LOOK_S", 0.05)
    street.store.go_away()
    async with street.open() as alone:
        envoy = await street.asked(alone)
        assert await envoy.told() == {alone.port: False}


async def test_who_leaves_is_first_told_of_as_draining_and_ends_when_that_is_heard(street: Street) -> None:
    async with street.open("a") as staying, street.open("b") as leaving:
        own, others = await street.asked(leaving), await street.asked(staying)
        both = {staying.port: False, leaving.port: False}
        await own.told_until(both)
        await others.told_until(both)
        parting = asyncio.create_task(leaving.door.leave())
        assert await own.told(accepts=False) == {staying.port: False, leaving.port: True}
        await others.told_until({staying.port: False, leaving.port: True})
        assert not parting.done()
        own.call.cancel()  # an Envoy that is gone need not be waited for
        async with asyncio.timeout(20):
            await parting


async def test_after_leaving_streams_end_and_none_begins(street: Street) -> None:
    async with street.open() as leaving:
        envoy = await street.asked(leaving)
        await envoy.told()
        parting = asyncio.create_task(leaving.door.leave())
        await envoy.told()
        async with asyncio.timeout(20):
            await parting
            assert await envoy.call.read() is grpc.aio.EOF
            late = await street.asked(leaving)
            assert await late.call.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_envoy_that_never_answers_holds_nobody_up_for_longer_than_the_bound(street: Street) -> None:
    async with street.open(drain_notice_s=0.1) as leaving:
        envoy = await street.asked(leaving)
        await envoy.told()
        async with asyncio.timeout(20):
            await leaving.door.leave()


async def test_alone_it_leaves_at_once(street: Street) -> None:
    async with street.open(drain_notice_s=60.0) as leaving:
        async with asyncio.timeout(20):
            await leaving.door.leave()


async def test_without_envoy_nothing_is_told_to_envoys_but_it_is_told_of(street: Street) -> None:
    async with street.open("a") as first, street.open("b", http_port=None) as second:
        envoy = await street.asked(first)
        await envoy.told_until({first.port: False, second.port: False})


@pytest.mark.parametrize("advertise", ["10.0.0.9:7000", "[2001:db8::9]:7000"])
async def test_it_is_told_of_where_it_says(street: Street, advertise: str) -> None:
    async with street.open("a") as first, street.open("b", advertise=advertise):
        envoy = await street.asked(first)
        await envoy.told_until({first.port: False, 7000: False})


async def test_on_every_address_nobody_else_is_told_of_it(street: Street) -> None:
    async with street.open("a", host="0.0.0.0") as first, street.open("b") as second:
        envoy = await street.asked(second)
        await envoy.told_until({second.port: False})
        assert first.door.discovery.edges() == ()


async def test_what_cannot_be_is_said_at_the_start(street: Street) -> None:
    with pytest.raises(AddressUnusable, match="is not an IP address"):
        async with street.open(advertise="gateway.example:80"):
            pass
    with pytest.raises(FailedPrecondition, match="--envoy-identity-dir"):
        async with street.open(envoy_identity_dir=None):
            pass
    with pytest.raises(FailedPrecondition, match="--http-certificate and --http-key"):
        async with street.open(http_certificate=Path("/tls.pem")):
            pass
