"""Two schedulers over one store in memory, on a clock that stands still: one acts, the other sees all and stands by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from random import Random

import pytest

from runtime.errors import PenstockError
from runtime.ids import DEFAULT_TENANT, Digest, ModelName, ModelVersion, NodeId, Region
from runtime.memory_store import MemoryStore
from runtime.notices import AliasTarget, ModelNotice, NoticeBoard, PendingTarget
from runtime.watch import WatchTiming
from scheduler.leading.leadership import Leadership
from scheduler.leading.types import group_of
from scheduler.loop import Scheduler
from scheduler.placements import Placements
from scheduler.switches import Switches
from tests.scheduler.mesh import DIGEST, HERE, Mesh, assigned, model, wish
from tests.support.manual_clock import ManualClock

DIGITS = ModelName("digits")


@dataclass
class Told:
    """The registry's side of alias moves."""

    settled: list[tuple[str, str, int]]
    by: str

    async def settle_alias(self, model: ModelName, alias: str, generation: int, abandoned_because: str = "") -> None:
        self.settled.append((self.by, alias, generation))


@dataclass
class One:
    scheduler: Scheduler
    leadership: Leadership
    placements: Placements

    @property
    def writes(self) -> int:
        return self.scheduler.reconciler.writes


@dataclass
class Pair:
    mesh: Mesh
    clock: ManualClock
    store: MemoryStore
    settled: list[tuple[str, str, int]]

    @asynccontextmanager
    async def scheduler(self, name: str, regions: str = "") -> AsyncIterator[One]:
        board = NoticeBoard()
        leadership = Leadership(self.store, self.clock, Random(name), group_of(regions), NodeId(name))
        reader = self.mesh.reader(board.revocations)
        scheduler = Scheduler(self.store, reader, self.clock, Random(name), board, leadership)
        placements = Placements(self.store, scheduler.control, HERE, board)
        switches = Switches(scheduler, placements, Told(self.settled, name), self.clock, Random(name))
        async with scheduler.running(), switches.running(), leadership.running(f"{name}:1"):
            await self.clock.advance(1.0)
            yield One(scheduler, leadership, placements)

    async def end_lease(self, who: One) -> None:
        term = who.leadership._election.term()
        assert term is not None
        await self.store.revoke_lease(int(term.key.rpartition("/")[2], 16))

    def pending(self, every: Iterable[One]) -> None:
        coming = PendingTarget(ModelVersion("2"), Digest("2" * 64), 0, int(self.clock.wall_s() * 1000))
        alias = AliasTarget("stable", ModelVersion("1"), DIGEST, 0, 5, coming)
        for one in every:
            one.scheduler.board.hear_model(ModelNotice(DIGITS, DEFAULT_TENANT, frozenset(), (alias,), generation=5))


@pytest.fixture
async def pair(mesh: Mesh, clock: ManualClock) -> AsyncIterator[Pair]:
    async with MemoryStore(clock=clock, rng=Random(1), watch_timing=WatchTiming()) as store:
        yield Pair(mesh, clock, store, [])


async def test_the_leader_writes_and_the_other_sees(pair: Pair) -> None:
    async with pair.scheduler("one") as one, pair.scheduler("two") as two:
        await two.placements.place(wish(1))
        await pair.mesh.announce(pair.store, "a")
        await pair.clock.advance(1.0)
        assert await assigned(pair.store, pair.mesh, "a") == [("digits", 1)], "a wish may be left with either"
        assert (one.writes, two.writes) == (1, 0)
        assert two.scheduler.fleet.members.keys() == one.scheduler.fleet.members.keys() == {pair.mesh.worker_id("a")}
        assert two.scheduler.control.assignments == one.scheduler.control.assignments


async def test_when_the_leaders_lease_ends_the_other_goes_on_where_it_was(pair: Pair) -> None:
    async with pair.scheduler("one") as one, pair.scheduler("two") as two:
        await one.placements.place(wish(1))
        await pair.mesh.announce(pair.store, "a")
        await pair.clock.advance(1.0)
        revision = (await pair.store.range("/penstock/control/")).items
        await pair.end_lease(one)
        await pair.clock.advance(1.0)
        assert (await pair.store.range("/penstock/control/")).items == revision, "nothing was to be done, and nothing was"
        await one.placements.place(wish(1, "sums"))
        await pair.clock.advance(1.0)
        assert await assigned(pair.store, pair.mesh, "a") == [("digits", 1), ("sums", 1)]
        assert (one.writes, two.writes) == (1, 1)


async def test_a_leader_that_does_not_know_yet_that_it_is_none_writes_nothing(pair: Pair) -> None:
    async with pair.scheduler("one") as one, pair.scheduler("two") as two:
        await pair.mesh.announce(pair.store, "a")
        await pair.clock.advance(1.0)
        fence = one.leadership.leads(HERE)
        assert fence
        one.scheduler.reconciler._leads = lambda _: fence  # as one who was paused between looking and writing
        await pair.end_lease(one)
        two.scheduler.reconciler._leads = lambda _: None
        await one.placements.place(wish(1))
        await pair.clock.advance(5.0)
        assert await assigned(pair.store, pair.mesh, "a") is None
        assert one.writes == 0
        assert one.scheduler.reconciler.failures > 0, "it tried, and was refused"


async def test_each_group_writes_for_its_own_regions(pair: Pair) -> None:
    there = Region("there")
    async with pair.scheduler("one") as one, pair.scheduler("two", "there") as two:
        await one.placements.place(wish(1))
        await one.placements.place(wish(1, region=there))
        await pair.mesh.announce(pair.store, "a")
        await pair.store.put(pair.mesh.key("b", there), pair.mesh.signed("b", pair.mesh.presence("b", region=there)))
        await pair.clock.advance(1.0)
        assert (one.writes, two.writes) == (1, 1)
        async with pair.scheduler("three", "there") as three:
            await pair.end_lease(two)
            await one.placements.place(wish(1, "sums", region=there))
            await pair.clock.advance(1.0)
            assert (one.writes, two.writes, three.writes) == (1, 1, 1)


async def test_an_alias_move_is_carried_on_by_the_next_leader(pair: Pair) -> None:
    async with pair.scheduler("one") as one, pair.scheduler("two") as two:
        await one.placements.place(wish(1))
        old, new = model(), model()
        new.version, new.digest = "2", "2" * 64
        await pair.mesh.announce(pair.store, "a", old)
        await pair.clock.advance(1.0)
        pair.pending([one, two])
        await pair.clock.advance(1.0)
        assert len(await assigned(pair.store, pair.mesh, "a") or []) == 2
        await pair.end_lease(one)
        await pair.clock.advance(1.0)
        assert pair.settled == [], "it is not warm yet"
        await pair.mesh.announce(pair.store, "a", old, new)
        await pair.clock.advance(2.0)
        assert pair.settled == [("two", "stable", 5)]


async def test_watchers_of_every_scheduler_hear_who_leads(pair: Pair) -> None:
    async with AsyncExitStack() as stack:
        leaving = await stack.enter_async_context(AsyncExitStack())
        await leaving.enter_async_context(pair.scheduler("one"))
        two = await stack.enter_async_context(pair.scheduler("two"))
        watcher = stack.enter_context(two.scheduler.audience.watching(Region("")))
        first = await watcher.next()
        assert first is not None
        assert [each.address for each in first.leaders or ()] == ["one:1"]
        await leaving.aclose()
        await pair.clock.advance(0.5)
        async with asyncio.timeout(5):
            while (update := await watcher.next()) is not None and not update.leaders:
                pass
        assert update is not None
        assert [each.address for each in update.leaders or ()] == ["two:1"]


async def test_a_wiped_store_gets_its_wishes_back_whoever_leads_then(pair: Pair) -> None:
    async with pair.scheduler("one") as one, pair.scheduler("two"):
        made = await one.placements.place(wish(1))
        await pair.mesh.announce(pair.store, "a", model())
        await pair.clock.advance(1.0)
        pair.store.go_away()
        await pair.clock.advance(20.0)
        pair.store.come_back(empty=True)
        await pair.mesh.announce(pair.store, "a", model())
        await pair.clock.advance(10.0)
        assert await assigned(pair.store, pair.mesh, "a") == [("digits", made.generation)]


def test_reasons_are_known_to_the_wire() -> None:
    assert "NOT_LEADER" in PenstockError._by_reason


async def test_a_wish_that_its_leader_never_heard_of_is_brought_back_by_whoever_did(pair: Pair) -> None:
    async with AsyncExitStack() as stack:
        leaving = await stack.enter_async_context(AsyncExitStack())
        one = await leaving.enter_async_context(pair.scheduler("one"))
        await one.placements.place(wish(1))
        await stack.enter_async_context(pair.scheduler("two", "there"))
        pair.store.go_away()
        await leaving.aclose()
        await pair.clock.advance(20.0)
        three = await stack.enter_async_context(pair.scheduler("three"))
        pair.store.come_back(empty=True)
        await pair.clock.advance(10.0)
        await pair.mesh.announce(pair.store, "a")
        await pair.clock.advance(10.0)
        assert three.leadership.leads(HERE) is not None
        assert await assigned(pair.store, pair.mesh, "a") == [("digits", 1)]
