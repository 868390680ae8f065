"""What others see of a worker: signed, numbered, timely, and gone at once when it leaves."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from penstock.worker.v1 import presence_pb2, worker_pb2

from runtime.identity import Authority, NodeIdentity, Role
from runtime.ids import Digest, ModelName, ModelVersion, Region, WorkerId, model_key, presence_key
from runtime.memory_store import MemoryStore
from runtime.records import RecordVerifier
from tests.support.manual_clock import ManualClock, settle
from worker.hardware import Gpu, Hardware
from worker.life.lifecycle import Copy, Holdings, LifeEvent
from worker.presence import Presence, PresenceTiming
from worker.presence_codec import WorkerFacts
from worker.types import Task

HERE = Region("here")
STEADY = PresenceTiming(heartbeat_jitter=0.0)


@dataclass(slots=True)
class Seen:
    """One worker and the store that others read."""

    clock: ManualClock
    store: MemoryStore
    identity: NodeIdentity
    holdings: Holdings = field(default_factory=Holdings)
    draining: bool = False

    def presence(self) -> Presence:
        facts = WorkerFacts(
            worker_id=self.worker_id,
            region=HERE,
            address="127.0.0.1:5000",
            tiers=("A", "B"),
            hardware=Hardware("a cpu", 16, 64, 1000, (Gpu("a gpu", 24, "8.9"),)),
            x25519_public_key=self.identity.x25519_public_key,
            max_in_flight=7,
            software_version="1.2.3",
            labels=("rack=7", "spot"),
            memory_budget_bytes=1 << 30,
            sealed_address="127.0.0.1:5001",
            kserve_address="127.0.0.1:5002",
            cost=2.5,
        )
        return Presence(
            facts, self.identity, self.holdings, self.clock, random.Random(3), draining=lambda: self.draining, timing=STEADY
        )

    @property
    def worker_id(self) -> WorkerId:
        return WorkerId(self.identity.node_id)

    async def _payload(self, key: str) -> bytes | None:
        item = await self.store.get(key)
        if item is None:
            return None
        assert item.lease_id != 0
        record = RecordVerifier(self.identity.authority_pem).open(item.value, now_wall_s=self.clock.wall_s())
        assert (record.signer.role, record.signer.node_id) == (Role.WORKER, self.identity.node_id)
        return record.payload

    async def record(self) -> presence_pb2.Presence | None:
        payload = await self._payload(presence_key(HERE, self.worker_id))
        return None if payload is None else presence_pb2.Presence.FromString(payload)

    async def there(self) -> presence_pb2.Presence:
        record = await self.record()
        assert record is not None
        return record

    async def model(self, model: str = "digits") -> presence_pb2.ModelPresence | None:
        payload = await self._payload(model_key(ModelName(model), ModelVersion("1"), HERE, self.worker_id))
        return None if payload is None else presence_pb2.ModelPresence.FromString(payload)

    def copy(self, model: str = "digits") -> Copy:
        return self.holdings.add(Copy(ModelName(model), ModelVersion("1"), Digest("d" * 64), 1))

    async def writes(self) -> int:
        item = await self.store.get(presence_key(HERE, self.worker_id))
        assert item is not None
        return item.version


@pytest.fixture
async def seen(tmp_path: Path) -> AsyncIterator[Seen]:
    clock = ManualClock()
    identity = Authority.open(tmp_path / "ca").enrol(tmp_path / "worker", Role.WORKER)
    async with MemoryStore(clock=clock, rng=random.Random(1)) as store:
        yield Seen(clock, store, identity)


@asynccontextmanager
async def joined(seen: Seen) -> AsyncIterator[None]:
    async with seen.presence().joined(seen.store):
        await settle()
        yield


async def test_it_tells_what_it_is(seen: Seen) -> None:
    async with joined(seen):
        record = await seen.there()
    assert (record.worker_id, record.region, record.address) == (seen.worker_id, HERE, "127.0.0.1:5000")
    assert (list(record.tiers), record.max_in_flight, record.software_version) == (["A", "B"], 7, "1.2.3")
    assert record.x25519_public_key == seen.identity.x25519_public_key
    hardware = record.hardware
    assert (hardware.cpu_model, hardware.cpu_cores, hardware.memory_bytes, hardware.disk_free_bytes) == ("a cpu", 16, 64, 1000)
    assert [(gpu.name, gpu.memory_bytes, gpu.compute_capability) for gpu in hardware.gpus] == [("a gpu", 24, "8.9")]


async def test_it_tells_what_placements_and_rules_ask_for_and_where_else_it_answers(seen: Seen) -> None:
    async with joined(seen):
        record = await seen.there()
    assert list(record.labels) == ["rack=7", "spot"]
    assert (record.memory_budget_bytes, record.cost) == (1 << 30, 2.5)
    assert (record.sealed_address, record.kserve_address) == ("127.0.0.1:5001", "127.0.0.1:5002")


async def test_a_copy_tells_what_the_budget_counts_for_it_and_not_what_was_measured(seen: Seen) -> None:
    async with joined(seen):
        copy = seen.copy()
        seen.holdings.move(copy, LifeEvent.LOAD_BEGUN)
        await settle()
        assert [each.memory_bytes for each in (await seen.there()).models] == [0], "nobody knows before its manifest was read"
        copy.memory_bytes = 3 << 20
        seen.holdings.describe(copy, task=Task.TENSOR, max_batch_size=8)
        await settle()
        model = await seen.model()
        assert model is not None
        assert model.copy.memory_bytes == 3 << 20
        seen.holdings.move(copy, LifeEvent.LOADED)
        await settle()
        ready, writes = await seen.model(), await seen.writes()
        copy.measured_bytes = 5 << 20
        await seen.clock.advance(4.5)
        assert await seen.writes() == writes, "a number that wanders is no news"
        await seen.clock.advance(0.5)
        assert await seen.model() == ready
        assert [each.memory_bytes for each in (await seen.there()).models] == [3 << 20]


async def test_a_heartbeat_every_five_seconds_has_a_higher_number_and_the_time(seen: Seen) -> None:
    async with joined(seen):
        before = await seen.there()
        for _ in range(3):
            writes = await seen.writes()
            await seen.clock.advance(4.5)
            assert await seen.writes() == writes
            await seen.clock.advance(0.5)
            after = await seen.there()
            assert await seen.writes() == writes + 1
            assert after.sequence > before.sequence
            assert abs(after.wall_time_ms / 1000 - seen.clock.wall_s()) < 0.1
            before = after


async def test_numbers_grow_over_a_restart_also_when_many_records_were_written(seen: Seen) -> None:
    copy = seen.copy()
    async with joined(seen):
        for _ in range(20):
            seen.holdings.explain(copy, "again")
            await settle()
        last = await seen.there()
    await seen.clock.advance(1.0)
    async with joined(seen):
        assert (await seen.there()).sequence > last.sequence


async def test_a_change_of_a_copy_is_told_at_once_and_changes_of_one_turn_together(seen: Seen) -> None:
    async with joined(seen):
        writes = await seen.writes()
        first, second = seen.copy("digits"), seen.copy("sums")
        for copy in (first, second):
            seen.holdings.move(copy, LifeEvent.LOAD_BEGUN)
            seen.holdings.describe(copy, task=Task.TENSOR, max_batch_size=8)
        await settle()
        record = await seen.there()
        assert [(copy.model, copy.state, copy.task, copy.max_batch_size) for copy in record.models] == [
            ("digits", worker_pb2.MODEL_STATE_LOADING, "tensor", 8),
            ("sums", worker_pb2.MODEL_STATE_LOADING, "tensor", 8),
        ]
        assert await seen.writes() == writes + 1


async def test_a_copys_own_record_comes_and_goes_with_it_and_tells_why_it_failed(seen: Seen) -> None:
    async with joined(seen):
        copy = seen.copy()
        seen.holdings.move(copy, LifeEvent.LOAD_BEGUN)
        seen.holdings.move(copy, LifeEvent.LOAD_FAILED, "no such engine")
        await settle()
        record = await seen.model()
        assert record is not None
        assert (record.copy.state, record.copy.reason) == (worker_pb2.MODEL_STATE_FAILED, "no such engine")
        assert (record.worker_id, record.region) == (seen.worker_id, HERE)
        for event in (LifeEvent.WITHDRAWN, LifeEvent.FREED):
            seen.holdings.move(copy, event)
        await settle()
        assert await seen.model() is None
        assert list((await seen.there()).models) == []


async def test_a_copys_record_is_written_only_when_it_changes(seen: Seen) -> None:
    async with joined(seen):
        seen.holdings.move(seen.copy(), LifeEvent.LOAD_BEGUN)
        await seen.clock.advance(6)
        first = await seen.model()
        await seen.clock.advance(60)
        assert await seen.model() == first


async def test_leaving_takes_everything_away_at_once(seen: Seen) -> None:
    seen.copy()
    async with joined(seen):
        assert await seen.model() is not None
    assert await seen.record() is None
    assert await seen.model() is None


async def test_a_worker_that_drains_shows_no_copy_as_ready_from_then_on(seen: Seen) -> None:
    copy = seen.copy()
    for event in (LifeEvent.LOAD_BEGUN, LifeEvent.LOADED):
        seen.holdings.move(copy, event)
    async with joined(seen):
        assert [each.state for each in (await seen.there()).models] == [worker_pb2.MODEL_STATE_READY]
        seen.draining = True
        seen.holdings.tell()
        await settle()
        assert [each.state for each in (await seen.there()).models] == [worker_pb2.MODEL_STATE_DRAINING]
        model = await seen.model()
        assert model is not None
        assert model.copy.state == worker_pb2.MODEL_STATE_DRAINING


async def test_an_etcd_that_comes_back_empty_is_told_everything_anew_with_the_time_of_now(seen: Seen) -> None:
    async with joined(seen):
        seen.holdings.move(seen.copy(), LifeEvent.LOAD_BEGUN)
        await settle()
        before = await seen.there()
        seen.store.go_away()
        await seen.clock.advance(120)
        seen.store.come_back(empty=True)
        await seen.clock.advance(11)
        record, model = await seen.there(), await seen.model()
        assert record.sequence > before.sequence
        assert model is not None
        assert abs(model.wall_time_ms / 1000 - seen.clock.wall_s()) < 15


async def test_a_record_that_cannot_be_made_once_does_not_end_the_heartbeat(seen: Seen) -> None:
    async with joined(seen):
        copy = seen.copy()
        copy.reason = "\udcff"  # no protobuf string
        await seen.clock.advance(5)
        copy.reason = "fine"
        await seen.clock.advance(5)
        assert [each.reason for each in (await seen.there()).models] == ["fine"]


async def test_a_copy_that_was_let_go_of_for_another_stays_with_the_reason(seen: Seen) -> None:
    copy = seen.copy()
    async with joined(seen):
        for event in (LifeEvent.LOAD_BEGUN, LifeEvent.LOADED):
            seen.holdings.move(copy, event)
        copy.awaits_room = True
        for event in (LifeEvent.RETIRED, LifeEvent.DRAINED, LifeEvent.FREED):
            seen.holdings.move(copy, event, "unloaded to make room for model 'b' version 1")
        await settle()
        record = await seen.model()
        assert record is not None
        assert (record.copy.state, record.copy.reason) == (
            worker_pb2.MODEL_STATE_UNAVAILABLE,
            "unloaded to make room for model 'b' version 1",
        )
        seen.holdings.forget(copy)
        await settle()
        assert await seen.model() is None
