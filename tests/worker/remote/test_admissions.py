"""Places at a remote model: how many run, who waits, and that every request is counted once."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import DeadlineExceeded, InvalidArgument, PenstockError
from tests.worker.upstreams import chat_spec
from worker.batching.batcher import ModelLeaving, QueueTimeout
from worker.batching.queue import QueueFull
from worker.engine import EngineFailed
from worker.remote.admissions import Admissions
from worker.statistics import CopyStatistics, Failure
from worker.types import BatchingSpec


def admissions(max_running: int = 1, **batching: Any) -> tuple[Admissions, CopyStatistics]:
    statistics = CopyStatistics()
    return Admissions(chat_spec(batching=BatchingSpec(**batching)), statistics, max_running), statistics


async def visit(places: Admissions, order: list[int], number: int, over: asyncio.Event, priority: int = 0) -> None:
    async with places.place(priority=priority) as place:
        order.append(number)
        await over.wait()
        places.answered(place)


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_so_many_run_and_the_others_wait_in_order() -> None:
    places, statistics = admissions(2)
    order: list[int] = []
    over = asyncio.Event()
    tasks = [asyncio.ensure_future(visit(places, order, number, over)) for number in range(5)]
    await turns()
    assert (order, places.pending_requests, places.queued_rows, places.busy) == ([0, 1], 3, 3, True)
    over.set()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]
    assert (places.pending_requests, places.busy) == (0, False)
    assert (statistics.success.count, statistics.queue.count, statistics.inference_count) == (5, 5, 5)


async def test_the_more_urgent_goes_first() -> None:
    places, _ = admissions(1, priority_levels=3, default_priority_level=3)
    order: list[int] = []
    over = asyncio.Event()
    tasks = [
        asyncio.ensure_future(visit(places, order, number, over, priority)) for number, priority in enumerate((0, 3, 2, 1, 1))
    ]
    await turns()
    over.set()
    await asyncio.gather(*tasks)
    assert order == [0, 3, 4, 2, 1]


async def test_a_full_queue_refuses_at_once() -> None:
    places, statistics = admissions(1, max_queue_size=2)
    over = asyncio.Event()
    tasks = [asyncio.ensure_future(visit(places, [], number, over)) for number in range(3)]
    await turns()
    with pytest.raises(QueueFull, match="Exceeds maximum queue size"):
        await visit(places, [], 3, over)
    assert statistics.failures[Failure.REJECTED] == 1
    over.set()
    await asyncio.gather(*tasks)


async def test_who_waits_too_long_is_told_while_others_run() -> None:
    places, statistics = admissions(1)
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    running = asyncio.ensure_future(visit(places, [], 0, over))
    await turns()
    with pytest.raises(DeadlineExceeded, match="waited for its turn"):
        async with places.place(deadline_s=loop.time() + 0.01):
            pass
    with pytest.raises(QueueTimeout, match="Request timeout expired"):
        async with places.place(queue_timeout_s=0.01):
            pass
    with pytest.raises(DeadlineExceeded, match="no time was left"):
        async with places.place(deadline_s=loop.time() - 1):
            pass
    assert statistics.failures[Failure.REJECTED] == 3
    assert places.pending_requests == 0
    over.set()
    await running


async def test_who_leaves_while_waiting_gives_its_place_up() -> None:
    places, statistics = admissions(1)
    order: list[int] = []
    over = asyncio.Event()
    tasks = [asyncio.ensure_future(visit(places, order, number, over)) for number in range(3)]
    await turns()
    tasks[1].cancel()
    await turns()
    assert places.pending_requests == 1
    tasks[0].cancel()
    await turns()
    assert order == [0, 2]
    over.set()
    await tasks[2]
    assert statistics.failures[Failure.CANCELED] == 2


async def test_cancelled_in_the_turn_in_which_its_place_was_granted() -> None:
    places, _ = admissions(1)
    over, order = asyncio.Event(), [0]
    first = asyncio.ensure_future(visit(places, order, 1, over))
    second = asyncio.ensure_future(visit(places, order, 2, over))
    await turns()
    first.cancel()
    await asyncio.sleep(0)
    second.cancel()
    with suppress(asyncio.CancelledError):
        await second
    assert not places.busy


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (EngineFailed("it failed"), Failure.BACKEND),
        (InvalidArgument("it was wrong"), Failure.OTHER),
        (RuntimeError("a bug"), Failure.BACKEND),
        (asyncio.CancelledError(), Failure.CANCELED),
    ],
)
async def test_how_a_request_ended_is_counted(error: BaseException, reason: Failure) -> None:
    places, statistics = admissions()
    with pytest.raises(type(error)):
        async with places.place():
            raise error
    assert statistics.failures == {**dict.fromkeys(Failure, 0), reason: 1}
    assert statistics.fail.count == 1


async def test_what_came_after_the_answer_is_not_counted() -> None:
    places, statistics = admissions()
    with suppress(asyncio.CancelledError):
        async with places.place() as place:
            places.answered(place)
            raise asyncio.CancelledError
    assert (statistics.success.count, statistics.fail.count) == (1, 0)


async def test_draining_lets_those_in_finish_and_nobody_in() -> None:
    places, statistics = admissions(1)
    over = asyncio.Event()
    tasks = [asyncio.ensure_future(visit(places, [], number, over)) for number in range(2)]
    await turns()
    draining = asyncio.ensure_future(places.drained())
    await turns()
    with pytest.raises(ModelLeaving):
        async with places.place():
            pass
    assert not draining.done()
    over.set()
    await asyncio.gather(*tasks, draining)
    assert statistics.success.count == 2
    await places.drained()


async def test_closing_refuses_those_that_wait() -> None:
    places, statistics = admissions(1)
    over = asyncio.Event()
    running, waiting = (asyncio.ensure_future(visit(places, [], number, over)) for number in range(2))
    await turns()
    places.close()
    with pytest.raises(ModelLeaving, match="before this request ran"):
        await waiting
    over.set()
    await running
    assert (statistics.success.count, statistics.failures[Failure.REJECTED], places.busy) == (1, 1, False)


@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from(["answer", "fail", "cancel"]), st.integers(0, 6)), max_size=12),
)
@settings(deadline=None, max_examples=60)
def test_places_are_conserved_and_every_request_is_counted_once(
    max_running: int, max_waiting: int, requests: list[tuple[str, int]]
) -> None:
    async def run() -> None:
        places, statistics = admissions(max_running, max_queue_size=max_waiting)
        inside = most = 0

        async def request(end: str, stay: int) -> None:
            nonlocal inside, most
            async with places.place() as place:
                inside += 1
                most = max(most, inside)
                try:
                    await turns(stay)
                    if end == "fail":
                        raise EngineFailed("it failed")
                    if end == "answer":
                        places.answered(place)
                    else:
                        await asyncio.Event().wait()
                finally:
                    inside -= 1

        tasks = []
        for end, stay in requests:
            tasks.append(asyncio.ensure_future(request(end, stay)))
            await turns(stay % 2)
        while not all(task.done() for task in tasks):
            await turns(10)
            for task, (end, _) in zip(tasks, requests, strict=True):
                if end == "cancel":
                    task.cancel()
        for task in tasks:
            with suppress(PenstockError, asyncio.CancelledError):
                await task
        assert most <= max_running
        assert (inside, places.busy, places.queued_rows) == (0, False, 0)
        assert statistics.success.count + statistics.fail.count == len(requests)
        assert sum(statistics.failures.values()) == statistics.fail.count

    asyncio.run(run())
