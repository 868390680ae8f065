"""Which regions a scheduler leads beside others, on a clock that stands still."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from runtime.errors import InvalidArgument, NotLeader
from runtime.ids import NodeId, Region, election_prefix
from runtime.keyvalue import Compare, Write
from runtime.memory_store import MemoryStore
from scheduler.leading.leadership import Leadership
from scheduler.leading.types import Group, group_of, regions_named
from tests.support.manual_clock import ManualClock

EUROPE, ASIA, AFRICA = Region("europe"), Region("asia"), Region("africa")


class World:
    def __init__(self, store: MemoryStore, clock: ManualClock) -> None:
        self.store, self.clock = store, clock

    @asynccontextmanager
    async def scheduler(self, name: str, regions: str = "") -> AsyncIterator[Leadership]:
        made = Leadership(self.store, self.clock, random.Random(name), group_of(regions), NodeId(name))
        async with made.running(f"{name}:1"):
            await self.clock.advance(1.0)
            yield made

    async def holds(self, fence: tuple[Compare, ...]) -> bool:
        return (await self.store.txn(fence, [Write("/led", b"")])).succeeded

    async def end_lease(self, leadership: Leadership) -> None:
        """As when its process was frozen or cut off for long enough."""
        term = leadership._election.term()
        assert term is not None
        await self.store.revoke_lease(int(term.key.rpartition("/")[2], 16))


@pytest.fixture
async def world(clock: ManualClock) -> AsyncIterator[World]:
    async with MemoryStore(clock=clock, rng=random.Random(1)) as store:
        yield World(store, clock)


async def test_alone_it_leads_every_region_with_a_fence_that_holds(world: World) -> None:
    async with world.scheduler("one") as one:
        fence = one.leads(EUROPE)
        assert fence
        assert await world.holds(tuple(fence))
        assert one.leads_moves() is not None
        [leader] = one.leaders()
        assert (leader.scheduler_id, leader.address, leader.regions) == ("one", "one:1", ())
        assert leader.term == next(iter((await world.store.range(election_prefix("mesh"))).items)).create_revision


async def test_of_two_one_leads_and_the_other_says_who(world: World) -> None:
    async with world.scheduler("one") as one, world.scheduler("two") as two:
        assert one.leads(EUROPE) is not None
        assert two.leads(EUROPE) is None
        one.require(EUROPE)
        with pytest.raises(NotLeader, match="one at one:1 does"):
            two.require(EUROPE)
        assert one.leaders() == two.leaders()


async def test_a_region_that_gets_a_group_of_its_own_is_left_alone_by_the_meshs_leader(world: World) -> None:
    async with world.scheduler("one") as one:
        before = one.leads(EUROPE)
        assert before is not None
        async with world.scheduler("two", "europe, asia") as two:
            assert [one.leads(each) is None for each in (EUROPE, ASIA, AFRICA)] == [True, True, False]
            assert [two.leads(each) is None for each in (EUROPE, ASIA, AFRICA)] == [False, False, True]
            assert not await world.holds(tuple(before)), "what it was about to write there is refused"
            assert await world.holds(tuple(two.leads(EUROPE) or ()))
            assert await world.holds(tuple(one.leads(AFRICA) or ()))
            assert {each.regions for each in one.leaders()} == {(), (ASIA, EUROPE)}
            assert one.leader_of(ASIA) == two.leader_of(ASIA) != one.leader_of(AFRICA)
        await world.clock.advance(1.0)
        assert one.leads(EUROPE) is not None, "and takes it back when that group is gone"
        assert await world.holds(tuple(before)), "by the very same leadership"


async def test_groups_that_name_the_same_region_share_it_one_after_the_other(world: World) -> None:
    async with world.scheduler("one", "europe") as one, world.scheduler("two", "europe,asia") as two:
        assert [one.leads(EUROPE) is None, two.leads(EUROPE) is None, two.leads(ASIA) is None] == [False, True, False]
        assert {each.scheduler_id: each.regions for each in one.leaders()} == {"one": (EUROPE,), "two": (ASIA,)}
        stale = one.leads(EUROPE)
        assert stale is not None
        await world.end_lease(one)
        await world.clock.advance(3.0)
        assert two.leads(EUROPE) is not None
        assert not await world.holds(tuple(stale))


async def test_alias_moves_are_the_meshs_leaders_or_the_first_groups(world: World) -> None:
    async with world.scheduler("one", "europe") as one, world.scheduler("two", "asia") as two:
        assert [each.leads_moves() is None for each in (one, two)] == [True, False], "asia comes before europe"
        async with world.scheduler("three") as three:
            assert [each.leads_moves() is None for each in (one, two, three)] == [True, True, False]


async def test_whoever_loses_its_lease_leads_nothing_and_tells_so(world: World) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(world.scheduler("one", "europe"))
        two = await stack.enter_async_context(world.scheduler("two", "europe"))
        heard: list[tuple[bool, bool]] = []
        two.on_change.append(lambda: heard.append((one.leads(EUROPE) is not None, two.leads(EUROPE) is not None)))
        stale = one.leads(EUROPE)
        await world.end_lease(one)
        await world.clock.advance(0.2)
        assert one.leads(EUROPE) is None
        assert two.leads(EUROPE) is not None
        assert heard[-1] == (False, True)
        assert not await world.holds(tuple(stale or ()))
        assert (one.elections, two.elections) == (1, 1)


async def test_etcd_away_for_long_leaves_nobody_leading_and_elects_when_it_is_back(world: World) -> None:
    async with world.scheduler("one") as one, world.scheduler("two") as two:
        world.store.go_away()
        await world.clock.advance(60.0)
        assert [one.leads(EUROPE), two.leads(EUROPE)] == [None, None]
        world.store.come_back(empty=True)
        await world.clock.advance(5.0)
        assert sorted(each.leads(EUROPE) is None for each in (one, two)) == [False, True]


async def test_garbage_under_the_election_keys_harms_nobody(world: World) -> None:
    for key in ("mesh/x/y", "what", "europe/", "claim:", "/"):
        await world.store.put(f"/penstock/election/{key}", b"\xff\xff")
    async with world.scheduler("one", "asia") as one, world.scheduler("two") as two:
        assert one.leads(ASIA) is not None
        assert two.leads(EUROPE) is not None
        assert [each.regions for each in one.leaders()] == [(ASIA,), ()]


@pytest.mark.parametrize(
    ("names", "regions", "name"),
    [("", (), "mesh"), (" ,", (), "mesh"), ("b,a,b", (Region("a"), Region("b")), "a+b"), ("eu-1", (Region("eu-1"),), "eu-1")],
)
def test_groups_by_their_names(names: str, regions: tuple[Region, ...], name: str) -> None:
    group = group_of(names)
    assert (group, group.name) == (Group(regions), name)
    assert regions_named(name) == regions


@pytest.mark.parametrize("names", ["Europe", "a/b", "a+b", "mesh", ",".join(f"r{number}" for number in range(33))])
def test_what_is_no_group(names: str) -> None:
    with pytest.raises(InvalidArgument):
        group_of(names)
