"""The loops, over a store in memory and a clock that stands still."""

from __future__ import annotations

import asyncio

import pytest

from runtime.identity import Role
from runtime.ids import DEFAULT_TENANT, ModelName, Region, TenantId, assignment_key, placement_key
from runtime.notices import ModelNotice
from scheduler import orders
from scheduler.codec import assignment_from, placement_from
from scheduler.fleet import GRACE_S
from scheduler.placements import Placements
from tests.scheduler.mesh import FAILED, HERE, Mesh, assigned, memory_scheduler, model, wish
from tests.support.manual_clock import ManualClock, settle

DIGITS, ACME = ModelName("digits"), TenantId("acme")


async def test_wishes_become_assignments_and_follow_the_fleet(mesh: Mesh, clock: ManualClock) -> None:
    names = sorted(("a", "b", "c"), key=mesh.worker_id)
    async with memory_scheduler(mesh) as (store, scheduler):
        placements = Placements(store, scheduler.control, HERE)
        await placements.place(wish(2))
        await mesh.announce(store, names[0])
        await clock.advance(1.0)
        assert await assigned(store, mesh, names[0]) == [("digits", 1)]

        await mesh.announce(store, names[1])
        await mesh.announce(store, names[2])
        await clock.advance(1.0)
        assert [await assigned(store, mesh, name) for name in names] == [[("digits", 1)], [("digits", 1)], None]

        await store.delete(mesh.key(names[0]))
        await clock.advance(1.0)
        assert await assigned(store, mesh, names[2]) == [("digits", 1)], "another stands in"
        assert await assigned(store, mesh, names[0]) == [("digits", 1)], "who left goes on serving if it lives"

        await placements.place(wish(0))
        await clock.advance(1.0)
        assert [await assigned(store, mesh, name) for name in names[1:]] == [[], []]


async def test_at_rest_nothing_is_written(mesh: Mesh, clock: ManualClock) -> None:
    async with memory_scheduler(mesh) as (store, scheduler):
        await Placements(store, scheduler.control, HERE).place(wish(1))
        await mesh.announce(store, "a")
        await clock.advance(1.0)
        revision, writes = (await store.range("/")).revision, scheduler.reconciler.writes
        await clock.advance(120.0)
        assert ((await store.range("/")).revision, scheduler.reconciler.writes) == (revision, writes)


async def test_who_failed_is_stood_in_for_and_retries_when_wished_again(mesh: Mesh, clock: ManualClock) -> None:
    first, second = sorted(("a", "b"), key=mesh.worker_id)
    async with memory_scheduler(mesh) as (store, scheduler):
        placements = Placements(store, scheduler.control, HERE)
        await mesh.announce(store, first)
        await mesh.announce(store, second)
        await placements.place(wish(1))
        await clock.advance(1.0)
        assert await assigned(store, mesh, second) is None

        await mesh.announce(store, first, model(FAILED))
        await clock.advance(1.0)
        assert await assigned(store, mesh, second) == [("digits", 1)]
        assert await assigned(store, mesh, first) == [("digits", 1)], "it keeps it, so that it does not flap"

        await store.delete(mesh.key(second))
        await clock.advance(1.0)
        await placements.place(wish(1))
        await clock.advance(1.0)
        assert await assigned(store, mesh, first) == [("digits", 2)]

        await mesh.announce(store, second)
        await clock.advance(1.0)
        assert await assigned(store, mesh, second) == [], "the failure it told of was of the wish before"
        await mesh.announce(store, first, model(FAILED))
        await clock.advance(40.0)
        assert await assigned(store, mesh, second) == [("digits", 2)]


async def test_a_worker_of_other_tenants_is_told_nothing_until_the_model_is_shared(mesh: Mesh, clock: ManualClock) -> None:
    mesh.node("a", Role.WORKER, ACME)
    async with memory_scheduler(mesh) as (store, scheduler):
        scheduler.board.hear_model(ModelNotice(DIGITS, DEFAULT_TENANT, frozenset(), generation=1))
        await Placements(store, scheduler.control, HERE).place(wish(1))
        await mesh.announce(store, "a")
        await clock.advance(1.0)
        assert scheduler.fleet.members[mesh.worker_id("a")].worker.tenants == {ACME}
        assert await assigned(store, mesh, "a") is None

        scheduler.board.hear_model(ModelNotice(DIGITS, DEFAULT_TENANT, frozenset({ACME}), generation=2))
        await clock.advance(1.0)
        assert await assigned(store, mesh, "a") == [("digits", 1)]

        scheduler.board.hear_model(ModelNotice(DIGITS, DEFAULT_TENANT, frozenset(), generation=3))
        await clock.advance(1.0)
        assert await assigned(store, mesh, "a") == []


async def test_etcd_away_keeps_the_view_and_says_that_it_is_stale(mesh: Mesh, clock: ManualClock) -> None:
    async with memory_scheduler(mesh) as (store, scheduler):
        await mesh.announce(store, "a")
        await clock.advance(1.0)
        assert scheduler.connected()
        store.go_away()
        await clock.advance(100.0)
        assert not scheduler.connected()
        assert set(scheduler.fleet.members) == {mesh.worker_id("a")}
        store.come_back()
        await clock.advance(2.0)
        assert scheduler.connected()
        assert set(scheduler.fleet.members) == {mesh.worker_id("a")}


async def test_an_outage_between_two_ticks_is_still_told(mesh: Mesh, clock: ManualClock) -> None:
    async with memory_scheduler(mesh) as (store, scheduler):
        await settle()
        assert scheduler.connected(), "before the first tick"
        with scheduler.audience.watching(Region("")) as watcher:
            first = await watcher.next()
            assert first is not None
            assert not first.stale
            store.go_away()
            await clock.advance(1.0)
            async with asyncio.timeout(5):
                second = await watcher.next()
            assert second is not None
            assert second.stale


async def test_an_etcd_that_lost_everything_gets_wishes_and_assignments_back(mesh: Mesh, clock: ManualClock) -> None:
    async with memory_scheduler(mesh) as (store, scheduler):
        made = await Placements(store, scheduler.control, HERE).place(wish(1))
        await mesh.announce(store, "a", model())
        await mesh.announce(store, "b", model())
        await clock.advance(1.0)
        before = [await assigned(store, mesh, name) for name in ("a", "b")]
        store.go_away()
        await clock.advance(10.0)
        store.come_back(empty=True)
        await clock.advance(2.0)
        assert len(scheduler.fleet.members) == 2, "nobody is dropped before it could register again"
        stored = await store.get(placement_key(HERE, made.model, made.version))
        assert stored is not None
        assert placement_from(stored.value) == made
        assert [await assigned(store, mesh, name) or None for name in ("a", "b")] == before
        await mesh.announce(store, "a", model())
        await clock.advance(GRACE_S + 1)
        assert set(scheduler.fleet.members) == {mesh.worker_id("a")}, "b did not come back"


async def test_an_assignment_somebody_else_wrote_is_put_right(mesh: Mesh, clock: ManualClock) -> None:
    async with memory_scheduler(mesh) as (store, scheduler):
        await Placements(store, scheduler.control, HERE).place(wish(1))
        await mesh.announce(store, "a")
        await clock.advance(1.0)
        await store.put(assignment_key(HERE, mesh.worker_id("a")), b"")
        await clock.advance(5.0)
        assert await assigned(store, mesh, "a") == [("digits", 1)]


async def test_garbage_under_the_control_keys_is_passed_over(mesh: Mesh, clock: ManualClock) -> None:
    async with memory_scheduler(mesh) as (store, scheduler):
        await store.put("/penstock/control/here/placements/digits/1", b"\xff\xff")
        await store.put("/penstock/control/here/assignments/x", b"\xff\xff")
        await store.put("/penstock/control/what", b"is this")
        await store.put("/penstock/presence/what", b"is this")
        await Placements(store, scheduler.control, HERE).place(wish(1, "sums"))
        await mesh.announce(store, "a")
        await clock.advance(1.0)
        assert await assigned(store, mesh, "a") == [("sums", 1)]


async def test_long_gone_workers_are_forgotten(mesh: Mesh, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "FORGET_S", 60.0)
    async with memory_scheduler(mesh) as (store, scheduler):
        await Placements(store, scheduler.control, HERE).place(wish(1))
        await mesh.announce(store, "a")
        await clock.advance(1.0)
        await store.delete(mesh.key("a"))
        await clock.advance(59.0)
        assert await assigned(store, mesh, "a") is not None
        await clock.advance(60.0)
        assert await assigned(store, mesh, "a") is None


async def test_a_worker_that_moved_is_told_in_its_new_region_alone(mesh: Mesh, clock: ManualClock) -> None:
    there = Region("there")
    async with memory_scheduler(mesh) as (store, scheduler):
        placements = Placements(store, scheduler.control, HERE)
        await placements.place(wish(1))
        await placements.place(wish(1, "sums", region=there))
        await mesh.announce(store, "a")
        await clock.advance(1.0)
        await store.put(mesh.key("a", there), mesh.signed("a", mesh.presence("a", region=there)))
        await store.delete(mesh.key("a"))
        await clock.advance(1.0)
        assert await assigned(store, mesh, "a") is None
        item = await store.get(assignment_key(there, mesh.worker_id("a")))
        assert item is not None
        assert [each.model for each in assignment_from(item.value)] == ["sums"]
