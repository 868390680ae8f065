"""Many gateways in three regions, their schedulers, and an hour in a moment: admitted within 5 % of what is allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

import pytest

from gateway.limits.types import Limit, WhenUnsure
from placement.limits.types import IN_HANDS_S
from tests.support.shared_limits import NOON_S, TTL_S, Gateway, World
from tests.worker.virtual_time import VirtualLoop, run_virtually

T = TypeVar("T")
RATE, SECONDS = 20.0, 40.0
LIMIT = Limit("l", requests_per_s=RATE)
FULL_IN_S = 2.0


def whole(body: Callable[[World], Awaitable[T]], wall_s: float = NOON_S) -> T:
    async def run(loop: VirtualLoop) -> T:
        async with World(loop, wall_s=wall_s) as world:
            await asyncio.sleep(5)
            return await body(world)

    return run_virtually(run)


def within(world: World, since_s: float, rate: float = RATE, burst: float = RATE) -> None:
    """What was let in since then is what is allowed, and what was saved up."""
    passed_s = world.loop.time() - since_s
    admitted = world.admitted(since_s)
    assert admitted <= burst + rate * (passed_s + IN_HANDS_S)
    assert admitted >= rate * passed_s * 0.95


@pytest.mark.parametrize(
    "loads",
    [[8.0] * 7, [80.0, *[1.0] * 6], [60.0, *[0.0] * 6], [3.0] * 14],
    ids=["even", "one has nearly all", "one has all", "many with little"],
)
def test_gateways_in_three_regions_let_in_what_one_would(loads: list[float]) -> None:
    async def body(world: World) -> None:
        begun_s = world.loop.time()
        for number, load in enumerate(loads):
            world.load(world.gateway(number % 3), [LIMIT], lambda _, load=load: load)  # type: ignore[misc]
        await asyncio.sleep(SECONDS)
        within(world, begun_s)

    whole(body)


def test_what_is_less_than_allowed_is_let_in_whole() -> None:
    async def body(world: World) -> None:
        gateways = [world.gateway(number % 3) for number in range(7)]
        for gateway in gateways:
            world.load(gateway, [LIMIT], lambda _: 2.0)
        await asyncio.sleep(SECONDS)
        refused, admitted = sum(each.refused for each in gateways), world.admitted()
        assert refused <= 0.01 * admitted

    whole(body)


def test_load_that_moves_about_and_gateways_that_come_and_die() -> None:
    async def body(world: World) -> None:
        begun_s = world.loop.time()
        gateways: list[Gateway] = []

        def joined(number: int) -> None:
            gateway = world.gateway(number % 3)
            gateways.append(gateway)
            world.load(gateway, [LIMIT], lambda at_s: 60.0 if int(at_s / 4 + number) % 5 == 0 else 2.0)

        for number in range(5):
            joined(number)
        for number in range(5, 9):
            await asyncio.sleep(SECONDS / 8)
            joined(number)
            await asyncio.sleep(SECONDS / 8)
            await world.die(gateways[number - 5])
        within(world, begun_s)

    whole(body)


def test_a_leader_that_dies_is_followed_by_one_that_gives_no_burst_twice() -> None:
    async def body(world: World) -> None:
        begun_s = world.loop.time()
        for number in range(5):
            world.load(world.gateway(number % 3), [LIMIT], lambda _: 15.0)
        await asyncio.sleep(10)
        died_s = world.loop.time()
        await world.kill_leader()
        await asyncio.sleep(20)
        within(world, begun_s)
        led_again_s = died_s + TTL_S + 2 * FULL_IN_S
        within(world, led_again_s, burst=RATE * IN_HANDS_S)
        meanwhile = world.admitted(died_s, led_again_s)
        assert meanwhile == pytest.approx(RATE * (led_again_s - died_s), rel=0.2), "an even share of what they knew"

    whole(body)


def test_one_that_is_cut_off_lets_its_even_share_in_and_the_rest_let_in_what_is_allowed() -> None:
    async def body(world: World) -> None:
        gateways = [world.gateway(number % 3) for number in range(4)]
        for gateway in gateways:
            world.load(gateway, [LIMIT], lambda _: 20.0)
        await asyncio.sleep(10)
        gateways[0].cut_off, begun_s = True, world.loop.time()
        await asyncio.sleep(20)
        alone = sum(at_s > begun_s + 4 for at_s in gateways[0].admitted_s)
        assert alone == pytest.approx(RATE / 4 * 16, rel=0.1)
        others = world.admitted(begun_s) - sum(at_s > begun_s for at_s in gateways[0].admitted_s)
        assert RATE * 20 * 0.95 <= others <= RATE * (20 + 2)
        gateways[0].cut_off = False
        await asyncio.sleep(8)
        back_s = world.loop.time()
        await asyncio.sleep(20)
        within(world, back_s)

    whole(body)


def test_where_the_policy_is_to_refuse_nothing_comes_in_beyond_what_was_given() -> None:
    async def body(world: World) -> None:
        gateway = world.gateway()
        world.load(gateway, [Limit("l", requests_per_s=RATE, when_unsure=WhenUnsure.REFUSE)], lambda _: 40.0)
        await asyncio.sleep(10)
        gateway.cut_off, begun_s = True, world.loop.time()
        await asyncio.sleep(20)
        assert sum(at_s > begun_s for at_s in gateway.admitted_s) <= RATE
        assert "cannot be learnt now" in gateway.told[-1].message

    whole(body)


def test_tokens_are_known_afterwards_and_come_out_right_all_the_same() -> None:
    def cost(rng: Random) -> int:
        return rng.choice((200, 500, 3_000))

    async def body(world: World) -> None:
        limit = Limit("l", tokens_per_min=600_000)  # ten thousand a second, some eight requests
        gateways = [world.gateway(number % 3) for number in range(5)]
        for number, gateway in enumerate(gateways):
            world.load(gateway, [limit], lambda _, number=number: 20.0 if number else 1.0, takes_s=1.5, tokens=cost)  # type: ignore[misc]
        await asyncio.sleep(180)  # the first minute's worth is there at once
        allowed = 600_000 + 10_000 * 180
        assert sum(each.tokens for each in gateways) == pytest.approx(allowed, rel=0.05)
        assert all(each.refused for each in gateways[1:])

    whole(body)


def test_no_more_requests_are_under_way_than_may_be_and_no_permit_is_lost() -> None:
    async def body(world: World) -> None:
        limit = Limit("l", concurrent_requests=10)
        gateways = [world.gateway(number % 3) for number in range(5)]
        for number, gateway in enumerate(gateways):
            world.load(gateway, [limit], lambda _, number=number: 10.0 if number < 2 else 3.0, takes_s=1.0)  # type: ignore[misc]
        await asyncio.sleep(10)
        await world.die(gateways[0])
        await asyncio.sleep(20)
        assert world.most_under_way == 10
        for gateway in gateways[1:]:
            for task in [each for each in gateway.tasks if each.get_name() == "load"]:
                task.cancel()
        await asyncio.sleep(40)
        book = world.rooms[world.leader].book
        assert book is not None
        assert all(pot.held == 0 for pot in book.pots.values())

    whole(body)


def test_a_day_is_spent_once_also_where_its_leader_dies_and_there_is_more_the_next() -> None:
    midnight_s = 80.0

    async def body(world: World) -> None:
        limit, begun_s = Limit("l", requests_per_day=300), world.loop.time()
        gateways = [world.gateway(number % 3) for number in range(4)]
        for gateway in gateways:
            world.load(gateway, [limit], lambda _: 5.0)
        await asyncio.sleep(6)
        await world.kill_leader()
        await asyncio.sleep(begun_s + midnight_s - 10 - world.loop.time())
        assert 300 * 0.95 <= world.admitted() <= 300 * 1.05
        assert gateways[1].told[-1].retry_after_s == pytest.approx(10, abs=2)
        await asyncio.sleep(10)
        tomorrow_s = world.loop.time()
        await asyncio.sleep(30)
        assert 300 * 0.95 <= world.admitted(tomorrow_s) <= 300

    whole(body, NOON_S + 43_200 - midnight_s - 5)
