"""Which gateways are believed to be there: real signatures, an in-memory etcd, a clock of the test's own."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from gateway.neighbours import MISSING_S, Neighbours
from gateway.presence import PresenceTiming, present
from gateway.presence_codec import GatewayFacts, GatewayRecord, record_bytes
from gateway.xds.types import Endpoint
from runtime.identity import Authority, NodeIdentity, Role
from runtime.ids import Region, gateway_key
from runtime.memory_store import MemoryStore
from runtime.records import RecordVerifier, sign_record
from runtime.revocations import Revocations
from tests.support.manual_clock import ManualClock, settle

HERE = Region("here")
STEADY = PresenceTiming(again_jitter=0.0)


@dataclass(slots=True)
class Seen:
    """One region's etcd, and somebody who looks at its gateways."""

    folder: Path
    clock: ManualClock
    store: MemoryStore
    neighbours: Neighbours
    revocations: Revocations
    changes: list[int] = field(default_factory=list)

    def node(self, name: str, role: Role = Role.GATEWAY, mesh: str = "ca") -> NodeIdentity:
        return Authority.open(self.folder / mesh).enrol(self.folder / f"{mesh}-{name}", role)

    def seen(self) -> dict[int, bool]:
        """Ports, and whether they drain."""
        return {each.endpoint.port: each.draining for each in self.neighbours.known.values()}

    def record(self, node: NodeIdentity, port: int, **changes: object) -> GatewayRecord:
        facts = GatewayFacts(node.node_id, 0, HERE, f"10.0.0.1:{port}")
        wall_s = self.clock.wall_s()
        return replace(GatewayRecord(facts, False, int(wall_s * 1000), wall_s), **changes)  # type: ignore[arg-type]

    async def write(self, node: NodeIdentity, record: GatewayRecord, key: str | None = None) -> None:
        facts = record.facts
        where = gateway_key(facts.region, facts.gateway_id, facts.process)
        await self.store.put(key or where, sign_record(node, record_bytes(record)))
        await settle()


@pytest.fixture
async def region(tmp_path: Path) -> AsyncIterator[Seen]:
    clock, revocations = ManualClock(), Revocations()
    authority = Authority.open(tmp_path / "ca")
    verifier = RecordVerifier(authority.certificate_pem, revocations=revocations)
    async with MemoryStore(clock=clock, rng=random.Random(1)) as store:
        neighbours = Neighbours(HERE, verifier, revocations, clock)
        made = Seen(tmp_path, clock, store, neighbours, revocations)
        neighbours.on_change.append(lambda: made.changes.append(len(neighbours.known)))
        async with neighbours.following(store):
            await settle()
            yield made


@asynccontextmanager
async def serving_at(region: Seen, node: NodeIdentity, port: int, process: int = 0) -> AsyncIterator[object]:
    async with present(region.store, node, region.clock, random.Random(3), STEADY) as presence:
        presence.begin(GatewayFacts(node.node_id, process, HERE, f"10.0.0.1:{port}"))
        await settle()
        yield presence


async def test_gateways_come_drain_and_go(region: Seen) -> None:
    first, second = region.node("a"), region.node("b")
    async with serving_at(region, first, 1), serving_at(region, second, 2) as leaving:
        assert region.seen() == {1: False, 2: False}
        leaving.drain()  # type: ignore[attr-defined]
        await settle()
        assert region.seen() == {1: False, 2: True}
    await settle()
    assert region.seen() == {}
    assert region.changes == [1, 2, 2, 1, 0]


async def test_two_processes_of_one_gateway_are_two(region: Seen) -> None:
    node = region.node("a")
    async with serving_at(region, node, 1), serving_at(region, node, 2, process=1):
        assert region.seen() == {1: False, 2: False}
        assert {each.gateway_id for each in region.neighbours.known.values()} == {node.node_id}


async def test_a_restarted_gateway_goes_on_above_its_former_self(region: Seen) -> None:
    node = region.node("a")
    async with serving_at(region, node, 1) as presence:
        presence.drain()  # type: ignore[attr-defined]
        await settle()
        assert region.seen() == {1: True}
    await region.clock.advance(0.1)
    async with serving_at(region, node, 2):
        assert region.seen() == {2: False}


async def test_a_killed_gateway_is_gone_with_its_lease(region: Seen) -> None:
    node = region.node("a")
    await region.write(node, region.record(node, 1))
    assert region.seen() == {1: False}
    await region.store.delete(gateway_key(HERE, node.node_id, 0))
    await settle()
    assert region.seen() == {}


@pytest.mark.parametrize("role", [Role.WORKER, Role.OPERATOR, Role.ENVOY, Role.SCHEDULER])
async def test_nobody_else_is_a_gateway(region: Seen, role: Role) -> None:
    node = region.node("other", role)
    await region.write(node, region.record(node, 1))
    assert region.seen() == {}


async def test_what_is_not_authentic_is_not_believed(region: Seen) -> None:
    node, stranger = region.node("a"), region.node("a", mesh="another")
    await region.write(stranger, region.record(stranger, 1))
    key = gateway_key(HERE, node.node_id, 0)
    await region.store.put(key, b"garbage")
    await region.store.put(key, record_bytes(region.record(node, 1)))
    await settle()
    assert region.seen() == {}


async def test_nobody_speaks_for_another_or_under_another_name(region: Seen) -> None:
    node, other = region.node("a"), region.node("b")
    await region.write(other, region.record(node, 1))
    await region.write(node, region.record(node, 1), key=gateway_key(HERE, node.node_id, 7))
    elsewhere = replace(region.record(node, 1).facts, region=Region("there"))
    await region.write(node, region.record(node, 1, facts=elsewhere), key=gateway_key(HERE, node.node_id, 0))
    assert region.seen() == {}


@pytest.mark.parametrize("address", ["", "gateway.example:80", "10.0.0.1", "10.0.0.1:99999"])
async def test_an_address_that_envoy_cannot_take_is_refused(region: Seen, address: str) -> None:
    node = region.node("a")
    facts = GatewayFacts(node.node_id, 0, HERE, address)
    await region.write(node, region.record(node, 1, facts=facts))
    assert region.seen() == {}


async def test_an_old_record_put_back_changes_nothing(region: Seen) -> None:
    node = region.node("a")
    before = region.record(node, 1)
    await region.write(node, before)
    await region.clock.advance(1)
    await region.write(node, region.record(node, 1, draining=True))
    await region.write(node, before)
    assert region.seen() == {1: True}


async def test_a_record_of_another_time_is_not_believed_as_news(region: Seen) -> None:
    node = region.node("a")
    wall_s = region.clock.wall_s()
    await region.write(node, region.record(node, 1, wall_time_s=wall_s - 120))
    await region.write(node, region.record(node, 1, wall_time_s=wall_s + 120))
    assert region.seen() == {}


async def test_a_revoked_gateway_is_out_at_once_and_stays_out(region: Seen) -> None:
    node = region.node("a")
    async with serving_at(region, node, 1) as presence:
        region.revocations.add(node.node_id)
        assert region.seen() == {}
        presence.drain()  # type: ignore[attr-defined]
        await settle()
        assert region.seen() == {}


async def test_the_last_view_outlives_an_outage_of_etcd(region: Seen) -> None:
    node = region.node("a")
    async with serving_at(region, node, 1):
        region.store.go_away()
        await region.clock.advance(300)
        assert region.seen() == {1: False}
        region.store.come_back()
        await region.clock.advance(10)
        assert region.seen() == {1: False}


async def test_who_is_missing_after_an_outage_has_time_to_come_back(region: Seen) -> None:
    back, dead = region.node("a"), region.node("b")
    await region.write(dead, region.record(dead, 2))
    async with serving_at(region, back, 1):
        assert region.seen() == {1: False, 2: False}
        region.store.go_away()
        await region.clock.advance(60)  # the lease has ended meanwhile
        region.store.come_back(empty=True)
        await region.clock.advance(MISSING_S / 2)
        assert region.seen() == {1: False, 2: False}
        await region.clock.advance(MISSING_S)
        assert region.seen() == {1: False}


async def test_a_record_is_written_again_so_that_it_carries_the_newest_certificate(region: Seen) -> None:
    node = region.node("a")
    async with serving_at(region, node, 1):
        item = await region.store.get(gateway_key(HERE, node.node_id, 0))
        await region.clock.advance(95)
        again = await region.store.get(gateway_key(HERE, node.node_id, 0))
    assert item is not None
    assert again is not None
    assert again.version == item.version + 3
    assert region.seen() in ({}, {1: False})


async def test_endpoints_are_values_that_envoy_takes(region: Seen) -> None:
    node = region.node("a")
    facts = GatewayFacts(node.node_id, 0, HERE, "[2001:db8::1]:9000")
    await region.write(node, region.record(node, 1, facts=facts))
    (each,) = region.neighbours.known.values()
    assert each.endpoint == Endpoint("2001:db8::1", 9000)
