"""One load: room that is asked for before it is opened, what it took, and what was opened being what was verified."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.manual_clock import settle
from tests.worker.reconcile_world import SIZES, S, World, opened_world, running


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with opened_world() as made:
        yield made


async def test_a_copy_used_longest_ago_is_let_go_of_for_another_and_says_why(world: World) -> None:
    async with running(world):
        await world.order("big-1")
        await world.order("big-1", "large-1")
        assert world.states == {"big:1": S.DRAINING, "large:1": S.LOADING}
        await world.clock.advance(1)
        assert world.states == {"big:1": S.UNAVAILABLE, "large:1": S.READY}
        assert world.reason("big") == "unloaded to make room for model 'large' version 1"
        assert world.events == ["+big:1", "-big:1", "+large:1"], "never both at once"
        assert world.folders == {"large-1"}
        await world.clock.advance(3600)
        assert world.states == {"big:1": S.UNAVAILABLE, "large:1": S.READY}


async def test_it_comes_back_when_there_is_room_or_a_newer_order(world: World) -> None:
    async with running(world):
        await world.order("big-1")
        await world.order("big-1", "large-1")
        await world.clock.advance(1)
        await world.order("big-1")
        await world.clock.advance(1)
        assert world.states == {"big:1": S.READY}
        await world.order("big-1", "large-1", generation=2)
        await world.clock.advance(1)
        assert world.states == {"big:1": S.UNAVAILABLE, "large:1": S.READY}
        await world.order("large-1", generation=2)
        await world.clock.advance(1)
        assert world.states == {"large:1": S.READY}


async def test_what_is_in_use_stays_and_the_refused_one_is_tried_again_once_it_is_not(world: World) -> None:
    async with running(world):
        await world.order("big-1")
        world.busy.add("big")
        await world.order("big-1", "large-1")
        assert world.states == {"big:1": S.READY, "large:1": S.FAILED}
        assert "needs 60 bytes of memory; 60 bytes of the 100 bytes allowed are held" in world.reason("large")
        assert world.folders == {"big-1"}
        attempts = len(world.attempts)
        await world.clock.advance(200)
        assert world.states == {"big:1": S.READY, "large:1": S.FAILED}
        assert len(world.attempts) == attempts, "nothing was fetched or hashed in vain"
        world.busy.clear()
        await world.clock.advance(100)
        assert world.states == {"big:1": S.UNAVAILABLE, "large:1": S.READY}


async def test_what_never_fits_fails_and_nobody_leaves_for_it(world: World) -> None:
    async with running(world):
        await world.order("big-1", "huge-1")
        await world.clock.advance(1)
        assert world.states == {"big:1": S.READY, "huge:1": S.FAILED}
        assert "never fits" in world.reason("huge")


async def test_a_load_that_fails_after_others_left_for_it_gives_the_room_back(world: World) -> None:
    SIZES["refused"] = 60
    try:
        async with running(world):
            await world.order("big-1")
            await world.order("big-1", "refused-1")
            await world.clock.advance(2)
            assert world.states == {"big:1": S.READY, "refused:1": S.FAILED}
            assert world.events == ["+big:1", "-big:1", "+big:1"]
            await world.clock.advance(3600)
            assert len(world.events) == 3
    finally:
        del SIZES["refused"]


async def test_what_an_opened_copy_took_is_measured_where_it_was_opened_alone(world: World) -> None:
    async with running(world):
        await world.order("a-1")
        world.gates["b"] = world.gates["c"] = asyncio.Event()
        await world.order("a-1", "b-1", "c-1")
        world.gates["b"].set()
        await settle()
        assert {copy.model: (copy.memory_bytes, copy.measured_bytes) for copy in world.holdings} == {
            "a": (1, 1000),
            "b": (1, 0),
            "c": (1, 0),
        }


async def test_a_file_changed_between_its_check_and_the_end_of_opening_is_no_model(world: World) -> None:
    async with running(world):
        await world.order("swapped-1")
        assert (world.states, world.reason("swapped")) == ({"swapped:1": S.FAILED}, "a file was changed")
        assert (world.closed, world.folders) == (["swapped"], set())


async def test_an_open_copy_tells_what_its_engine_can(world: World) -> None:
    async with running(world):
        world.gates["skilled"] = asyncio.Event()
        await world.order("skilled-1")
        (copy,) = world.holdings
        assert (copy.state, copy.traits.capabilities) == (S.LOADING, frozenset())
        world.gates["skilled"].set()
        await world.clock.advance(1)
        assert (copy.state, copy.traits.capabilities, copy.traits.context_tokens) == (S.READY, frozenset({"resume"}), 64)
