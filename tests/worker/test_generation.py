"""Generations side by side: places, waiting, slow readers, readers that leave, deadlines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

import pytest

from runtime.errors import DeadlineExceeded, InvalidArgument
from worker.batcher import ModelLeaving
from worker.batching import QueueFull
from worker.engine import EngineFailed, Finish, Piece, TextRequest
from worker.generation import Generations
from worker.statistics import CopyStatistics, Failure
from worker.stepper import UNREAD_PIECES


@dataclass(slots=True)
class Counting:
    """A generation of numbers: the prompt says how many, "inf" without end; each step waits for the engine's permission."""

    engine: CountingEngine
    limit: float
    made: int = 0
    closed: bool = False

    def step(self) -> Piece | None:
        assert not self.closed
        self.engine.step()
        self.made += 1
        done = self.made >= self.limit
        return Piece(f"{self.made} ", (self.made,), Finish.STOP if done else None, 1, self.made)

    def close(self) -> None:
        self.closed = True


@dataclass(slots=True)
class CountingEngine:
    begun: list[Counting] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    gate: threading.Semaphore | None = None
    closed: threading.Event = field(default_factory=threading.Event)

    def begin(self, request: TextRequest) -> Counting:
        assert isinstance(request.prompt, str)
        self.order.append(request.prompt)
        if request.prompt == "bad":
            raise InvalidArgument("bad")
        if request.prompt == "broken":
            raise ZeroDivisionError
        generation = Counting(self, float(request.prompt))
        self.begun.append(generation)
        return generation

    def step(self) -> None:
        if self.gate is not None:
            assert self.gate.acquire(timeout=10)

    def close(self) -> None:
        self.closed.set()


@dataclass(slots=True)
class Rig:
    engine: CountingEngine
    generations: Generations
    statistics: CopyStatistics

    async def text(self, prompt: str, **asked: float) -> str:
        return "".join([piece.text async for piece in self.generations.generate(TextRequest(prompt), **asked)])  # type: ignore[arg-type]


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def build(*, max_running: int = 2, max_waiting: int = 4, gated: bool = False) -> Rig:
        engine, statistics = CountingEngine(gate=threading.Semaphore(0) if gated else None), CopyStatistics()
        generations = Generations(engine, statistics, name="test", max_running=max_running, max_waiting=max_waiting)
        rigs.append(Rig(engine, generations, statistics))
        return rigs[-1]

    yield build
    for rig in rigs:
        if rig.engine.gate is not None:
            rig.engine.gate.release(1000)
        rig.generations.close()
        assert await asyncio.to_thread(rig.engine.closed.wait, 10)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_each_reads_its_own(make: Callable[..., Rig]) -> None:
    rig = make(max_running=3)
    texts = await asyncio.gather(*(rig.text(str(count)) for count in (1, 3, 2, 5)))
    assert texts == ["1 ", "1 2 3 ", "1 2 ", "1 2 3 4 5 "]
    assert all(generation.closed for generation in rig.engine.begun)
    assert rig.statistics.success.count == rig.statistics.inference_count == 4
    assert rig.statistics.completion_tokens == 11
    assert rig.statistics.first_response.count == 4


async def test_places_are_bounded_and_the_urgent_wait_least(make: Callable[..., Rig]) -> None:
    rig = make(max_running=1, max_waiting=2, gated=True)
    first = asyncio.ensure_future(rig.text("10"))
    await until(lambda: rig.engine.order == ["10"])
    late, urgent = asyncio.ensure_future(rig.text("2")), asyncio.ensure_future(rig.text("1", priority=1))
    await until(lambda: rig.generations.pending_requests == 2)
    with pytest.raises(QueueFull):
        await rig.text("4")
    rig.engine.gate.release(100)  # type: ignore[union-attr]
    await asyncio.gather(first, late, urgent)
    assert rig.engine.order == ["10", "1", "2"]
    assert rig.statistics.failures[Failure.REJECTED] == 1


async def test_a_reader_that_leaves_frees_its_place_before_the_next_step(make: Callable[..., Rig]) -> None:
    rig = make(max_running=1, gated=True)
    reading = asyncio.ensure_future(rig.text("inf"))
    rig.engine.gate.release(2)  # type: ignore[union-attr]
    await until(lambda: rig.engine.begun != [] and rig.engine.begun[0].made == 2)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    rig.engine.gate.release(1)  # type: ignore[union-attr]  # the step that was under way
    await until(lambda: rig.engine.begun[0].closed)
    assert rig.engine.begun[0].made == 3
    assert rig.statistics.failures[Failure.CANCELED] == 1
    rig.engine.gate.release(1)  # type: ignore[union-attr]
    assert await rig.text("1") == "1 "


async def test_closing_the_iterator_is_leaving(make: Callable[..., Rig]) -> None:
    rig = make()
    async with aclosing(rig.generations.generate(TextRequest("inf"))) as pieces:
        async for piece in pieces:
            assert piece.text == "1 "
            break
    await until(lambda: rig.engine.begun[0].closed)


async def test_one_that_waits_and_leaves_is_never_begun(make: Callable[..., Rig]) -> None:
    rig = make(max_running=1, gated=True)
    first = asyncio.ensure_future(rig.text("1"))
    await until(lambda: rig.engine.order == ["1"])
    waiting = asyncio.ensure_future(rig.text("7"))
    await until(lambda: rig.generations.pending_requests == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert rig.generations.pending_requests == 0
    rig.engine.gate.release(1)  # type: ignore[union-attr]
    await first
    await rig.generations.drained()
    assert rig.engine.order == ["1"]


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
    rig = make(max_running=1)
    pieces = rig.generations.generate(TextRequest("inf"))
    await anext(pieces)
    await until(lambda: rig.engine.begun[0].made >= UNREAD_PIECES)
    await pieces.aclose()
    await until(lambda: rig.engine.begun[0].closed)
    assert await rig.text("1") == "1 "


async def test_deadlines_hold_for_who_waits_and_who_runs(make: Callable[..., Rig]) -> None:
    rig = make(max_running=1, gated=True)
    now_s = asyncio.get_running_loop().time()
    running = asyncio.ensure_future(rig.text("inf", deadline_s=now_s + 0.1))
    await until(lambda: rig.engine.order == ["inf"])
    with pytest.raises(DeadlineExceeded, match="waited for its turn"):
        await rig.text("2", deadline_s=now_s + 0.05)
    with pytest.raises(DeadlineExceeded, match="was generated"):
        await running
    with pytest.raises(DeadlineExceeded, match="no time was left"):
        await rig.text("2", deadline_s=now_s - 1)
    rig.engine.gate.release(1)  # type: ignore[union-attr]
    await until(lambda: rig.engine.begun[0].closed)
    assert rig.statistics.failures[Failure.REJECTED] == 3


async def test_what_fails_fails_alone(make: Callable[..., Rig]) -> None:
    rig = make()
    results = await asyncio.gather(rig.text("bad"), rig.text("broken"), rig.text("2"), return_exceptions=True)
    assert isinstance(results[0], InvalidArgument)
    assert isinstance(results[1], EngineFailed)
    assert results[2] == "1 2 "
    assert (rig.statistics.failures[Failure.OTHER], rig.statistics.failures[Failure.BACKEND]) == (1, 1)


async def test_draining(make: Callable[..., Rig]) -> None:
    rig = make(max_running=1, gated=True)
    old = [asyncio.ensure_future(rig.text("2")) for _ in range(2)]
    await until(lambda: rig.engine.order == ["2"])
    drained = asyncio.ensure_future(rig.generations.drained())
    await asyncio.sleep(0)
    with pytest.raises(ModelLeaving):
        await rig.text("1")
    assert not drained.done()
    rig.engine.gate.release(4)  # type: ignore[union-attr]
    await drained
    assert await asyncio.gather(*old) == ["1 2 ", "1 2 "]


async def test_closing_ends_what_is_left(make: Callable[..., Rig]) -> None:
    rig = make(max_running=1, gated=True)
    left = [asyncio.ensure_future(rig.text("inf")) for _ in range(2)]
    await until(lambda: rig.engine.order == ["inf"])
    rig.generations.close()
    results = await asyncio.gather(*left, return_exceptions=True)
    assert [type(result) for result in results] == [ModelLeaving, ModelLeaving]
