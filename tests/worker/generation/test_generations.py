"""Generations side by side: places, waiting, slow readers, readers that leave, deadlines."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import pytest

from runtime.errors import DeadlineExceeded, InvalidArgument, PenstockError
from worker.batching.batcher import ModelLeaving, QueueTimeout
from worker.batching.queue import BatchPolicy, QueueFull
from worker.engine import EngineFailed, Finish, Generation, Piece, TextRequest
from worker.generation.generations import Generations
from worker.generation.stepper import UNREAD_PIECES
from worker.statistics import CopyStatistics, Failure
from worker.types import CallContext, QueuePolicy


@dataclass(slots=True, eq=False)
class Counting:
    """A generation of numbers: the prompt says how many, "inf" without end."""

    limit: float
    made: int = 0
    closed: bool = False

    def close(self) -> None:
        self.closed = True


@dataclass(slots=True)
class CountingEngine:
    """Each step waits for permission."""

    slots: int = 2
    gate: threading.Semaphore | None = None
    prompts_gate: threading.Semaphore | None = None
    begun: list[Counting] = field(default_factory=list)
    order: list[Counting] = field(default_factory=list)
    """As they took their places."""
    batches: list[int] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)

    def begin(self, request: TextRequest) -> Generation:
        assert isinstance(request.prompt, str)
        if self.prompts_gate is not None:
            assert self.prompts_gate.acquire(timeout=10)
        if request.prompt == "bad":
            raise InvalidArgument("bad")
        if request.prompt == "broken":
            raise ZeroDivisionError
        self.begun.append(Counting(float(request.prompt) if request.prompt != "failing" else -1))
        return self.begun[-1]

    def step(self, generations: Sequence[Generation]) -> Sequence[Piece | PenstockError | None]:
        assert 0 < len(generations) <= self.slots
        ours = [generation for generation in generations if isinstance(generation, Counting)]
        self.order += [generation for generation in ours if generation not in self.order]
        if self.gate is not None:
            assert self.gate.acquire(timeout=10)
        self.batches.append(len(generations))
        if any(math.isnan(generation.limit) for generation in ours):
            raise ZeroDivisionError
        return [self._count(generation) for generation in ours]

    @property
    def limits(self) -> list[float]:
        return [generation.limit for generation in self.order]

    def close(self) -> None:
        self.closed.set()

    def _count(self, generation: Counting) -> Piece | PenstockError:
        assert not generation.closed
        generation.made += 1
        if generation.limit < 0:
            return EngineFailed("failing")
        done = generation.made >= generation.limit
        return Piece(f"{generation.made} ", (generation.made,), Finish.STOP if done else None, 1, generation.made)


@dataclass(slots=True)
class Rig:
    engine: CountingEngine
    generations: Generations
    statistics: CopyStatistics

    async def text(
        self, prompt: str, *, priority: int = 0, deadline_s: float | None = None, timeout_s: float | None = None
    ) -> str:
        call = CallContext(deadline_s=deadline_s)
        pieces = self.generations.generate(TextRequest(prompt), call, priority=priority, timeout_s=timeout_s)
        return "".join([piece.text async for piece in pieces])

    def let(self, steps: int) -> None:
        assert self.engine.gate is not None
        self.engine.gate.release(steps)


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def build(*, slots: int = 2, max_waiting: int = 4, gated: bool = False, slow_prompts: bool = False, **policy: Any) -> Rig:
        engine, statistics = CountingEngine(slots), CopyStatistics()
        engine.gate = threading.Semaphore(0) if gated else None
        engine.prompts_gate = threading.Semaphore(0) if slow_prompts else None
        generations = Generations(engine, statistics, BatchPolicy(8, max_requests=max_waiting, **policy), name="test")
        rigs.append(Rig(engine, generations, statistics))
        return rigs[-1]

    yield build
    for rig in rigs:
        for gate in (rig.engine.gate, rig.engine.prompts_gate):
            if gate is not None:
                gate.release(1000)
        rig.generations.close()
        assert await asyncio.to_thread(rig.engine.closed.wait, 10)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_each_reads_its_own(make: Callable[..., Rig]) -> None:
    rig = make(slots=3)
    texts = await asyncio.gather(*(rig.text(str(count)) for count in (1, 3, 2, 5)))
    assert texts == ["1 ", "1 2 3 ", "1 2 ", "1 2 3 4 5 "]
    assert all(generation.closed for generation in rig.engine.begun)
    assert rig.statistics.success.count == rig.statistics.compute_infer.count == rig.statistics.queue.count == 4
    assert rig.statistics.completion_tokens == rig.statistics.inference_count == 11
    assert rig.statistics.first_response.count == 4


async def test_an_execution_is_a_step_of_the_batch(make: Callable[..., Rig]) -> None:
    rig = make(slots=3, gated=True)
    texts = [asyncio.ensure_future(rig.text(prompt)) for prompt in ("4", "4", "2")]
    await until(lambda: len(rig.engine.begun) == 3 and not rig.generations.pending_requests)
    rig.let(100)
    await asyncio.gather(*texts)
    await rig.generations.drained()
    statistics = rig.statistics
    assert statistics.execution_count == len(rig.engine.batches)
    assert {rows: times.compute_infer.count for rows, times in statistics.batches.items()} == {
        rows: rig.engine.batches.count(rows) for rows in set(rig.engine.batches)
    }
    assert statistics.inference_count == sum(rig.engine.batches) == 10
    assert max(rig.engine.batches) > 1


async def test_a_refusal_waits_for_nobody(make: Callable[..., Rig]) -> None:
    """The only place is taken and its step stands still."""
    rig = make(slots=1, gated=True)
    running = asyncio.ensure_future(rig.text("2"))
    await until(lambda: rig.engine.limits == [2])
    with pytest.raises(InvalidArgument):
        await rig.text("bad")
    assert rig.engine.batches == []
    rig.let(2)
    await running


async def test_requests_whose_prompts_are_read_count_as_waiting(make: Callable[..., Rig]) -> None:
    rig = make(slots=1, max_waiting=2, slow_prompts=True)
    preparing = [asyncio.ensure_future(rig.text("1")) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await rig.text("1")
    drained = asyncio.ensure_future(rig.generations.drained())
    await asyncio.sleep(0)
    assert rig.generations.busy
    assert not drained.done()
    assert rig.engine.prompts_gate is not None
    rig.engine.prompts_gate.release(3)
    assert await asyncio.gather(*preparing) == ["1 "] * 3
    await drained


async def test_one_that_leaves_while_its_prompt_is_read_takes_no_place(make: Callable[..., Rig]) -> None:
    rig = make(slots=1, slow_prompts=True)
    leaving = asyncio.ensure_future(rig.text("inf"))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert rig.engine.prompts_gate is not None
    rig.engine.prompts_gate.release(2)
    assert await rig.text("1") == "1 "
    assert rig.engine.limits == [1]
    assert rig.statistics.failures[Failure.CANCELED] == 1


@pytest.mark.parametrize(("default_s", "asked_s"), [(0.02, None), (None, 0.02)], ids=["the queue", "the request itself"])
async def test_nobody_waits_longer_than_allowed_by(
    make: Callable[..., Rig], default_s: float | None, asked_s: float | None
) -> None:
    rig = make(slots=1, gated=True, default_queue=QueuePolicy(default_timeout_s=default_s))
    running = asyncio.ensure_future(rig.text("2"))
    await until(lambda: rig.engine.limits == [2])
    with pytest.raises(QueueTimeout, match="for a place in the batch"):
        await rig.text("3", timeout_s=asked_s)
    assert rig.generations.pending_requests == 0
    rig.let(2)
    assert await running == "1 2 "
    assert rig.statistics.failures[Failure.REJECTED] == 1


async def test_places_are_bounded_and_the_urgent_wait_least(make: Callable[..., Rig]) -> None:
    rig = make(slots=1, max_waiting=2, gated=True, priority_levels=2, default_priority=2)
    first = asyncio.ensure_future(rig.text("10"))
    await until(lambda: rig.engine.limits == [10])
    late, urgent = asyncio.ensure_future(rig.text("2")), asyncio.ensure_future(rig.text("1", priority=1))
    await until(lambda: rig.generations.pending_requests == 2)
    with pytest.raises(QueueFull):
        await rig.text("4")
    rig.let(100)
    await asyncio.gather(first, late, urgent)
    assert rig.engine.limits == [10, 1, 2]
    assert rig.statistics.failures[Failure.REJECTED] == 1


async def test_a_reader_that_leaves_frees_its_place_before_the_next_step(make: Callable[..., Rig]) -> None:
    rig = make(slots=1, gated=True)
    reading = asyncio.ensure_future(rig.text("inf"))
    rig.let(2)
    await until(lambda: rig.engine.begun != [] and rig.engine.begun[0].made == 2)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    rig.let(1)  # the step that was under way
    await until(lambda: rig.engine.begun[0].closed)
    assert rig.engine.begun[0].made == 3
    assert rig.statistics.failures[Failure.CANCELED] == 1
    rig.let(1)
    assert await rig.text("1") == "1 "


async def test_closing_the_iterator_is_leaving(make: Callable[..., Rig]) -> None:
    rig = make()
    async with aclosing(rig.generations.generate(TextRequest("inf"))) as pieces:
        async for piece in pieces:
            assert piece.text == "1 "
            break
    await until(lambda: rig.engine.begun[0].closed)


async def test_one_that_waits_and_leaves_is_never_begun(make: Callable[..., Rig]) -> None:
    rig = make(slots=1, gated=True)
    first = asyncio.ensure_future(rig.text("1"))
    await until(lambda: rig.engine.limits == [1])
    waiting = asyncio.ensure_future(rig.text("7"))
    await until(lambda: rig.generations.pending_requests == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert rig.generations.pending_requests == 0
    rig.let(1)
    await first
    await rig.generations.drained()
    assert rig.engine.limits == [1]


async def test_a_slow_reader_pauses_its_generation_alone(make: Callable[..., Rig]) -> None:
    rig = make()
    slow = rig.generations.generate(TextRequest("1000"))
    async with aclosing(slow):
        assert (await anext(slow)).text == "1 "
        await until(lambda: rig.engine.begun[0].made >= UNREAD_PIECES)
        assert await rig.text("500")  # the other one has run to its end meanwhile
        assert rig.engine.begun[0].made <= UNREAD_PIECES + 1
        rest = [piece async for piece in slow]
    assert [piece.token_ids[0] for piece in rest] == list(range(2, 1001))


async def test_a_paused_generation_whose_reader_leaves_is_freed(make: Callable[..., Rig]) -> None:
    rig = make(slots=1)
    pieces = rig.generations.generate(TextRequest("inf"))
    await anext(pieces)
    await until(lambda: rig.engine.begun[0].made >= UNREAD_PIECES)
    await pieces.aclose()
    await until(lambda: rig.engine.begun[0].closed)
    assert await rig.text("1") == "1 "


async def test_deadlines_hold_for_who_waits_and_who_runs(make: Callable[..., Rig]) -> None:
    rig = make(slots=1, gated=True)
    now_s = asyncio.get_running_loop().time()
    running = asyncio.ensure_future(rig.text("inf", deadline_s=now_s + 0.1))
    await until(lambda: rig.engine.limits == [math.inf])
    with pytest.raises(DeadlineExceeded, match="waited for its turn"):
        await rig.text("2", deadline_s=now_s + 0.05)
    with pytest.raises(DeadlineExceeded, match="was generated"):
        await running
    with pytest.raises(DeadlineExceeded, match="no time was left"):
        await rig.text("2", deadline_s=now_s - 1)
    rig.let(1)
    await until(lambda: rig.engine.begun[0].closed)
    assert rig.statistics.failures[Failure.REJECTED] == 3


async def test_what_fails_fails_alone(make: Callable[..., Rig]) -> None:
    rig = make()
    prompts = ("bad", "broken", "failing", "2")
    results = await asyncio.gather(*(rig.text(prompt) for prompt in prompts), return_exceptions=True)
    assert [type(result) for result in results] == [InvalidArgument, EngineFailed, EngineFailed, str]
    assert results[3] == "1 2 "
    assert (rig.statistics.failures[Failure.OTHER], rig.statistics.failures[Failure.BACKEND]) == (1, 2)
    assert rig.statistics.inference_count == 2


async def test_what_an_engine_raises_fails_its_batch_alone(make: Callable[..., Rig]) -> None:
    rig = make(slots=3, gated=True)
    before = asyncio.ensure_future(rig.text("1"))
    await until(lambda: rig.engine.limits == [1])
    texts = [asyncio.ensure_future(rig.text(prompt)) for prompt in ("nan", "inf")]
    await until(lambda: len(rig.engine.begun) == 3 and not rig.generations.pending_requests)
    rig.let(100)
    assert await before == "1 "
    results = await asyncio.gather(*texts, return_exceptions=True)
    assert [type(result) for result in results] == [EngineFailed, EngineFailed]
    assert await rig.text("1") == "1 "


async def test_draining(make: Callable[..., Rig]) -> None:
    rig = make(slots=1, gated=True)
    old = [asyncio.ensure_future(rig.text("2")) for _ in range(2)]
    await until(lambda: rig.engine.limits == [2])
    drained = asyncio.ensure_future(rig.generations.drained())
    await asyncio.sleep(0)
    with pytest.raises(ModelLeaving):
        await rig.text("1")
    assert not drained.done()
    rig.let(4)
    await drained
    assert await asyncio.gather(*old) == ["1 2 ", "1 2 "]


async def test_closing_ends_what_is_left(make: Callable[..., Rig]) -> None:
    rig = make(slots=1, gated=True)
    left = [asyncio.ensure_future(rig.text("inf")) for _ in range(2)]
    await until(lambda: rig.engine.limits == [math.inf])
    rig.generations.close()
    results = await asyncio.gather(*left, return_exceptions=True)
    assert [type(result) for result in results] == [ModelLeaving, ModelLeaving]
