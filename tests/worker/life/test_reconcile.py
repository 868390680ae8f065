"""The loop that brings what is held to what is ordered, over a store in memory and a clock that stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from penstock.scheduler.v1 import scheduler_pb2

from runtime.errors import DataLoss, NotFound, PenstockError, Unavailable
from tests.support.manual_clock import settle
from tests.worker.reconcile_world import KEY, S, World, opened_world, running
from worker.engine import ModelRefused


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with opened_world() as made:
        yield made


async def test_orders_that_were_there_before_and_those_that_come_are_followed(world: World) -> None:
    await world.order("a-1")
    async with running(world):
        assert world.states == {"a:1": S.READY}
        await world.order("a-1", "b-1")
        assert world.states == {"a:1": S.READY, "b:1": S.READY}
        assert set(world.answering) == {("a", "1"), ("b", "1")}


async def test_an_unload_tells_first_waits_a_moment_drains_and_frees_the_folder(world: World) -> None:
    world.gates["drain a"] = asyncio.Event()
    async with running(world):
        await world.order("a-1")
        await world.order()
        assert world.states == {"a:1": S.DRAINING}
        await world.clock.advance(0.29)
        assert ("a", "1") in world.answering, "those who send have not all heard of it yet"
        await world.clock.advance(0.02)
        assert world.answering == {}
        assert (world.states, world.folders) == ({"a:1": S.DRAINING}, {"a-1"})
        world.gates["drain a"].set()
        await settle()
        assert (world.states, world.folders) == ({}, set())


async def test_an_absent_key_is_no_order(world: World) -> None:
    async with running(world):
        await world.order("a-1")
        await world.store.delete(KEY)
        await world.clock.advance(5)
        assert world.states == {"a:1": S.READY}
        world.store.go_away()
        await world.clock.advance(60)
        world.store.come_back(empty=True)
        await world.clock.advance(60)
        assert world.states == {"a:1": S.READY}
        await world.order("b-1")
        await world.clock.advance(1)
        assert world.states == {"b:1": S.READY}


async def test_an_etcd_that_is_away_changes_nothing_and_what_was_ordered_meanwhile_is_followed(world: World) -> None:
    async with running(world):
        await world.order("a-1")
        world.store.go_away()
        await world.clock.advance(300)
        assert world.states == {"a:1": S.READY}
        world.store.come_back()
        await world.order("a-1", "b-1")
        await world.clock.advance(30)
        assert world.states == {"a:1": S.READY, "b:1": S.READY}
        assert world.events == ["+a:1", "+b:1"]


async def test_garbage_under_the_key_is_no_order_either(world: World) -> None:
    async with running(world):
        await world.order("a-1")
        await world.store.put(KEY, b"\xff\xff\xff")
        await settle()
        assert world.states == {"a:1": S.READY}
        await world.store.put(KEY + "-of-another", b"")
        await settle()
        assert world.states == {"a:1": S.READY}, "another worker's key that begins the same"


async def test_a_new_version_answers_before_the_old_one_drains(world: World) -> None:
    async with running(world):
        await world.order("a-1")
        world.gates["a"] = asyncio.Event()
        await world.order("a-2")
        await world.clock.advance(10)
        assert world.states == {"a:1": S.READY, "a:2": S.LOADING}
        world.gates["a"].set()
        await world.clock.advance(1)
        assert world.states == {"a:2": S.READY}
        assert world.events == ["+a:1", "+a:2", "-a:1"]


async def test_at_most_so_many_load_at_once(world: World) -> None:
    models = [f"m{number}" for number in range(5)]
    for model in models:
        world.gates[model] = asyncio.Event()
    async with running(world):
        await world.order(*(f"{model}-1" for model in models))
        assert list(world.states.values()) == [S.LOADING] * 2
        for model in models:
            world.gates[model].set()
            await settle()
            assert list(world.states.values()).count(S.LOADING) <= 2
        assert world.states == {f"{model}:1": S.READY for model in models}


async def test_a_passing_cause_is_tried_again_a_few_times_ever_later_and_told_meanwhile(world: World) -> None:
    world.failures["a-1"] = [Unavailable("the registry is away"), Unavailable("the registry is away")]
    async with running(world):
        await world.order("a-1")
        assert world.states == {"a:1": S.LOADING}
        assert world.reason("a") == "waiting to try again: the registry is away"
        await world.clock.advance(10)
        assert world.states == {"a:1": S.READY}
        assert world.reason("a") == ""
    times_s = [at_s for _, at_s in world.attempts]
    assert 0.5 <= times_s[1] - times_s[0] <= 0.75
    assert 1.0 <= times_s[2] - times_s[1] <= 1.5


async def test_when_the_attempts_are_used_up_it_failed_and_is_tried_again_later(world: World) -> None:
    world.failures["a-1"] = [Unavailable("the registry is away")] * 3
    async with running(world):
        await world.order("a-1")
        await world.clock.advance(20)
        assert world.states == {"a:1": S.FAILED}
        assert world.reason("a") == "the registry is away"
        assert len(world.attempts) == 3
        await world.clock.advance(30)
        assert len(world.attempts) == 3
        await world.clock.advance(60)
        assert world.states == {"a:1": S.READY}


async def test_attempts_with_progress_are_not_counted_together(world: World) -> None:
    world.failures["a-1"] = [Unavailable("the connection broke")] * 8
    world.progress_bytes = 1
    async with running(world):
        await world.order("a-1")
        await world.clock.advance(30)
        assert world.states == {"a:1": S.READY}
        assert len(world.attempts) == 9


@pytest.mark.parametrize("error", [NotFound("no such version"), DataLoss("not that content"), ModelRefused("no such input")])
async def test_a_refusal_is_not_tried_again_until_the_generation_grows(world: World, error: PenstockError) -> None:
    world.failures["a-1"] = [error]
    async with running(world):
        await world.order("a-1", generation=1)
        assert (world.states, world.reason("a")) == ({"a:1": S.FAILED}, error.message)
        await world.clock.advance(3600)
        await world.order("a-1", "b-1", generation=1)
        assert len([digest for digest, _ in world.attempts if digest == "a-1"]) == 1
        await world.order("a-1", "b-1", generation=2)
        assert world.states == {"a:1": S.READY, "b:1": S.READY}


async def test_what_the_engine_refuses_leaves_no_folder(world: World) -> None:
    async with running(world):
        await world.order("refused-1")
        assert (world.states, world.folders) == ({"refused:1": S.FAILED}, set())


async def test_a_bug_fails_one_model_with_a_reason_that_gives_nothing_away(world: World) -> None:
    world.failures["a-1"] = [ValueError("secret")]
    async with running(world):
        await world.order("a-1", "b-1")
        assert world.states == {"a:1": S.FAILED, "b:1": S.READY}
        assert "secret" not in world.reason("a")


async def test_a_digest_of_another_model_than_the_ordered_one_is_refused(world: World) -> None:
    message = scheduler_pb2.Assignment(models=[scheduler_pb2.AssignedModel(model="a", version="1", digest="b-1")])
    async with running(world):
        await world.store.put(KEY, message.SerializeToString())
        await settle()
        assert world.states == {"a:1": S.FAILED}
        assert "which is that of 'b' version 1" in world.reason("a")


async def test_an_order_that_is_taken_back_breaks_its_load_off(world: World) -> None:
    world.gates["a"] = asyncio.Event()
    async with running(world):
        await world.order("a-1")
        await world.order("b-1")
        assert (world.states, world.folders) == ({"b:1": S.READY}, {"b-1"})
        world.gates["a"].set()
        await world.order("a-1", "b-1")
        assert world.states == {"a:1": S.READY, "b:1": S.READY}


async def test_the_same_version_with_another_digest_is_exchanged(world: World) -> None:
    async with running(world):
        await world.order("a-1")
        await world.order("a-1-again")
        await world.clock.advance(1)
        assert world.states == {"a:1": S.READY}
        assert [copy.digest for copy in world.holdings] == ["a-1-again"]
        assert world.events == ["+a:1", "-a:1", "+a:1"]


async def test_an_order_given_back_while_it_drains_is_loaded_when_it_is_gone(world: World) -> None:
    world.gates["drain a"] = asyncio.Event()
    async with running(world):
        await world.order("a-1")
        await world.order()
        await world.clock.advance(1)
        await world.order("a-1")
        assert world.states == {"a:1": S.DRAINING}
        world.gates["drain a"].set()
        await settle()
        assert world.states == {"a:1": S.READY}


async def test_leaving_breaks_loads_off_and_keeps_what_answers(world: World) -> None:
    world.gates["b"] = asyncio.Event()
    async with running(world):
        await world.order("a-1", "b-1")
        assert world.states == {"a:1": S.READY, "b:1": S.LOADING}
    assert world.states == {"a:1": S.READY}
    assert set(world.answering) == {("a", "1")}


async def test_a_bug_in_the_loop_ends_nothing_and_orders_are_followed_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    world.gates["b"] = asyncio.Event()
    async with running(world):
        await world.order("a-1", "b-1")
        assert world.states == {"a:1": S.READY, "b:1": S.LOADING}
        with monkeypatch.context() as patch:
            patch.setattr("worker.life.reconcile.plan", broken)
            await world.order("a-1", "b-1", "c-1")
            await world.clock.advance(5)
            assert world.states == {"a:1": S.READY}
        world.gates["b"].set()
        await world.clock.advance(5)
        assert world.states == {"a:1": S.READY, "b:1": S.READY, "c:1": S.READY}
        assert world.events[0] == "+a:1"
        assert "-a:1" not in world.events


async def test_an_unload_that_was_begun_is_finished_when_the_loop_ends(world: World) -> None:
    async with running(world):
        await world.order("a-1")
        await world.order()
        assert world.states == {"a:1": S.DRAINING}
    assert (world.states, world.answering, world.folders) == ({}, {}, set())
