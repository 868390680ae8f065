"""Rounds of reconciling over a store in memory and a clock that stands still: demand, memory, failures, leadership."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from penstock.worker.v1 import worker_pb2

from placement.copies.assign import Plan, Shortage, assign
from placement.copies.demand import Asked, Demand
from placement.copies.failures import FailureLimits
from placement.copies.wishes import Placement
from placement.types import CopyState
from runtime.ids import Digest, ModelName, ModelVersion, Region, assignment_key, placement_key
from runtime.keyvalue import absent
from runtime.memory_store import MemoryStore
from scheduler import reconcile
from scheduler.codec import assignment_from
from scheduler.demand.intake import DemandIntake
from scheduler.demand.types import Report
from scheduler.loop import Scheduler
from scheduler.placements import Placements
from tests.scheduler.mesh import DIGEST, FAILED, HERE, READY, Mesh, assigned, memory_scheduler, wish
from tests.support.manual_clock import ManualClock

THERE = Region("there")
GIB = 1 << 30
UNAVAILABLE = worker_pb2.MODEL_STATE_UNAVAILABLE
FORGET_S = FailureLimits().forget_s


@dataclass
class World:
    """A scheduler that hears one gateway, and workers that obey."""

    mesh: Mesh
    clock: ManualClock
    store: MemoryStore
    scheduler: Scheduler
    intake: DemandIntake
    names: dict[str, int] = field(default_factory=dict)
    """Workers by name, and their memory in GiB."""
    sizes: dict[str, int] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    """Models that fail to load."""
    opened: dict[str, list[str]] = field(default_factory=dict)
    """What each worker has in memory, what it opened last at the end."""
    lost: dict[str, set[str]] = field(default_factory=dict)
    """What it let go of, until it is told not to hold it."""

    @property
    def placements(self) -> Placements:
        return Placements(self.store, self.scheduler.control, HERE)

    async def place(self, model: str, copies: int, most: int = 0, **more: object) -> Placement:
        made = dataclasses.replace(wish(copies, model), max_copies=most, memory_bytes=self.sizes.get(model, 0) * GIB, **more)  # type: ignore[arg-type]
        made = dataclasses.replace(made, digest=digest_of(model))
        return await self.placements.place(made)

    async def join(self, name: str, gib: int = 0) -> None:
        self.names[name] = gib
        await self.obey(name)
        await self.clock.advance(1.0)

    async def told(self, name: str) -> list[str]:
        return [model for model, _ in await assigned(self.store, self.mesh, name) or []]

    async def obey(self, name: str) -> None:
        """The worker says that it holds what it is told to."""
        item = await self.store.get(assignment_key(HERE, self.mesh.worker_id(name)))
        told = assignment_from(item.value) if item is not None else ()
        lost = self.evicted(name, [each.model for each in told])
        copies = [
            worker_pb2.ModelCopy(
                model=each.model,
                version=each.version,
                digest=each.digest,
                state=FAILED if each.model in self.broken else UNAVAILABLE if each.model in lost else READY,
                reason="broken" if each.model in self.broken else "no room" if each.model in lost else "",
                memory_bytes=self.sizes.get(each.model, 0) * GIB,
            )
            for each in told
        ]
        presence = self.mesh.presence(name, *copies)
        presence.memory_budget_bytes = self.names[name] * GIB
        await self.store.put(self.mesh.key(name), self.mesh.signed(name, presence))

    def evicted(self, name: str, told: Sequence[str]) -> set[str]:
        """What has to go where not all fits: what was opened first."""
        opened = [model for model in self.opened.get(name, ()) if model in told]
        opened += [model for model in told if model not in opened and model not in self.lost.get(name, set())]
        while self.names[name] and sum(self.sizes.get(model, 0) for model in opened) > self.names[name]:
            opened.pop(0)
        self.opened[name], self.lost[name] = opened, set(told) - set(opened)
        return self.lost[name]

    async def pass_time(
        self, seconds: int, *, every_s: float = 1.0, asks: Callable[[int], Sequence[Asked]] = lambda _: ()
    ) -> None:
        """Workers obey and a gateway tells, again and again."""
        with self.intake.listening() as gateway:
            for turn in range(int(seconds / every_s)):
                self.intake.hear(gateway, Report(HERE, every_s, tuple(asks(turn))))
                for name in self.names:
                    await self.obey(name)
                await self.clock.advance(every_s)

    async def copies(self, model: str) -> int:
        return sum([model in await self.told(name) for name in self.names])


def digest_of(model: str) -> Digest:
    return Digest(model.encode().hex().ljust(64, "0"))


def asks(model: str, busy_s: float = 0.0) -> Asked:
    return Asked(ModelName(model), ModelVersion("1"), 1, busy_s=busy_s)


@pytest.fixture
async def world(mesh: Mesh, clock: ManualClock) -> AsyncIterator[World]:
    async with opened(mesh, clock) as made:
        yield made


@asynccontextmanager
async def opened(mesh: Mesh, clock: ManualClock) -> AsyncIterator[World]:
    async with memory_scheduler(mesh) as (store, scheduler):
        intake = DemandIntake(clock)
        scheduler.reconciler.follow(intake)
        yield World(mesh, clock, store, scheduler, intake)


async def test_a_model_on_demand_comes_when_asked_for_grows_when_busy_and_goes_when_idle(world: World) -> None:
    for name in ("a", "b", "c"):
        await world.join(name)
    await world.place("digits", 0, 3, idle_s=60)
    await world.pass_time(5)
    assert await world.copies("digits") == 0
    await world.pass_time(2, asks=lambda _: [asks("digits")])
    assert await world.copies("digits") == 1
    await world.pass_time(20, asks=lambda _: [asks("digits", busy_s=7.0)])
    assert await world.copies("digits") == 2, "a second one for what is busy"
    await world.pass_time(40, asks=lambda _: [asks("digits", busy_s=14.0)])
    assert await world.copies("digits") == 3
    await world.pass_time(55, every_s=5.0)
    assert await world.copies("digits") == 3, "it may be asked for again"
    counts = []
    for _ in range(14):
        await world.pass_time(10, every_s=10.0)
        counts.append(await world.copies("digits"))
    assert list(dict.fromkeys(counts))[-3:] == [2, 1, 0], "one after the other"
    assert not world.scheduler.reconciler.shortfalls


async def test_an_idle_copy_goes_soon_after_its_time_though_nothing_else_happens(world: World) -> None:
    await world.join("a")
    await world.place("digits", 0, 1, idle_s=10)
    await world.pass_time(2, asks=lambda _: [asks("digits")])
    await world.pass_time(1)
    assert await world.copies("digits") == 1
    with world.intake.listening() as gateway:
        world.intake.hear(gateway, Report(HERE, 1.0))
        await world.clock.advance(6.0)
        assert await world.copies("digits") == 1
        await world.clock.advance(3.0 + reconcile.IDLE_LOOK_S)
    assert await world.copies("digits") == 0


async def test_what_was_wished_for_stays_without_demand(world: World) -> None:
    await world.join("a")
    await world.place("digits", 1, 2, idle_s=30)
    await world.pass_time(300, every_s=30.0)
    assert await world.copies("digits") == 1


async def test_while_no_gateway_tells_nothing_is_given_up(world: World) -> None:
    await world.join("a")
    await world.place("digits", 0, 2, idle_s=60)
    await world.pass_time(2, asks=lambda _: [asks("digits")])
    for _ in range(5):
        await world.obey("a")
        await world.clock.advance(60.0)
    assert await world.copies("digits") == 1
    await world.pass_time(59)
    assert await world.copies("digits") == 1, "and who is back is listened to first"
    await world.pass_time(62)
    assert await world.copies("digits") == 0


async def test_a_new_leader_goes_on_where_the_old_one_was(world: World) -> None:
    for name in ("a", "b", "c"):
        await world.join(name)
    await world.place("digits", 0, 3, idle_s=30)
    await world.pass_time(40, asks=lambda _: [asks("digits", busy_s=14.0)])
    before = [await world.told(name) for name in ("a", "b", "c")]
    assert sum(map(len, before)) == 3
    other = Scheduler(world.store, world.mesh.reader(), world.clock, world.scheduler.reconciler._rng, world.scheduler.board)
    other.reconciler.follow(DemandIntake(world.clock))
    async with other.running():
        await world.clock.advance(100.0)
    assert [await world.told(name) for name in ("a", "b", "c")] == before
    assert other.reconciler.writes == 0


async def test_the_least_recently_used_gives_way_and_a_model_that_is_asked_for_again_does_not_push_it_out(world: World) -> None:
    world.sizes = {"digits": 5, "sums": 5, "texts": 5}
    await world.join("a", 10)
    for model in world.sizes:
        await world.place(model, 0, 1)
    await world.pass_time(3, asks=lambda _: [asks("digits")])
    await world.pass_time(3, asks=lambda _: [asks("sums")])
    assert await world.told("a") == ["digits", "sums"]
    await world.pass_time(3, asks=lambda _: [asks("texts")])
    assert await world.told("a") == ["digits", "sums"], "both were asked for a moment ago"
    assert [each.reason for each in world.scheduler.reconciler.shortfalls] == [Shortage.NO_MEMORY]
    await world.pass_time(45, asks=lambda _: [asks("texts"), asks("sums")])
    assert await world.told("a") == ["sums", "texts"]
    writes = world.scheduler.reconciler.writes
    await world.pass_time(120, asks=lambda turn: [asks("texts"), asks("sums"), asks("digits")])
    assert world.scheduler.reconciler.writes == writes, "three in use on room for two do not take turns"


async def test_what_does_not_fit_is_not_tried_again_and_again_though_no_wish_says_how_large_it_is(world: World) -> None:
    await world.join("a", 16)
    await world.place("one", 0, 1)
    await world.place("two", 0, 1)
    world.sizes.update(one=10, two=10)
    await world.pass_time(3, asks=lambda _: [asks("one")])
    await world.pass_time(3, asks=lambda _: [asks("two")])
    await world.pass_time(3)
    writes, held = world.scheduler.reconciler.writes, await world.told("a")
    assert len(held) == 1
    await world.pass_time(60)
    assert await world.told("a") == held
    assert world.scheduler.reconciler.writes == writes


async def test_what_was_wished_for_pushes_out_what_only_demand_holds(world: World) -> None:
    world.sizes = {"digits": 8, "sums": 8}
    await world.join("a", 10)
    await world.place("digits", 0, 1)
    await world.pass_time(3, asks=lambda _: [asks("digits")])
    await world.place("sums", 1)
    await world.pass_time(3, asks=lambda _: [asks("digits")])
    assert await world.told("a") == ["sums"]


async def test_a_failure_that_is_forgotten_is_tried_anew(world: World) -> None:
    world.broken = {"digits"}
    await world.join("a")
    await world.place("digits", 1)
    await world.pass_time(10)
    assert await assigned(world.store, world.mesh, "a") == [("digits", 1)]
    writes = world.scheduler.reconciler.writes
    await world.pass_time(int(FORGET_S) - 60, every_s=20.0)
    assert world.scheduler.reconciler.writes == writes, "it keeps its order, so that it does not try again and again"
    for _ in range(12):
        await world.clock.advance(10.0)
        if not await world.told("a"):
            break
        await world.obey("a")
    else:
        pytest.fail("it was not let go of")
    await world.clock.advance(40.0)
    assert await world.told("a") == [], "until it has heard of that: told anew before, it would not try anew"
    world.broken = set()
    await world.pass_time(5)
    assert await world.told("a") == ["digits"]
    assert world.scheduler.fleet.workers()[0].copies[0].state is CopyState.READY


async def test_a_version_that_loads_nowhere_is_not_tried_everywhere(world: World) -> None:
    world.broken = {"digits"}
    for number in range(8):
        await world.join(f"w{number}")
    await world.place("digits", 1)
    await world.pass_time(30)
    assert await world.copies("digits") == 5
    assert [each.reason for each in world.scheduler.reconciler.shortfalls] == [Shortage.FAILED]
    world.broken = set()
    await world.place("digits", 1)
    await world.pass_time(10)
    assert not world.scheduler.reconciler.shortfalls


async def test_a_world_that_did_not_change_is_not_planned_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []

    def counted(*args: Any, **named: Any) -> Plan:
        plans.append(assign(*args, **named))
        return plans[-1]

    monkeypatch.setattr(reconcile, "assign", counted)
    await world.join("a")
    await world.place("digits", 0, 2)
    await world.pass_time(20, asks=lambda _: [asks("digits")])
    settled = len(plans)
    await world.pass_time(60, asks=lambda _: [asks("digits")])
    assert len(plans) == settled


async def test_demand_alone_makes_a_round_a_second_and_whatever_else_one_at_once(mesh: Mesh, clock: ManualClock) -> None:
    class Counting(DemandIntake):
        looks = 0

        def demand(self, now_s: float) -> Demand:
            self.looks += 1
            return super().demand(now_s)

    async with memory_scheduler(mesh) as (store, scheduler):
        intake = Counting(clock)
        scheduler.reconciler.follow(intake)
        await mesh.announce(store, "a")
        await clock.advance(5.0)
        with intake.listening() as gateway:
            intake.looks = 0
            for _ in range(100):
                intake.hear(gateway, Report(HERE, 0.1, (asks("digits"),)))
                await clock.advance(0.1)
            assert 8 <= intake.looks <= 11
            await Placements(store, scheduler.control, HERE).place(wish(1))
            await clock.advance(0.1)
            assert await assigned(store, mesh, "a") == [("digits", 1)]


async def test_regions_that_others_lead_are_left_alone(world: World) -> None:
    led = {HERE: True, THERE: False}
    world.scheduler.reconciler._leads = lambda region: () if led[region] else None
    await world.join("a")
    there = dataclasses.replace(wish(1), region=THERE)
    await world.placements.place(there)
    await world.store.put(world.mesh.key("b", THERE), world.mesh.signed("b", world.mesh.presence("b", region=THERE)))
    await world.place("digits", 1)
    await world.clock.advance(5.0)
    assert await world.told("a") == ["digits"]
    assert await world.store.get(assignment_key(THERE, world.mesh.worker_id("b"))) is None
    led[THERE] = True
    world.scheduler.reconciler.touch()
    await world.clock.advance(5.0)
    assert await world.store.get(assignment_key(THERE, world.mesh.worker_id("b"))) is not None


async def test_who_leads_no_more_writes_nothing(world: World) -> None:
    """Its condition does not hold any longer, though it has not heard so yet."""
    await world.store.put("/penstock/election/mesh/other", b"")
    world.scheduler.reconciler._leads = lambda _: (absent("/penstock/election/mesh/other"),)
    await world.join("a")
    await world.place("digits", 1)
    await world.clock.advance(5.0)
    assert await world.told("a") == []
    assert world.scheduler.reconciler.failures > 0


async def test_a_lost_wish_is_restored_also_by_who_does_not_lead(world: World) -> None:
    """Who leads may never have heard of it."""
    world.scheduler.reconciler._leads = lambda _: None
    made = await world.place("digits", 1)
    await world.clock.advance(1.0)
    world.store.go_away()
    await world.clock.advance(5.0)
    world.store.come_back(empty=True)
    await world.clock.advance(5.0)
    assert await world.store.get(placement_key(HERE, made.model, made.version)) is not None


async def test_two_leaders_hand_over_a_worker_that_moved(mesh: Mesh, clock: ManualClock) -> None:
    """Each writes under its own region alone: the old one takes its word back, the new one gives its own."""
    async with memory_scheduler(mesh) as (store, one):
        other = Scheduler(store, mesh.reader(), clock, one.reconciler._rng)
        one.reconciler._leads = lambda region: () if region == HERE else None
        other.reconciler._leads = lambda region: () if region == THERE else None
        async with other.running():
            placements = Placements(store, one.control, HERE)
            await placements.place(wish(1))
            await placements.place(wish(1, "sums", region=THERE))
            await mesh.announce(store, "a")
            await clock.advance(2.0)
            assert await assigned(store, mesh, "a") == [("digits", 1)]
            await store.put(mesh.key("a", THERE), mesh.signed("a", mesh.presence("a", region=THERE)))
            await store.delete(mesh.key("a"))
            await clock.advance(5.0)
            assert await assigned(store, mesh, "a") is None
            item = await store.get(assignment_key(THERE, mesh.worker_id("a")))
            assert item is not None
            assert [each.model for each in assignment_from(item.value)] == ["sums"]
            assert one.control.assignments == other.control.assignments


async def test_who_takes_over_knows_which_failures_are_of_the_order_before(mesh: Mesh, clock: ManualClock) -> None:
    """The leader wished anew and was lost: what the worker says until it has heard of that is of its older try."""
    async with memory_scheduler(mesh) as (store, leader):
        standby = Scheduler(store, mesh.reader(), clock, leader.reconciler._rng)
        leads = {"leader": True}
        leader.reconciler._leads = lambda _: () if leads["leader"] else None
        standby.reconciler._leads = lambda _: None if leads["leader"] else ()
        async with standby.running():
            placements = Placements(store, leader.control, HERE)
            first, second = sorted(("a", "b"), key=mesh.worker_id)
            failed = worker_pb2.ModelCopy(model="digits", version="1", digest=DIGEST, state=FAILED)
            await placements.place(wish(1))
            await mesh.announce(store, first)
            await clock.advance(1.0)
            await mesh.announce(store, first, failed)
            await clock.advance(1.0)
            await placements.place(wish(1))
            await clock.advance(1.0)
            assert await assigned(store, mesh, first) == [("digits", 2)]
            leads["leader"] = False
            await mesh.announce(store, second)
            await clock.advance(40.0)
            assert await assigned(store, mesh, second) is None, "nobody needs to stand in yet"
            await mesh.announce(store, first, failed)
            await clock.advance(40.0)
            assert await assigned(store, mesh, second) == [("digits", 2)]
