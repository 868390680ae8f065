"""The routing policy in etcd: replaced, followed, fenced, and not lost with etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

import pytest

from placement.rules import RoutingPolicy, Rule
from placement.types import Strategy
from runtime.backoff import Backoff
from runtime.errors import Aborted, InvalidArgument, PenstockError
from runtime.ids import ROUTING_POLICY_KEY
from runtime.keyvalue import Remove, TxnResult
from runtime.memory_store import MemoryStore
from runtime.watch import WatchTiming
from scheduler.routing.codec import policy_bytes, policy_from
from scheduler.routing.store import RoutingPolicies
from tests.support.manual_clock import ManualClock


def rules(*names: str) -> RoutingPolicy:
    return RoutingPolicy(0, tuple(Rule(name, strategy=Strategy.COST) for name in names))


def named(policy: RoutingPolicy | None) -> list[str] | None:
    return None if policy is None else [rule.name for rule in policy.rules]


class Room:
    """A store, and schedulers' policies that follow it, all by one clock."""

    def __init__(self, clock: ManualClock, store: MemoryStore, stack: AsyncExitStack) -> None:
        self.clock, self.store, self._stack = clock, store, stack

    async def follower(self) -> RoutingPolicies:
        policies = RoutingPolicies(self.store, self.clock)
        await self._stack.enter_async_context(policies.running())
        await self.clock.advance(0.1)
        return policies

    async def stored(self) -> RoutingPolicy | None:
        item = await self.store.get(ROUTING_POLICY_KEY)
        return None if item is None else policy_from(item.value)


@pytest.fixture
async def room(clock: ManualClock) -> AsyncIterator[Room]:
    async with _room(clock) as made:
        yield made


@asynccontextmanager
async def _room(clock: ManualClock) -> AsyncIterator[Room]:
    timing = WatchTiming(backoff=Backoff(first_s=0.05, max_s=0.2, jitter=0.0))
    async with MemoryStore(clock=clock, rng=Random(1), watch_timing=timing) as store, AsyncExitStack() as stack:
        yield Room(clock, store, stack)


async def test_nothing_is_known_until_etcd_was_seen_and_then_there_are_no_rules(room: Room) -> None:
    policies = RoutingPolicies(room.store, room.clock)
    assert policies.known is None
    assert policies.current == RoutingPolicy()
    assert (await room.follower()).known == RoutingPolicy()


async def test_what_one_scheduler_puts_in_force_all_others_follow(room: Room) -> None:
    one, other, heard = await room.follower(), await room.follower(), list[int]()
    other.on_change.append(lambda: heard.append(other.current.generation))
    made = await one.replace(rules("first"))
    assert (made.generation, one.current) == (1, made), "known here before its echo"
    await room.clock.advance(0.1)
    assert other.current == made
    await other.replace(rules("second"))
    await room.clock.advance(0.1)
    assert named(one.current) == ["second"]
    assert heard == [1, 2]


async def test_who_read_an_older_one_is_told_to_read_again(room: Room) -> None:
    one, other = await room.follower(), await room.follower()
    await one.replace(rules("first"), 0)
    with pytest.raises(Aborted, match="generation 1, not 0"):
        await other.replace(rules("late"), 0)
    assert named(await room.stored()) == ["first"]
    assert (await other.replace(rules("next"), 1)).generation == 2


async def test_of_many_at_once_each_gets_its_generation_or_is_told_so(room: Room) -> None:
    schedulers = [await room.follower() for _ in range(3)]
    asked = [each.replace(rules(f"rule {number}")) for number, each in enumerate(schedulers)]
    made = await asyncio.gather(*asked)
    assert sorted(each.generation for each in made) == [1, 2, 3]
    expecting = [each.replace(rules("x"), 3) for each in schedulers]
    outcomes = await asyncio.gather(*expecting, return_exceptions=True)
    assert sum(isinstance(each, RoutingPolicy) for each in outcomes) == 1
    assert sum(isinstance(each, Aborted) for each in outcomes) == 2


class _Contended(MemoryStore):
    """A store in which somebody else is always faster."""

    async def txn(self, compares, success, failure=()):  # type: ignore[no-untyped-def]
        result: TxnResult = await super().txn((), ()) if compares else await super().txn(compares, success, failure)
        return TxnResult(False, result.revision) if compares else result


async def test_who_never_wins_is_told_to_try_again(clock: ManualClock) -> None:
    async with _Contended() as store:
        with pytest.raises(Aborted, match="others are replacing"):
            await RoutingPolicies(store, clock).replace(rules("x"))


@pytest.mark.parametrize("raw", [b"\xff\xff", b"", policy_bytes(rules("x")).replace(b"cost", b"c0st")])
async def test_malformed_bytes_are_refused_and_the_last_good_policy_stays(room: Room, raw: bytes) -> None:
    policies = await room.follower()
    made = await policies.replace(rules("good"))
    await room.store.put(ROUTING_POLICY_KEY, raw)
    await room.clock.advance(5.0)
    assert policies.current == made
    assert (await policies.replace(rules("better"))).generation == 2, "what cannot be read is replaced"
    assert named(await room.stored()) == ["better"]


async def test_a_wiped_etcd_gets_it_back_from_one_of_them(room: Room) -> None:
    schedulers = [await room.follower() for _ in range(3)]
    for name in ("first", "second"):
        made = await schedulers[0].replace(rules(name))
    await room.clock.advance(0.1)
    room.store.go_away()
    await room.clock.advance(5.0)
    assert all(named(each.current) == ["second"] for each in schedulers)
    with pytest.raises(PenstockError):
        await schedulers[0].replace(rules("third"))
    room.store.come_back(empty=True)
    await room.clock.advance(5.0)
    assert await room.stored() == made
    assert not any(each.is_lost for each in schedulers)
    assert (await room.follower()).current == made


async def test_an_older_backup_does_not_undo_a_policy(room: Room) -> None:
    policies = await room.follower()
    old = policy_bytes(await policies.replace(rules("old")))
    new = await policies.replace(rules("new"))
    await room.clock.advance(0.1)
    await room.store.put(ROUTING_POLICY_KEY, old)
    await room.clock.advance(2.0)
    assert policies.current == new
    assert await room.stored() == new


async def test_a_deleted_policy_comes_back_and_one_without_rules_ends_it(room: Room) -> None:
    policies = await room.follower()
    await policies.replace(rules("kept"))
    await room.store.txn([], [Remove(ROUTING_POLICY_KEY)])
    await room.clock.advance(2.0)
    assert named(await room.stored()) == ["kept"]
    await policies.replace(RoutingPolicy())
    await room.clock.advance(2.0)
    assert policies.current == RoutingPolicy(2)


async def test_what_cannot_be_followed_or_kept_is_not_written(room: Room) -> None:
    policies = await room.follower()
    with pytest.raises(InvalidArgument, match="'speed' is no weight"):
        await policies.replace(RoutingPolicy(0, (Rule(weights={"speed": 1.0}),)))
    long = Rule(tenants=tuple(f"{number:0128d}" for number in range(64)))
    with pytest.raises(InvalidArgument, match="bytes; at most 524288 are kept"):
        await policies.replace(RoutingPolicy(0, (long,) * 100))
    assert await room.stored() is None
