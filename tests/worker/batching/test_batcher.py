"""The batcher over a virtual clock and a virtual engine: every admitted request ends once, in time, with its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from runtime.errors import DeadlineExceeded
from tests.worker.batching.rig import rig
from tests.worker.virtual_time import DoublingEngine, VirtualLoop, run_virtually
from worker.batching import batcher as batcher_module
from worker.batching.batcher import ModelLeaving, QueueTimeout
from worker.batching.queue import BatchPolicy, QueueFull
from worker.engine import Array, EngineFailed
from worker.spans import ExecutionTimes
from worker.statistics import Failure
from worker.types import CallContext, QueuePolicy, TimeoutAction


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
        r = rig(loop, BatchPolicy(8), engine=Summing())
        with pytest.raises(EngineFailed, match="for a batch of 2 rows"):
            await r.request(0, rows=2, width=3)

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


def test_limits_hold_without_batching() -> None:  # triton-inference-server/server#6368
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, BatchPolicy(0, max_requests=2))
        admitted = [asyncio.ensure_future(r.request(1))]
        await asyncio.sleep(0.1)
        admitted += [asyncio.ensure_future(r.request(value)) for value in (2, 3)]
        await asyncio.sleep(0.1)
        with pytest.raises(QueueFull):
            await r.request(4)
        with pytest.raises(QueueFull):
            await r.request(5, priority=1)
        await asyncio.gather(*admitted)
        assert r.sizes() == [1, 1, 1]

    run_virtually(body)


def test_a_levels_own_timeout_passes_on_time_while_the_engine_is_busy() -> None:  # triton-inference-server/server#7512
    async def body(loop: VirtualLoop) -> None:
        urgent = QueuePolicy(default_timeout_s=5.0)
        r = rig(loop, BatchPolicy(1, priority_levels=2, default_priority=2, queues={1: urgent}), duration_s=90.0)
        running = asyncio.ensure_future(r.request(1))
        await asyncio.sleep(1)
        begun_s = loop.time()
        patient = asyncio.ensure_future(r.request(2))
        with pytest.raises(QueueTimeout, match="it waited 5000 ms"):
            await r.request(3, priority=1)
        assert loop.time() == pytest.approx(begun_s + 5.0, abs=0.01)
        await asyncio.gather(running, patient)

    run_virtually(body)


def test_what_expired_does_not_run_although_the_timer_is_late() -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, BatchPolicy(1))
        r.batcher._clock_ns = lambda: loop.clock_ns() + 5_000_000  # the loop's clock is behind, as uvloop's is
        running = asyncio.ensure_future(r.request(1))
        await asyncio.sleep(0)
        with pytest.raises(QueueTimeout):
            await r.request(2, queue_timeout_s=0.998)
        await running
        assert r.sizes() == [1]

    run_virtually(body)


def test_the_delayed_are_answered_after_those_in_time_and_their_deadline_still_holds() -> None:
    async def body(loop: VirtualLoop) -> None:
        policy = QueuePolicy(TimeoutAction.DELAY, default_timeout_s=1.0)
        r = rig(loop, BatchPolicy(1, default_queue=policy), duration_s=10.0)
        ends: list[int] = []

        async def one(number: int, at_s: float, **asked: Any) -> None:
            await asyncio.sleep(at_s)
            with suppress(DeadlineExceeded):
                await r.request(number, **asked)
            ends.append(number)

        await asyncio.gather(one(1, 0.0), one(2, 0.5), one(3, 0.5, deadline_s=loop.time() + 7), one(4, 9.5))
        assert ends == [3, 1, 4, 2]

    run_virtually(body)


def test_idle_slots_take_executions_side_by_side() -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, BatchPolicy(1), slots=3)
        begun_s = loop.time()
        await asyncio.gather(*(r.request(value) for value in range(6)))
        assert loop.time() == pytest.approx(begun_s + 2.0)
        assert r.engine.slots_used == [2, 1, 0, 2, 1, 0]
        assert r.statistics.execution_count == r.statistics.inference_count == r.statistics.success.count == 6

    run_virtually(body)


@pytest.mark.parametrize("in_order", [True, False])
def test_answers_keep_their_order_over_several_slots_where_asked(in_order: bool) -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, BatchPolicy(1), slots=2, in_order=in_order, durations_s=iter((9.0, 1.0, 1.0)))
        r.engine.fails_on = lambda array: EngineFailed("no 2") if (array == 2).any() else None
        ends: list[int] = []

        async def one(number: int) -> None:
            with suppress(EngineFailed):
                await r.request(number)
            ends.append(number)

        await asyncio.gather(*(one(number) for number in (1, 2, 3)))
        assert ends == ([1, 2, 3] if in_order else [2, 3, 1])

    run_virtually(body)


def test_an_urgent_answer_does_not_wait_for_those_that_are_less_so() -> None:
    async def body(loop: VirtualLoop) -> None:
        policy = BatchPolicy(1, priority_levels=2, default_priority=2)
        r = rig(loop, policy, slots=2, in_order=True, durations_s=iter((9.0, 1.0)))
        slow = asyncio.ensure_future(r.request(1))
        await asyncio.sleep(0.5)
        begun_s = loop.time()
        assert (await r.request(2, priority=1))[0].tolist() == [[4.0]]
        assert loop.time() == pytest.approx(begun_s + 1.0)
        await slow

    run_virtually(body)


def test_who_left_holds_up_nobody() -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, BatchPolicy(1), slots=2, in_order=True, durations_s=iter((90.0, 1.0)))
        slow = asyncio.ensure_future(r.request(1))
        await asyncio.sleep(0)
        quick = asyncio.ensure_future(r.request(2))
        await asyncio.sleep(5)
        assert not quick.done()
        slow.cancel()
        begun_s = loop.time()
        assert (await quick)[0].tolist() == [[4.0]]
        assert loop.time() == pytest.approx(begun_s)
        await r.batcher.drained()

    run_virtually(body)


class StagingEngine(DoublingEngine):
    """Has memory of its own for batches of up to `most` rows."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.asked: list[Mapping[str, tuple[tuple[int, ...], str]]] = []
        self.memory: list[Array] = []

    def staging(self, shapes: Mapping[str, tuple[tuple[int, ...], str]], slot: int = 0) -> Mapping[str, Array] | None:
        self.asked.append(shapes)
        ((shape, _),) = shapes.values()
        if shape[0] > self.most:
            return None
        self.memory.append(np.full(shape, np.nan))
        return {"x": self.memory[-1]}


def test_batches_are_gathered_straight_into_the_engines_memory() -> None:
    async def body(loop: VirtualLoop) -> None:
        engine = StagingEngine(most=3)
        r = rig(loop, BatchPolicy(8), engine=engine)
        assert (await r.request(1, rows=2))[0].tolist() == [[2.0], [2.0]]
        answers = await asyncio.gather(r.request(2), r.request(3, rows=2))
        assert [answer[0].tolist() for answer in answers] == [[[4.0]], [[6.0], [6.0]]]
        assert [batch is memory for batch, memory in zip(engine.batches, engine.memory, strict=True)] == [True, True]
        assert engine.asked == [{"x": ((2, 1), "FP32")}, {"x": ((3, 1), "FP32")}]
        assert (await r.request(5, rows=4))[0].tolist() == [[10.0]] * 4, "more rows than its memory takes"

    run_virtually(body)


def test_a_request_that_ended_well_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[tuple[str, int, int]] = []

    def trace(call: CallContext, model: str, version: str, times: ExecutionTimes, *, rows: int, batch_rows: int) -> None:
        assert times.arrived_ns <= times.started_ns <= times.gathered_ns <= times.ran_ns <= times.ended_ns
        traced.append((call.traceparent, rows, batch_rows))

    monkeypatch.setattr(batcher_module, "trace_execution", trace)

    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, BatchPolicy(8))
        r.engine.fails_on = lambda array: EngineFailed("no 13") if (array == 13).any() else None
        inputs = {"x": np.ones((2, 1))}
        await asyncio.gather(r.request(1), r.batcher.infer(inputs, 2, (1,), CallContext(traceparent="00-1")))
        with pytest.raises(EngineFailed):
            await r.batcher.infer({"x": np.full((1, 1), 13)}, 1, (1,), CallContext(traceparent="00-2"))

    run_virtually(body)
    assert traced == [("00-1", 2, 3)]
