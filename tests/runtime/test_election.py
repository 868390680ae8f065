"""Who leads: one body for etcd and for the store in memory; and what time does to it, on a clock that stands still."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from runtime.candidates import Candidates, Term, claim_key
from runtime.clock import Clock, SystemClock
from runtime.election import Election
from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.ids import ELECTION_PREFIX, election_prefix
from runtime.keyvalue import Delete, KeyValue, Put, Write
from runtime.memory_store import MemoryStore
from tests.support.etcd import EtcdServer, running_etcd
from tests.support.manual_clock import ManualClock, settle
from tests.support.waiting import eventually

Store = EtcdStore | MemoryStore
GROUP = "here"
TTL_S = 5


@asynccontextmanager
async def standing(
    store: Store, clock: Clock, name: str = "a", group: str = GROUP, claims: tuple[str, ...] = ()
) -> AsyncIterator[Election]:
    election = Election(store, clock, random.Random(name), group, claims, ttl_s=TTL_S)
    async with election.watching(), election.standing(name.encode()):
        yield election


def stands(election: Election) -> int:
    """How many it sees stand."""
    return len(election.candidates._known)


async def may_write(store: Store, term: Term, key: str = "/led") -> bool:
    return (await store.txn(term.fence(), [Write(key, term.key.encode())])).succeeded


# What both stores keep.


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    with running_etcd() as server:
        yield server


@pytest.fixture(params=["memory", "etcd"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        async with MemoryStore() as memory:
            yield memory
        return
    server: EtcdServer = request.getfixturevalue("etcd")
    async with EtcdStore(EtcdSettings.at(server.endpoint)) as session:
        await session.delete_prefix("")
        yield session


async def test_the_first_to_stand_leads_and_proves_it(store: Store) -> None:
    async with standing(store, SystemClock()) as election:
        await eventually(lambda: election.term() is not None)
        term = election.term()
        assert term is not None
        stored = await store.get(term.key)
        assert stored is not None
        assert (stored.create_revision, stored.value) == (term.create_revision, b"a")
        assert stored.key == f"{election_prefix(GROUP)}{stored.lease_id:x}"
        assert await may_write(store, term)


async def test_of_several_one_leads_and_when_it_resigns_the_next_does_at_once(store: Store) -> None:
    async with AsyncExitStack() as stack:
        elections: list[Election] = []
        for name in "abc":
            elections.append(await stack.enter_async_context(standing(store, SystemClock(), name)))
            await eventually(lambda: stands(elections[0]) == len(elections))
        first, second, third = elections
        before = first.term()
        assert before is not None
        assert [each.term() for each in (second, third)] == [None, None]
        async with standing(store, SystemClock(), "d"):
            pass
        leases = [item.lease_id for item in (await store.range(ELECTION_PREFIX)).items]
        assert len(leases) == 3, "who leaves takes its key along"
        await store.revoke_lease(int(before.key.rpartition("/")[2], 16))
        await eventually(lambda: second.term() is not None)
        assert third.term() is None
        after = second.term()
        assert after is not None
        assert after.create_revision > before.create_revision
        assert not await may_write(store, before), "the former leader's writes fail, whatever it believes"
        assert await may_write(store, after)


async def test_groups_are_led_apart(store: Store) -> None:
    async with standing(store, SystemClock(), "a", "x") as a, standing(store, SystemClock(), "b", "y") as b:
        await eventually(lambda: a.term() is not None and b.term() is not None)
        await eventually(lambda: set(a.candidates.leaders()) == set(b.candidates.leaders()) == {"x", "y"})


async def test_a_claim_is_one_leaders_and_passes_on_with_its_lease(store: Store) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(standing(store, SystemClock(), "a", "x", ("europe", "asia")))
        await eventually(lambda: set(first.candidates.claims()) == {"europe", "asia"})
        second = await stack.enter_async_context(standing(store, SystemClock(), "b", "y", ("asia",)))
        await eventually(lambda: second.term() is not None)
        own, other = first.term(), second.term()
        assert own is not None
        assert other is not None
        assert (await store.get(claim_key("asia"))).value == own.key.encode()  # type: ignore[union-attr]
        await store.revoke_lease(int(own.key.rpartition("/")[2], 16))
        await eventually(lambda: holder(second, "asia") == other.key)


def holder(election: Election, name: str) -> str:
    claim = election.candidates.claims().get(name)
    return "" if claim is None else claim.value.decode()


async def test_a_key_that_somebody_deleted_is_written_again_at_the_back(store: Store) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(standing(store, SystemClock(), "a"))
        await eventually(lambda: first.term() is not None)
        second = await stack.enter_async_context(standing(store, SystemClock(), "b"))
        await eventually(lambda: stands(second) == 2)
        before = first.term()
        assert before is not None
        await store.delete(before.key)
        await eventually(lambda: second.term() is not None)
        await eventually(lambda: stands(second) == 2)
        assert first.term() is None
        assert not await may_write(store, before)


async def test_a_process_started_again_does_not_wait_for_its_former_self(store: Store) -> None:
    async with standing(store, SystemClock(), "a", "x", ("europe",)) as frozen, standing(store, SystemClock(), "b", "y"):
        await eventually(lambda: holder(frozen, "europe") != "")
        before = frozen.term()
        assert before is not None
        again = Election(store, SystemClock(), random.Random(9), "x", ("europe",), ttl_s=60)
        async with again.watching(), again.standing(b"a", is_former=lambda value: value == b"a"):
            await eventually(lambda: (term := again.term()) is not None and holder(again, "europe") == term.key)
            assert not await may_write(store, before)
            await eventually(lambda: sum(each.group == "x" for each in again.candidates.standing()) == 2)
            assert frozen.term() is None, "it lives after all, and stands at the back"
            assert set(again.candidates.leaders()) == {"x", "y"}, "the others are left alone"


# What time does to it.


@pytest.fixture
async def world() -> AsyncIterator[tuple[MemoryStore, ManualClock]]:
    clock = ManualClock()
    async with MemoryStore(clock=clock, rng=random.Random(1)) as memory:
        yield memory, clock


async def test_who_cannot_renew_stops_at_its_own_clocks_word(world: tuple[MemoryStore, ManualClock]) -> None:
    memory, clock = world
    async with standing(memory, clock) as election:
        await clock.advance(1.0)
        assert election.term() is not None
        heard: list[bool] = []
        election.on_change.append(lambda: heard.append(election.term() is not None))
        memory.go_away()
        await clock.advance(TTL_S - 3.5)
        assert election.term() is not None, "its lease is still certain"
        await clock.advance(4.0)
        assert election.term() is None
        assert heard[-1] is False, "and it says so by itself"


async def test_a_lease_granted_anew_stands_at_the_back(world: tuple[MemoryStore, ManualClock]) -> None:
    memory, clock = world
    async with standing(memory, clock, "a") as first, standing(memory, clock, "b") as second:
        await clock.advance(1.0)
        before = first.term()
        assert before is not None
        await memory.revoke_lease(int(before.key.rpartition("/")[2], 16))
        await clock.advance(TTL_S)
        assert second.term() is not None
        assert first.term() is None
        assert len((await memory.range(election_prefix(GROUP))).items) == 2
        await memory.revoke_lease(int(second.term().key.rpartition("/")[2], 16))  # type: ignore[union-attr]
        await settle()
        again = first.term()
        assert again is not None
        assert again.key != before.key
        assert again.create_revision > before.create_revision


async def test_a_store_that_lost_everything_elects_anew(world: tuple[MemoryStore, ManualClock]) -> None:
    memory, clock = world
    async with standing(memory, clock, "a") as first, standing(memory, clock, "b") as second:
        await clock.advance(1.0)
        before = first.term()
        assert before is not None
        memory.go_away()
        await clock.advance(1.0)
        memory.come_back(empty=True)
        await clock.advance(2 * TTL_S)
        leading = [each for each in (first, second) if each.term() is not None]
        assert len(leading) == 1
        assert len((await memory.range(election_prefix(GROUP))).items) == 2
        assert not await may_write(memory, before)


async def test_at_rest_nothing_is_written(world: tuple[MemoryStore, ManualClock]) -> None:
    memory, clock = world
    async with standing(memory, clock, "a", "x", ("europe",)), standing(memory, clock, "b", "x", ("europe",)):
        await clock.advance(5.0)
        revision = (await memory.range("/")).revision
        await clock.advance(120.0)
        assert (await memory.range("/")).revision == revision


# What a list of keys says.


def _item(key: str, create_revision: int, lease_id: int = 1) -> KeyValue:
    return KeyValue(ELECTION_PREFIX + key, key.encode(), create_revision, create_revision, 1, lease_id)


def test_the_oldest_leads_in_whatever_order_they_are_seen() -> None:
    items = [_item("x/2", 7), _item("x/1", 5), _item("y/3", 6), _item("claim:z", 8), _item("x/9", 9), _item("x/0", 1, 0)]
    for order in (items, items[::-1]):
        candidates = Candidates()
        candidates.replace(order)
        assert {group: each.create_revision for group, each in candidates.leaders().items()} == {"x": 5, "y": 6}
        assert set(candidates.claims()) == {"z"}
    candidates.apply([Delete(f"{ELECTION_PREFIX}x/1", 10), Put(_item("y/0", 11))])
    assert {group: each.create_revision for group, each in candidates.leaders().items()} == {"x": 7, "y": 6}
