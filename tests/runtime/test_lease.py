"""The lease's own decisions, over a clock that stands still: when it renews, when it is lost, what it writes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from itertools import pairwise

import pytest

from runtime.backoff import DEFAULT_BACKOFF
from runtime.errors import InvalidArgument
from runtime.keyvalue import EtcdRequestRefused, LeaseFull
from runtime.lease import Granted, LeaseTiming, held_lease
from runtime.memory_store import MemoryStore
from tests.support.manual_clock import ManualClock, settle

TTL_S = 15


class Observed(MemoryStore):
    """An in-memory store that notes what is asked of it, and refuses what it is told to."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock, rng=random.Random(7), lease_timing=LeaseTiming(keys=10))
        self.clock = clock
        self.asked: list[tuple[str, float]] = []
        self.refused = ""
        self.broken = False
        self.meanwhile: Callable[[], None] | None = None

    async def grant_lease(self, ttl_s: int) -> Granted:
        self.asked.append(("grant", self.clock.monotonic_s()))
        if self.broken:
            raise ValueError("a bug")
        return await super().grant_lease(ttl_s)

    async def renew_lease(self, lease_id: int) -> float:
        self.asked.append(("renew", self.clock.monotonic_s()))
        return await super().renew_lease(lease_id)

    async def put(self, key: str, value: bytes, *, lease_id: int = 0) -> int:
        self.asked.append((key, self.clock.monotonic_s()))
        if key == self.refused:
            raise EtcdRequestRefused("too large")
        if self.meanwhile is not None:
            happens, self.meanwhile = self.meanwhile, None
            happens()
        return await super().put(key, value, lease_id=lease_id)

    async def values(self) -> dict[str, bytes]:
        return {item.key: item.value for item in (await self.range("")).items}

    def times(self, what: str) -> list[float]:
        return [at_s for asked, at_s in self.asked if asked == what]


@pytest.fixture
async def store() -> AsyncIterator[Observed]:
    async with Observed(ManualClock()) as observed:
        yield observed


async def test_it_is_renewed_at_half_of_what_remains_a_little_early(store: Observed) -> None:
    async with store.lease(ttl_s=TTL_S) as lease:
        await store.clock.advance(600)
        assert lease.healthy
        times = [1000.0, *store.times("renew")]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert len(gaps) >= 600 / 7.5
        assert all(0.8 * 7.5 <= gap <= 7.5 for gap in gaps)
        assert len(set(gaps)) > 10
        assert len(store.times("grant")) == 1


async def test_entering_does_not_wait_for_a_store_that_is_away(store: Observed) -> None:
    store.go_away()
    async with store.lease(ttl_s=TTL_S) as lease:
        lease.put("/a", b"1")
        await store.clock.advance(60)
        assert (lease.id, lease.healthy, lease.settled) == (0, False, False)
        store.come_back()
        await store.clock.advance(10)
        assert lease.settled
        assert await store.values() == {"/a": b"1"}


async def test_a_value_changed_while_the_store_is_away_is_there_when_it_is_back(store: Observed) -> None:
    async with store.lease(ttl_s=TTL_S) as lease:
        lease.put("/a", b"1")
        lease.put("/b", b"1")
        await settle()
        store.go_away()
        lease.put("/a", b"2")
        lease.put("/a", b"3")
        lease.delete("/b")
        await store.clock.advance(3)
        assert not lease.settled
        store.come_back()
        await store.clock.advance(6)
        assert await store.values() == {"/a": b"3"}
        assert len(store.times("grant")) == 1


async def test_a_store_that_came_back_empty_gets_a_new_lease_and_every_key(store: Observed) -> None:
    async with store.lease(ttl_s=TTL_S) as lease:
        for number in range(5):
            lease.put(f"/k/{number}", b"%d" % number)
        await settle()
        before = lease.id
        store.go_away()
        await store.clock.advance(2)
        store.come_back(empty=True)
        await store.clock.advance(TTL_S)
        assert lease.settled
        assert lease.id not in (0, before)
        assert await store.lease_keys(lease.id) == {f"/k/{number}" for number in range(5)}


async def test_a_put_that_finds_the_lease_lost_is_repeated_under_the_new_one(store: Observed) -> None:
    async with store.lease(ttl_s=TTL_S) as lease:
        lease.put("/a", b"1")
        await settle()
        await store.revoke_lease(lease.id)
        lease.put("/b", b"2")
        await store.clock.advance(1)
        assert lease.settled
        assert await store.lease_keys(lease.id) == {"/a", "/b"}


async def test_it_stops_being_healthy_at_the_moment_its_time_is_over_and_says_so(store: Observed) -> None:
    async with store.lease(ttl_s=TTL_S) as lease:
        await settle()
        assert lease.healthy
        store.go_away()
        async with asyncio.TaskGroup() as tasks:
            told = tasks.create_task(lease.changed())
            await store.clock.advance(TTL_S - 0.01)
            assert lease.healthy
            assert not told.done()
            await store.clock.advance(0.02)
            assert not lease.healthy


async def test_it_stays_the_same_lease_when_the_store_still_has_it(store: Observed) -> None:
    async with store.lease(ttl_s=TTL_S) as lease:
        lease.put("/a", b"1")
        await settle()
        before = lease.id
        for _ in range(20):
            store.go_away()
            await store.clock.advance(4)
            store.come_back()
            await store.clock.advance(8)
        assert lease.id == before
        assert lease.settled


async def test_while_the_store_is_away_it_asks_now_and_then_only(store: Observed) -> None:
    store.go_away()
    async with store.lease(ttl_s=TTL_S) as lease:
        for _ in range(100):  # wishes do not make it ask more often
            lease.put("/a", b"1")
            await store.clock.advance(10)
        gaps = [later - earlier for earlier, later in pairwise(store.times("grant"))]
        assert max(gaps) <= DEFAULT_BACKOFF.max_s * 1.5
        assert min(gaps) >= 0.1
        assert len(gaps) < 1000 / DEFAULT_BACKOFF.max_s
        assert len(set(gaps)) > len(gaps) * 0.9


async def test_a_store_back_from_long_away_without_the_lease_gives_a_new_one_at_the_first_word(store: Observed) -> None:
    async with store.lease(ttl_s=TTL_S) as lease:
        lease.put("/a", b"1")
        await settle()
        before = lease.id
        store.go_away()
        await store.clock.advance(120)
        store.come_back()
        await store.clock.advance(DEFAULT_BACKOFF.max_s * 1.5 + 0.2)
        assert lease.settled
        assert lease.id != before


async def test_a_process_frozen_beyond_its_lease_knows_it_at_once_and_registers_under_a_new_one(store: Observed) -> None:
    own = ManualClock()  # stands still while the store's goes on
    async with held_lease(store, TTL_S, clock=own, rng=random.Random(5), timing=LeaseTiming()) as lease:
        lease.put("/a", b"1")
        await settle()
        before = lease.id
        await store.clock.advance(60)
        assert await store.values() == {}, "others saw it go"
        own._now_s += 60
        assert not lease.healthy, "thawed, it trusts nothing that it held"
        await own.advance(1)
        assert lease.settled
        assert lease.id not in (0, before)
        assert await store.lease_keys(lease.id) == {"/a"}


async def test_a_key_that_somebody_deleted_is_written_again(store: Observed) -> None:
    async with store.lease(ttl_s=TTL_S) as lease:
        lease.put("/a", b"1")
        await settle()
        await store.delete("/a")
        await store.clock.advance(TTL_S / 2)
        assert await store.values() == {"/a": b"1"}


async def test_a_key_that_somebody_overwrote_is_written_again(store: Observed) -> None:
    async with store.lease(ttl_s=TTL_S) as lease:
        lease.put("/a", b"1")
        await settle()
        await store.put("/a", b"foreign")
        await store.clock.advance(TTL_S / 2)
        assert await store.values() == {"/a": b"1"}


async def test_a_key_that_is_never_taken_does_not_hold_up_the_others(store: Observed) -> None:
    store.refused = "/huge"
    async with store.lease(ttl_s=TTL_S) as lease:
        lease.put("/huge", b"x")
        lease.put("/a", b"1")
        await store.clock.advance(60)
        assert lease.healthy
        assert not lease.settled
        assert await store.values() == {"/a": b"1"}
        assert len(store.times("/huge")) < 60
        assert len(store.times("/a")) == 1
        lease.delete("/huge")
        await store.clock.advance(10)
        assert lease.settled


async def test_an_unexpected_failure_is_survived(store: Observed) -> None:
    store.broken = True
    async with store.lease(ttl_s=TTL_S) as lease:
        lease.put("/a", b"1")
        await store.clock.advance(10)
        store.broken = False
        await store.clock.advance(10)
        assert lease.settled


async def test_putting_the_same_value_again_writes_it_again(store: Observed) -> None:
    async with store.lease(ttl_s=TTL_S) as lease:
        for _ in range(3):
            lease.put("/a", b"beat")
            await store.clock.advance(5)
        item = await store.get("/a")
        assert item is not None
        assert item.version == 3


async def test_a_value_that_changes_while_it_is_written_is_written_again(store: Observed) -> None:
    async with store.lease(ttl_s=TTL_S) as lease:
        store.meanwhile = lambda: lease.put("/a", b"2")
        lease.put("/a", b"1")
        await settle()
        assert lease.settled
        assert await store.values() == {"/a": b"2"}
        store.meanwhile = lambda: lease.delete("/a")
        lease.put("/a", b"3")
        await settle()
        assert lease.settled
        assert await store.values() == {}


async def test_it_carries_so_many_keys_and_no_more(store: Observed) -> None:
    async with store.lease(ttl_s=TTL_S) as lease:
        for number in range(10):
            lease.put(f"/{number}", b"")
        with pytest.raises(LeaseFull, match="10 keys"):
            lease.put("/10", b"")
        lease.put("/9", b"again")
        lease.delete("/9")
        lease.put("/10", b"")


async def test_nonsense_is_refused(store: Observed) -> None:
    async with store.lease(ttl_s=TTL_S) as lease:
        with pytest.raises(EtcdRequestRefused):
            lease.put("", b"")
        lease.delete("/never")
        await settle()
        assert lease.settled
    with pytest.raises(InvalidArgument, match="0 s"):
        async with store.lease(ttl_s=0):
            pass


async def test_leaving_revokes_and_leaves_no_task(store: Observed) -> None:
    before = asyncio.all_tasks()
    async with store.lease(ttl_s=TTL_S) as lease:
        lease.put("/a", b"1")
        await settle()
    assert await store.values() == {}
    await settle()
    assert asyncio.all_tasks() == before


async def test_leaving_by_an_error_gives_that_error(store: Observed) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with store.lease(ttl_s=TTL_S):
            raise KeyError("mine")


async def test_leaving_while_the_store_is_away_is_quiet(store: Observed) -> None:
    async with store.lease(ttl_s=TTL_S) as lease:
        lease.put("/a", b"1")
        await settle()
        store.go_away()
    store.come_back()
    assert await store.values() == {"/a": b"1"}
    await store.clock.advance(TTL_S + 1)
    assert await store.values() == {}
