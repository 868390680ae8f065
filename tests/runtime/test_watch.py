"""The watch's own decisions, over a clock that stands still: when it follows on, when it reads everything again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from itertools import pairwise

import pytest

from runtime.backoff import DEFAULT_BACKOFF
from runtime.keyvalue import Changes, Snapshot, Watch
from runtime.memory_store import MemoryStore
from runtime.watch import Stamp, WatchTiming
from tests.support.manual_clock import ManualClock, settle
from tests.support.waiting import events_of, snapshot_of, update_of


class Observed(MemoryStore):
    """An in-memory store that notes when it is asked for everything, and can fail in ways of its own."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock, rng=random.Random(7), watch_timing=WatchTiming(waiting_updates=4))
        self.clock = clock
        self.ranges: list[float] = []
        self.compared: list[float] = []
        self.broken = False

    async def range(self, prefix: str) -> Snapshot:
        self.ranges.append(self.clock.monotonic_s())
        if self.broken:
            raise ValueError("a bug")
        return await super().range(prefix)

    async def stamps_at(self, prefix: str, revision: int) -> Mapping[str, Stamp]:
        self.compared.append(self.clock.monotonic_s())
        return await super().stamps_at(prefix, revision)

    async def back(self, *, empty: bool = False) -> None:
        self.come_back(empty=empty)
        await self.clock.advance(10)


@pytest.fixture
async def store() -> AsyncIterator[Observed]:
    async with Observed(ManualClock()) as observed:
        yield observed


async def nothing_waits(watch: Watch) -> bool:
    await settle()
    try:
        await update_of(watch, patience_s=0.02)
    except TimeoutError:
        return True
    return False


async def test_a_broken_stream_is_followed_on_from_where_it_was(store: Observed) -> None:
    await store.put("/w/1", b"1")
    async with store.watch("/w/") as watch:
        assert await snapshot_of(watch) == {"/w/1": b"1"}
        await store.put("/w/2", b"2")
        assert await events_of(watch, 1) == [("/w/2", b"2")]
        store.go_away()
        await store.clock.advance(1)
        assert not watch.connected
        store.come_back()
        await store.put("/w/3", b"3")
        await store.delete("/w/1")
        await store.clock.advance(10)
        assert watch.connected
        assert await events_of(watch, 2) == [("/w/3", b"3"), ("/w/1", None)]
        assert len(store.ranges) == 1


async def test_changes_beside_the_prefix_do_not_cost_a_new_snapshot(store: Observed) -> None:
    async with store.watch("/w/") as watch:
        assert await snapshot_of(watch) == {}
        await store.put("/beside", b"1")
        await settle()
        store.go_away()
        await store.clock.advance(1)
        store.come_back()
        await store.put("/beside", b"2")
        await store.clock.advance(10)
        assert await nothing_waits(watch)
        await store.put("/w/1", b"1")
        assert await events_of(watch, 1) == [("/w/1", b"1")]


async def test_a_store_that_came_back_empty_gives_an_empty_snapshot(store: Observed) -> None:
    await store.put("/w/1", b"1")
    async with store.watch("/w/") as watch:
        await snapshot_of(watch)
        store.go_away()
        await store.clock.advance(1)
        await store.back(empty=True)
        assert await snapshot_of(watch) == {}
        await store.put("/w/2", b"2")
        assert await events_of(watch, 1) == [("/w/2", b"2")]


async def test_a_store_that_was_emptied_and_has_grown_past_our_revision_is_seen_through(store: Observed) -> None:
    await store.put("/w/1", b"1")
    async with store.watch("/w/") as watch:
        await snapshot_of(watch)
        store.go_away()
        await store.clock.advance(1)
        store.come_back(empty=True)
        for number in range(20):
            await store.put("/beside", b"%d" % number)
        await store.put("/w/9", b"9")
        await store.clock.advance(10)
        assert await snapshot_of(watch) == {"/w/9": b"9"}


async def test_an_emptied_store_whose_keys_are_written_alike_is_seen_through_by_their_lease(store: Observed) -> None:
    one = await store.grant_lease(1000)
    await store.put("/w/1", b"old", lease_id=one.lease_id)
    async with store.watch("/w/") as watch:
        await snapshot_of(watch)
        store.go_away()
        await store.clock.advance(1)
        store.come_back(empty=True)
        another = await store.grant_lease(1000)
        await store.put("/w/1", b"new", lease_id=another.lease_id)
        await store.clock.advance(10)
        assert await snapshot_of(watch) == {"/w/1": b"new"}


async def test_compaction_while_away_gives_a_fresh_snapshot(store: Observed) -> None:
    await store.put("/w/1", b"1")
    async with store.watch("/w/") as watch:
        await snapshot_of(watch)
        store.go_away()
        await store.clock.advance(1)
        store.come_back()
        await store.delete("/w/1")
        await store.compact(await store.put("/w/2", b"2"))
        await store.clock.advance(10)
        assert await snapshot_of(watch) == {"/w/2": b"2"}


async def test_compaction_of_what_was_seen_costs_nothing(store: Observed) -> None:
    async with store.watch("/w/") as watch:
        await snapshot_of(watch)
        revision = await store.put("/w/1", b"1")
        await events_of(watch, 1)
        await store.compact(revision)
        store.go_away()
        await store.clock.advance(1)
        await store.back()
        assert await nothing_waits(watch)
        assert len(store.ranges) == 1


async def test_it_says_for_how_long_changes_may_have_been_missed(store: Observed) -> None:
    store.go_away()
    async with store.watch("/w/") as watch:
        await settle()
        assert (watch.connected, watch.synced_age_s) == (False, float("inf"))
        await store.back()
        assert (watch.connected, watch.synced_age_s) == (True, 0.0)
        await store.clock.advance(1000)
        assert watch.synced_age_s == 0.0
        store.go_away()
        await store.clock.advance(60)
        assert watch.synced_age_s == 60.0


async def test_while_the_store_is_away_it_asks_now_and_then_only(store: Observed) -> None:
    store.go_away()
    async with store.watch("/w/"):
        await store.clock.advance(1000)
        gaps = [later - earlier for earlier, later in pairwise(store.ranges)]
        assert all(0.1 <= gap <= DEFAULT_BACKOFF.max_s * 1.5 for gap in gaps)
        assert len(gaps) < 1000 / DEFAULT_BACKOFF.max_s
        assert len(set(gaps)) > 10


async def test_a_stream_that_breaks_at_once_again_and_again_is_not_asked_in_a_hurry(store: Observed) -> None:
    async with store.watch("/w/") as watch:
        await snapshot_of(watch)
        for _ in range(1000):
            store.go_away()
            store.come_back()
            await store.clock.advance(0.1)
        assert len(store.compared) < 100 / DEFAULT_BACKOFF.max_s + 20


async def test_after_a_long_quiet_time_the_first_retry_comes_quickly(store: Observed) -> None:
    async with store.watch("/w/") as watch:
        await snapshot_of(watch)
        for _ in range(10):
            store.go_away()
            store.come_back()
            await store.clock.advance(0.2)
            assert watch.connected
            await store.clock.advance(60)


async def test_an_unexpected_failure_is_survived(store: Observed) -> None:
    store.broken = True
    async with store.watch("/w/") as watch:
        await store.clock.advance(10)
        store.broken = False
        await store.clock.advance(10)
        assert await snapshot_of(watch) == {}


async def test_a_reader_that_falls_behind_loses_nothing_and_fills_no_memory(store: Observed) -> None:
    async with store.watch("/w/") as watch:
        await snapshot_of(watch)
        for number in range(100):
            await store.put("/w/1", b"%d" % number)
            await settle()
        updates = 0
        values: list[bytes | None] = []
        while len(values) < 100:
            update = await update_of(watch)
            assert isinstance(update, Changes)
            updates += 1
            values.extend(event.item.value for event in update.events if not hasattr(event, "mod_revision"))
        assert values == [b"%d" % number for number in range(100)]
        assert updates <= 7  # what fits, one held in hand, the rest in one piece


async def test_a_random_life_ends_in_the_same_picture(store: Observed) -> None:
    """Whatever happens to the store, replaying the updates gives what it holds."""
    rng = random.Random(11)
    seen: dict[str, bytes] = {}

    async def replay(watch: Watch) -> None:
        async for update in watch:
            if isinstance(update, Snapshot):
                seen.clear()
                seen.update({item.key: item.value for item in update.items})
                continue
            for event in update.events:
                if hasattr(event, "item"):
                    seen[event.key] = event.item.value
                else:
                    assert event.key in seen, "a deletion of what was never there: something was missed"
                    del seen[event.key]

    async with store.watch("/w/") as watch:
        replaying = asyncio.ensure_future(replay(watch))
        for number in range(600):
            match rng.randrange(20):
                case 0:
                    store.go_away()
                    await store.clock.advance(rng.random())
                    store.come_back(empty=rng.random() < 0.3)
                case 1:
                    store.go_away()
                    store.come_back(empty=True)
                case 2 if (revision := (await store.range("")).revision) > 1:
                    await store.compact(revision) if rng.random() < 0.3 else None
                case 3 | 4 | 5 | 6:
                    await store.delete(f"/w/{rng.randrange(10)}")
                case _:
                    await store.put(f"/w/{rng.randrange(10)}", b"%d" % number)
            if rng.random() < 0.2:
                await store.clock.advance(rng.random() * 3)
        await store.clock.advance(30)
        assert seen == {item.key: item.value for item in (await store.range("/w/")).items}
        replaying.cancel()


async def test_leaving_leaves_no_task(store: Observed) -> None:
    before = asyncio.all_tasks()
    async with store.watch("/w/") as watch:
        await snapshot_of(watch)
    store.go_away()
    async with store.watch("/w/"):
        await settle()
    assert asyncio.all_tasks() == before
