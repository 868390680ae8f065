"""What LoadModel asks for: answered when it is ready, beside what the scheduler orders."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from runtime.errors import DataLoss, FailedPrecondition, NotFound, Unavailable
from runtime.ids import Digest, ModelName, ModelVersion
from tests.support.manual_clock import settle
from tests.worker.reconcile_world import S, World, opened_world, running
from worker.engine import ModelRefused


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with opened_world() as made:
        yield made


def named(digest: str) -> tuple[ModelName, ModelVersion, Digest]:
    model, version = digest.split("-")[:2]
    return ModelName(model), ModelVersion(version), Digest(digest)


async def test_a_local_load_answers_when_it_is_ready_and_stands_beside_the_schedulers_orders(world: World) -> None:
    async with running(world) as reconciler:
        world.gates["own"] = asyncio.Event()
        loading = asyncio.ensure_future(reconciler.local.load(*named("own-1")))
        await settle()
        assert (world.states, loading.done()) == ({"own:1": S.LOADING}, False)
        world.gates["own"].set()
        copy = await loading
        assert (copy.model, copy.state) == ("own", S.READY)
        await world.order("a-1")
        await world.order()
        await world.clock.advance(1)
        assert world.states == {"own:1": S.READY}
        assert await reconciler.local.load(*named("own-1")) is copy, "again is no other"
        unloading = asyncio.ensure_future(reconciler.local.unload(*named("own-1")[:2]))
        await world.clock.advance(1)
        await unloading
        assert (world.states, world.answering) == ({}, {})
        with pytest.raises(NotFound, match="holds no model 'own'"):
            await reconciler.local.unload(*named("own-1")[:2])


async def test_a_local_load_ends_with_what_it_failed_with_and_is_tried_again_when_asked_again(world: World) -> None:
    world.failures["a-1"] = [DataLoss("not that content")]
    async with running(world) as reconciler:
        with pytest.raises(DataLoss, match="not that content"):
            await reconciler.local.load(*named("a-1"))
        assert world.states == {"a:1": S.FAILED}
        assert (await reconciler.local.load(*named("a-1"))).state is S.READY


async def test_asking_makes_what_the_scheduler_ordered_be_tried_again_and_come_back(world: World) -> None:
    world.failures["a-1"] = [ModelRefused("no such input")]
    async with running(world) as reconciler:
        await world.order("a-1", "big-1")
        assert world.states == {"a:1": S.FAILED, "big:1": S.READY}
        await reconciler.local.load(*named("a-1"))
        await world.order("a-1", "big-1", "large-1")
        await world.clock.advance(1)
        assert world.states == {"a:1": S.READY, "big:1": S.UNAVAILABLE, "large:1": S.READY}
        loading = asyncio.ensure_future(reconciler.local.load(*named("big-1")))
        await world.clock.advance(1)
        assert (await loading).state is S.READY
        assert world.states == {"a:1": S.READY, "big:1": S.READY, "large:1": S.UNAVAILABLE}


async def test_what_the_scheduler_orders_is_not_for_a_call_to_take_away_or_change(world: World) -> None:
    async with running(world) as reconciler:
        await world.order("a-1")
        await reconciler.local.load(*named("a-1"))
        with pytest.raises(FailedPrecondition, match="take its placement back"):
            await reconciler.local.unload(*named("a-1")[:2])
        with pytest.raises(FailedPrecondition, match="with digest a-1, not a-1-other"):
            await reconciler.local.load(*named("a-1-other"))
        assert world.states == {"a:1": S.READY}


async def test_a_caller_that_leaves_and_one_whose_version_is_unloaded_meanwhile(world: World) -> None:
    world.gates["a"] = asyncio.Event()
    async with running(world) as reconciler:
        first = asyncio.ensure_future(reconciler.local.load(*named("a-1")))
        second = asyncio.ensure_future(reconciler.local.load(*named("a-1")))
        await settle()
        first.cancel()
        await settle()
        assert world.states == {"a:1": S.LOADING}
        await reconciler.local.unload(*named("a-1")[:2])
        with pytest.raises(Unavailable, match="unloaded while it was being loaded"):
            await second
        assert world.states == {}


async def test_an_unloaded_version_answers_until_the_one_that_replaces_it_does(world: World) -> None:
    async with running(world) as reconciler:
        await reconciler.local.load(*named("a-1"))
        world.gates["a"] = asyncio.Event()
        await world.order("a-2")
        await reconciler.local.unload(*named("a-1")[:2])
        assert world.states == {"a:1": S.READY, "a:2": S.LOADING}
        world.gates["a"].set()
        await world.clock.advance(1)
        assert world.states == {"a:2": S.READY}
