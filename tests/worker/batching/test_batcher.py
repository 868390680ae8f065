"""The batcher over a virtual clock and a virtual engine: every admitted request ends once, in time, with its own answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle, permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import DeadlineExceeded, PenstockError
from tests.worker.onnx_models import spec as described
from tests.worker.virtual_time import DoublingEngine, VirtualLane, VirtualLoop, run_virtually
from worker.batching import batcher as batcher_module
from worker.batching.batcher import Batcher, ModelLeaving, QueueTimeout
from worker.batching.jobs import Executor, Job
from worker.batching.queue import BatchPolicy, BatchQueue, QueueFull, allowed_wait_s
from worker.batching.rows import RowAssembly
from worker.engine import Array, EngineFailed
from worker.kserve.parameters import Parameters
from worker.spans import ExecutionTimes
from worker.statistics import CopyStatistics, Failure
from worker.types import CallContext, QueuePolicy, TimeoutAction


@dataclass(slots=True)
class Rig:
    loop: VirtualLoop
    engine: DoublingEngine
    batcher: Batcher
    statistics: CopyStatistics

    def request(
        self,
        value: float,
        rows: int = 1,
        width: int = 1,
        *,
        priority: int = 0,
        deadline_s: float | None = None,
        queue_timeout_s: float | None = None,
    ) -> Coroutine[Any, Any, Any]:
        parameters = Parameters(priority=priority, timeout_s=queue_timeout_s)
        inputs = {"x": np.full((rows, width), value)}
        return self.batcher.infer(inputs, rows, (width,), CallContext(deadline_s=deadline_s), parameters)

    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.engine.batches]


def rig(
    loop: VirtualLoop,
    policy: BatchPolicy,
    duration_s: float = 1.0,
    *,
    engine: DoublingEngine | None = None,
    slots: int = 1,
    in_order: bool = False,
    durations_s: Iterator[float] | None = None,
    queue: BatchQueue[Job] | None = None,
) -> Rig:
    engine, statistics = engine or DoublingEngine(), CopyStatistics()
    lanes = [VirtualLane(loop, duration_s, durations_s) for _ in range(slots)]
    assembly = RowAssembly(described(max_batch_size=policy.max_rows), engine)
    executor = Executor(engine, assembly, clock_ns=loop.clock_ns)
    batcher = Batcher(queue or BatchQueue(policy), executor, lanes, statistics, in_order=in_order, clock_ns=loop.clock_ns)
    return Rig(loop, engine, batcher, statistics)


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
QUEUES = st.builds(
    QueuePolicy,
    timeout_action=st.sampled_from(TimeoutAction),
    default_timeout_s=st.none() | st.sampled_from((0.3, 1.5)),
    allow_timeout_override=st.booleans(),
    max_queue_size=st.sampled_from((0, 2)),
)
POLICIES = st.sampled_from((0, 2)).flatmap(
    lambda levels: st.builds(
        BatchPolicy,
        max_rows=st.sampled_from((0, 4, 8)),
        delay_s=st.sampled_from((0.0, 0.7)),
        preferred_rows=st.frozensets(st.integers(1, 8), max_size=2),
        max_requests=st.integers(1, 6),
        priority_levels=st.just(levels),
        default_priority=st.just(levels),
        default_queue=QUEUES,
        queues=st.dictionaries(st.integers(1, levels), QUEUES) if levels else st.just({}),
    )
)


@dataclass(frozen=True, slots=True)
class Setting:
    policy: BatchPolicy
    slots: int
    in_order: bool
    durations_s: tuple[float, ...]
    as_deadline: bool
    """Whether a request's timeout is its deadline, or what its parameters ask for."""


SETTINGS = st.builds(
    Setting,
    policy=POLICIES,
    slots=st.integers(1, 3),
    in_order=st.booleans(),
    durations_s=st.lists(st.sampled_from((0.05, 0.5, 2.0)), min_size=1, max_size=4).map(tuple),
    as_deadline=st.booleans(),
)


class Watched(BatchQueue[Job]):
    """Remembers how many waited at once."""

    most = 0

    def offer(self, waiting: Job, timeout_s: float | None = None) -> None:
        super().offer(waiting, timeout_s)
        self.most = max(self.most, self.requests)


@dataclass(slots=True)
class Story:
    """What became of every request of a scenario."""

    rig: Rig
    setting: Setting
    scenario: list[Asked]
    begun_s: float
    ends: dict[int, str] = field(default_factory=dict)
    answered: list[int] = field(default_factory=list)

    async def tell(self, number: int, asked: Asked) -> None:
        await asyncio.sleep(asked.at / 10)
        over_s = None if asked.timeout is None else self.rig.loop.time() + asked.timeout / 10
        limit: dict[str, float | None] = {"deadline_s": over_s} if self.setting.as_deadline else {}
        if not self.setting.as_deadline and asked.timeout is not None:
            limit = {"queue_timeout_s": asked.timeout / 10}
        try:
            async with asyncio.timeout(None if asked.cancel_after is None else asked.cancel_after / 10):
                answer = await self.rig.request(number + 1, asked.rows, asked.width, priority=asked.priority, **limit)
        except TimeoutError:
            self.ends[number] = "cancelled"
        except PenstockError as error:
            self.ends[number] = error.reason
            if self.setting.as_deadline and over_s is not None:
                assert self.rig.loop.time() <= over_s + 0.01, "over on time"
        else:
            self.ends[number] = "answered"
            self.answered.append(number)
            assert answer[0].tolist() == [[(number + 1) * 2.0] * asked.width] * asked.rows, "its own answer"

    def batches(self) -> list[list[int]]:
        """The requests of each execution, in the order in which they began."""
        return [list(dict.fromkeys(int(row[0]) - 1 for row in batch)) for batch in self.rig.engine.batches]

    def level(self, number: int) -> int:
        policy, priority = self.setting.policy, self.scenario[number].priority
        return priority if 1 <= priority <= policy.priority_levels else policy.default_priority

    def limits(self, number: int) -> QueuePolicy:
        return self.setting.policy.queues.get(self.level(number), self.setting.policy.default_queue)

    def may_wait_s(self, number: int) -> float:
        timeout = self.scenario[number].timeout
        asked_s = None if timeout is None else timeout / 10
        if self.setting.as_deadline:
            return asked_s if asked_s is not None else math.inf
        limits = self.limits(number)
        allowed_s = allowed_wait_s(limits, asked_s)
        return math.inf if allowed_s is None or limits.timeout_action is TimeoutAction.DELAY else allowed_s


@settings(max_examples=150, deadline=None)
@given(SETTINGS, st.lists(ASKED, max_size=25))
def test_every_request_ends_once_in_order_in_time_and_within_bounds(setting: Setting, scenario: list[Asked]) -> None:
    async def body(loop: VirtualLoop) -> None:
        queue = Watched(setting.policy)
        r = rig(
            loop,
            setting.policy,
            slots=setting.slots,
            in_order=setting.in_order,
            durations_s=cycle(setting.durations_s),
            queue=queue,
        )
        story = Story(r, setting, scenario, loop.time())
        await asyncio.gather(*(story.tell(number, asked) for number, asked in enumerate(scenario)))
        await r.batcher.drained()
        ends, statistics = list(story.ends.values()), r.statistics
        assert len(ends) == len(scenario)
        assert statistics.success.count == ends.count("answered")
        # A request may expire and be cancelled in one turn: it is counted as what happened first.
        assert statistics.failures[Failure.CANCELED] <= ends.count("cancelled")
        assert statistics.success.count + sum(statistics.failures.values()) == len(scenario), "each ends once"
        assert queue.most <= setting.policy.max_requests, "capacity"
        assert statistics.inference_count == sum(r.sizes())
        assert statistics.execution_count == len(r.sizes())
        assert r.batcher.queued_rows == r.batcher.pending_requests == 0
        assert not r.batcher.busy
        _check_executions(story)
        _check_order(story)

    run_virtually(body)


def _check_executions(story: Story) -> None:
    """One shape, no more rows than may be, nothing twice, and nothing whose time was up."""
    seen: set[int] = set()
    for batch, begun_s in zip(story.batches(), story.rig.engine.begun_s, strict=True):
        asked = [story.scenario[number] for number in batch]
        assert len({each.width for each in asked}) == 1
        assert len(batch) == 1 or sum(each.rows for each in asked) <= story.setting.policy.max_rows
        assert not seen & set(batch), "never executed twice"
        seen |= set(batch)
        for number, each in zip(batch, asked, strict=True):
            assert begun_s - story.begun_s < each.at / 10 + story.may_wait_s(number) + 1e-6, "in time"


def _check_order(story: Story) -> None:
    """First in, first out within a priority, and answers likewise where it is asked for."""
    started = {number: index for index, batch in enumerate(story.batches()) for number in batch}
    for earlier, later in permutations(started, 2):
        a, b = story.scenario[earlier], story.scenario[later]
        if story.level(earlier) != story.level(later) or a.at >= b.at:
            continue
        if story.limits(earlier).timeout_action is TimeoutAction.DELAY:
            continue
        assert started[earlier] <= started[later], "first in, first out"
        if story.setting.in_order and earlier in story.answered and later in story.answered:
            assert story.answered.index(earlier) < story.answered.index(later), "answers in order"
