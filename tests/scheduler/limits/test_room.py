"""A scheduler's part in limits: an election of its own, budgets written down before they are given, an end that it knows of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

import pytest

from placement.limits.book import SETTLING_S
from placement.limits.types import AllowanceId, Ask, Grant, Kind, Terms
from runtime.errors import Aborted, NotLeader, ResourceExhausted
from runtime.ids import NodeId, Region
from runtime.memory_store import MemoryStore
from runtime.watch import WatchTiming
from scheduler.leading.leadership import Leadership
from scheduler.leading.types import group_of
from scheduler.limits.room import PROCESSES_OF_ONE, LimitsRoom
from scheduler.limits.spending import SPENDING_PREFIX
from tests.support.manual_clock import ManualClock, settle

DAY, GATEWAY = AllowanceId("l/requests_per_day/"), NodeId("gateway")
BUDGET = Terms(Kind.REQUESTS_PER_DAY, 1_000)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(clock: ManualClock) -> AsyncIterator[MemoryStore]:
    async with MemoryStore(clock=clock, rng=Random(1), watch_timing=WatchTiming()) as store:
        yield store


@asynccontextmanager
async def room_of(store: MemoryStore, clock: ManualClock, name: str = "one") -> AsyncIterator[LimitsRoom]:
    room = LimitsRoom(store, clock, Random(1), NodeId(name))
    async with room.running(f"{name}:1"):
        await settle()
        await clock.advance(SETTLING_S)
        yield room


async def test_one_leads_and_the_other_says_where(store: MemoryStore, clock: ManualClock) -> None:
    async with room_of(store, clock) as one, room_of(store, clock, "two") as two:
        assert one.book is not None
        assert (two.book, two.leader_address, one.leader_address) == (None, "one:1", "")
        with pytest.raises(NotLeader), two.sharing(GATEWAY, "p"):
            pass


async def test_a_budget_is_written_down_before_any_of_it_is_given(store: MemoryStore, clock: ManualClock) -> None:
    async with room_of(store, clock) as room:
        with room.sharing(GATEWAY, "p") as stream:
            assert await room.answer(stream, [Ask(DAY, BUDGET, wanted=7)]) == [Grant(DAY, 7, 993)]
            assert len((await store.range(SPENDING_PREFIX)).items) == 1
    async with room_of(store, clock, "two") as room:
        with room.sharing(GATEWAY, "p") as stream:
            (grant,) = await room.answer(stream, [Ask(DAY, BUDGET, 7, True, wanted=1_000)])
            assert grant.granted == 1_000 - 17, "what it had written ahead, and not what it had given"


async def test_while_etcd_is_away_nothing_of_a_budget_is_given_that_was_not_written(
    store: MemoryStore, clock: ManualClock
) -> None:
    async with room_of(store, clock) as room:
        with room.sharing(GATEWAY, "p") as stream:
            await room.answer(stream, [Ask(DAY, BUDGET, wanted=7)])
            store.go_away()
            (grant,) = await room.answer(stream, [Ask(DAY, wanted=50)])
            assert grant.granted == 10, "what was written ahead"
            assert 0 < grant.retry_after_s < 1
            store.come_back()


async def test_who_lost_its_lease_gives_nothing(store: MemoryStore, clock: ManualClock) -> None:
    async with room_of(store, clock) as room:
        with room.sharing(GATEWAY, "p") as stream:
            await room.answer(stream, [Ask(DAY, BUDGET, wanted=7)])
            store.go_away()
            await clock.advance(6)
            with pytest.raises(NotLeader):
                await room.answer(stream, [Ask(DAY, wanted=1)])
            store.come_back()
            await clock.advance(10)


async def test_a_newer_stream_of_a_process_replaces_one_that_nobody_missed(store: MemoryStore, clock: ManualClock) -> None:
    async with room_of(store, clock) as room, AsyncExitStack() as stack:
        older = stack.enter_context(room.sharing(GATEWAY, "p"))
        await room.answer(older, [Ask(DAY, BUDGET, wanted=7)])
        with room.sharing(GATEWAY, "p") as newer:
            with pytest.raises(Aborted):
                await room.answer(older, [Ask(DAY, wanted=1)])
            assert (await room.answer(newer, [Ask(DAY, BUDGET, 7, True)]))[0].remaining == 993
        assert len(room) == 0


async def test_processes_of_one_gateway_are_bounded(store: MemoryStore, clock: ManualClock) -> None:
    async with room_of(store, clock) as room, AsyncExitStack() as stack:
        for number in range(PROCESSES_OF_ONE):
            stack.enter_context(room.sharing(GATEWAY, str(number)))
        with pytest.raises(ResourceExhausted), room.sharing(GATEWAY, "one more"):
            pass
        stack.enter_context(room.sharing(NodeId("another"), "p"))


async def test_those_who_stand_for_limits_take_no_region_and_no_alias_move_from_anybody(
    store: MemoryStore, clock: ManualClock
) -> None:
    europe = Leadership(store, clock, Random(2), group_of("zurich"), NodeId("one"))
    async with room_of(store, clock), europe.running("one:1"):
        await settle()
        await clock.advance(1)
        assert europe.leads(Region("zurich")) is not None
        assert europe.leads_moves() is not None
        assert [leader.address for leader in europe.leaders()] == ["one:1"]
