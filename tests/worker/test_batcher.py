"""The batcher over a virtual clock and a virtual engine: every admitted request ends once, in time, with its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import DeadlineExceeded, PenstockError
from tests.worker.virtual_time import DoublingEngine, VirtualLane, VirtualLoop, run_virtually
from worker.batcher import Batcher, ModelLeaving, QueueTimeout
from worker.batching import BatchPolicy, QueueFull
from worker.engine import Array, EngineFailed
from worker.statistics import CopyStatistics, Failure


@dataclass(slots=True)
class Rig:
    loop: VirtualLoop
    engine: DoublingEngine
    lane: VirtualLane
    batcher: Batcher
    statistics: CopyStatistics

    def request(self, value: float, rows: int = 1, width: int = 1, **asked: Any) -> Coroutine[Any, Any, Any]:
        array = np.full((rows, width), value)
        return self.batcher.infer({"x": array}, rows, (width,), **asked)

    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.engine.batches]


def rig(loop: VirtualLoop, policy: BatchPolicy, duration_s: float = 1.0) -> Rig:
    engine, lane, statistics = DoublingEngine(), VirtualLane(loop, duration_s), CopyStatistics()
    batcher = Batcher(policy, engine, lane, statistics, batched=policy.max_rows > 0, clock_ns=loop.clock_ns)
    return Rig(loop, engine, lane, batcher, statistics)


def test_an_idle_engine_starts_at_once_and_a_busy_one_lets_the_queue_gather() -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, BatchPolicy(8))
        begun_s = loop.time()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(r.request(1))
            await asyncio.sleep(0.5)
            for value in (2, 3, 4):
                tasks.create_task(r.request(value))
        assert r.sizes() == [1, 3]
        assert loop.time() == pytest.approx(begun_s + 2.0)

    run_virtually(body)


def test_what_arrives_in_one_turn_of_the_loop_travels_together() -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, BatchPolicy(8))
        answers = await asyncio.gather(*(r.request(value, rows=value) for value in (1, 2, 3)))
        assert r.sizes() == [6]
        assert [answer[0].tolist() for answer in answers] == [[[2.0]] * 1, [[4.0]] * 2, [[6.0]] * 3]
        assert r.statistics.inference_count == 6
        assert r.statistics.execution_count == 1
        assert r.statistics.success.count == r.statistics.queue.count == r.statistics.compute_infer.count == 3
        assert r.statistics.batches[6].compute_infer.count == 1

    run_virtually(body)


def test_a_queue_delay_is_kept_and_cut_short_by_a_full_batch() -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, BatchPolicy(2, delay_s=10.0))
        begun_s = loop.time()
        await r.request(1)
        assert loop.time() == pytest.approx(begun_s + 11.0)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(r.request(1))
            await asyncio.sleep(2.0)
            tasks.create_task(r.request(2))
        assert loop.time() == pytest.approx(begun_s + 14.0)

    run_virtually(body)


def test_a_deadline_passes_on_time_while_the_engine_is_busy() -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, BatchPolicy(1), duration_s=90.0)
        running = asyncio.ensure_future(r.request(1))
        await asyncio.sleep(1)
        begun_s = loop.time()
        with pytest.raises(QueueTimeout, match="Request timeout expired"):
            await r.request(2, queue_timeout_s=10.0)
        assert loop.time() == pytest.approx(begun_s + 10.0, abs=0.01)
        with pytest.raises(DeadlineExceeded):
            await r.request(3, deadline_s=loop.time() + 5)
        assert loop.time() == pytest.approx(begun_s + 15.0, abs=0.01)
        assert (await running)[0].tolist() == [[2.0]]
        assert len(r.engine.batches) == 1
        assert r.statistics.failures[Failure.REJECTED] == 2

    run_virtually(body)


def test_a_deadline_passes_on_time_while_the_request_itself_runs() -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, BatchPolicy(1), duration_s=90.0)
        begun_s = loop.time()
        with pytest.raises(DeadlineExceeded, match="while the engine ran"):
            await r.request(1, deadline_s=begun_s + 5, queue_timeout_s=1.0)
        assert loop.time() == pytest.approx(begun_s + 5, abs=0.01)
        await r.batcher.drained()
        assert loop.time() == pytest.approx(begun_s + 90)

    run_virtually(body)


def test_a_deadline_already_over_is_refused_at_once() -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, BatchPolicy(1))
        with pytest.raises(DeadlineExceeded):
            await r.request(1, deadline_s=loop.time() - 1)
        assert not r.engine.batches

    run_virtually(body)


def test_cancelling_frees_the_place() -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, BatchPolicy(1, max_requests=1))
        running = asyncio.ensure_future(r.request(1))
        await asyncio.sleep(0.1)
        queued = asyncio.ensure_future(r.request(2))
        await asyncio.sleep(0.1)
        with pytest.raises(QueueFull):
            await r.request(3)
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await queued
        assert r.batcher.queued_rows == 0
        assert (await r.request(4))[0].tolist() == [[8.0]]
        await running
        assert len(r.engine.batches) == 2
        assert r.statistics.failures[Failure.CANCELED] == 1
        assert r.statistics.failures[Failure.REJECTED] == 1

    run_virtually(body)


def test_one_bad_request_does_not_spoil_its_neighbours() -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, BatchPolicy(8))
        r.engine.fails_on = lambda array: EngineFailed("no 13") if (array == 13).any() else None
        results: list[Any] = await asyncio.gather(*(r.request(value) for value in (1, 13, 3)), return_exceptions=True)
        assert results[0][0].tolist() == [[2.0]]
        assert isinstance(results[1], EngineFailed)
        assert results[2][0].tolist() == [[6.0]]
        assert r.statistics.failures[Failure.BACKEND] == 1
        assert r.statistics.execution_count == 2

    run_virtually(body)


def test_an_engine_that_breaks_fails_the_batch_and_lives_on() -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, BatchPolicy(8))
        r.engine.fails_on = lambda array: ZeroDivisionError() if (array == 13).any() else None
        with pytest.raises(EngineFailed, match="the worker's log"):
            await r.request(13)
        assert (await r.request(1))[0].tolist() == [[2.0]]

    run_virtually(body)


def test_an_output_without_the_batch_dimension_is_refused() -> None:
    class Summing(DoublingEngine):
        def run(self, inputs: Any, slot: int = 0) -> list[Array]:
            return [inputs["x"].sum(axis=0)]

    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, BatchPolicy(8))
        batcher = Batcher(BatchPolicy(8), Summing(), r.lane, r.statistics, clock_ns=loop.clock_ns)
        with pytest.raises(EngineFailed, match="for a batch of 2 rows"):
            await batcher.infer({"x": np.zeros((2, 3))}, 2, ())

    run_virtually(body)


def test_draining_refuses_the_new_and_finishes_the_old() -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, BatchPolicy(1))
        old = [asyncio.ensure_future(r.request(value)) for value in (1, 2)]
        await asyncio.sleep(0.1)
        drained = asyncio.ensure_future(r.batcher.drained())
        await asyncio.sleep(0.1)
        with pytest.raises(ModelLeaving):
            await r.request(3)
        await drained
        assert all(task.done() for task in old)
        r.batcher.close()
        assert r.lane.closed

    run_virtually(body)


def test_closing_fails_what_is_left() -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, BatchPolicy(1))
        left = [asyncio.ensure_future(r.request(value)) for value in (1, 2)]
        await asyncio.sleep(0.1)
        r.batcher.close()
        results = await asyncio.gather(*left, return_exceptions=True)
        assert [getattr(result, "code", None) for result in results] == [14, 14]

    run_virtually(body)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a random scenario. Times in tenths of a second."""

    at: int
    rows: int
    width: int
    priority: int
    timeout: int | None
    cancel_after: int | None


ASKED = st.builds(
    Asked,
    at=st.integers(0, 40),
    rows=st.integers(1, 4),
    width=st.integers(1, 2),
    priority=st.integers(0, 2),
    timeout=st.none() | st.integers(1, 40),
    cancel_after=st.none() | st.integers(0, 40),
)
POLICIES = st.builds(
    BatchPolicy,
    max_rows=st.integers(4, 8),
    delay_s=st.sampled_from((0.0, 0.7)),
    preferred_rows=st.frozensets(st.integers(1, 8), max_size=2),
    max_requests=st.integers(1, 6),
)


@settings(max_examples=150, deadline=None)
@given(POLICIES, st.lists(ASKED, max_size=25), st.sampled_from((0.05, 0.5, 2.0)), st.booleans())
def test_conservation(policy: BatchPolicy, scenario: list[Asked], duration_s: float, as_deadline: bool) -> None:
    async def one(r: Rig, number: int, asked: Asked) -> str:
        await asyncio.sleep(asked.at / 10)
        over_s = None if asked.timeout is None else r.loop.time() + asked.timeout / 10
        limit: dict[str, float | None] = {"deadline_s": over_s} if as_deadline else {}
        if not as_deadline and asked.timeout is not None:
            limit = {"queue_timeout_s": asked.timeout / 10}
        try:
            async with asyncio.timeout(None if asked.cancel_after is None else asked.cancel_after / 10):
                answer = await r.request(number + 1, asked.rows, asked.width, priority=asked.priority, **limit)
        except TimeoutError:
            return "cancelled"
        except PenstockError as error:
            if over_s is not None and not isinstance(error, QueueFull):
                assert r.loop.time() <= over_s + 0.01, "expired on time"
            return error.reason
        assert answer[0].tolist() == [[(number + 1) * 2.0] * asked.width] * asked.rows, "its own answer"
        return "answered"

    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, policy, duration_s)
        ends = await asyncio.gather(*(one(r, number, asked) for number, asked in enumerate(scenario)))
        await r.batcher.drained()
        statistics = r.statistics
        assert statistics.success.count == ends.count("answered")
        # A request may expire and be cancelled in one turn: it is counted as what happened first.
        assert statistics.failures[Failure.CANCELED] <= ends.count("cancelled")
        assert statistics.success.count + sum(statistics.failures.values()) == len(scenario), "each ends once"
        assert all(size <= policy.max_rows for size in r.sizes()), "capacity"
        assert statistics.inference_count == sum(r.sizes())
        assert statistics.execution_count == len(r.sizes())
        assert r.batcher.queued_rows == r.batcher.pending_requests == 0
        _check_order(scenario, [[int(row[0]) - 1 for row in batch] for batch in r.engine.batches])

    run_virtually(body)


def _check_order(scenario: list[Asked], batches: list[list[int]]) -> None:
    """Within a priority and moment of arrival, executions keep the order of arrival; a batch has one shape."""
    started: dict[int, int] = {}
    for index, batch in enumerate(batches):
        assert len({scenario[number].width for number in batch}) == 1
        for number in batch:
            assert started.setdefault(number, index) == index, "never executed twice"
    for earlier, first in started.items():
        for later, second in started.items():
            a, b = scenario[earlier], scenario[later]
            if a.priority == b.priority and a.at < b.at:
                assert first <= second, "first in, first out"
