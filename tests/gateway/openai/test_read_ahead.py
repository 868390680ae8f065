"""What came while one write was under way leaves in the next; nothing is read further ahead than the bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from gateway.openai.read_ahead import Pace, ReadAhead


class Source:
    def __init__(self, items: int, *, failure: Exception | None = None, endless: bool = False) -> None:
        self._items, self._failure, self._endless = items, failure, endless
        self.given, self.closed = 0, False

    async def read(self) -> AsyncGenerator[int, None]:
        try:
            while self.given < self._items:
                self.given += 1
                yield self.given
            if self._failure is not None:
                raise self._failure
            if self._endless:
                await asyncio.Event().wait()
        finally:
            self.closed = True


async def test_all_that_is_there_at_once() -> None:
    source = Source(5)
    async with ReadAhead(source.read()) as ahead:
        assert await ahead.take() == [1, 2, 3, 4, 5]
        assert await ahead.take() == []
        assert await ahead.take() == []
    assert source.closed


async def test_no_further_than_the_bound() -> None:
    source = Source(10)
    async with ReadAhead(source.read(), at_most=4) as ahead:
        taken = [await ahead.take()]
        assert source.given == 4
        while batch := await ahead.take():
            taken.append(batch)
    assert taken == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


async def test_a_failure_comes_after_what_came_before_it() -> None:
    source = Source(2, failure=ValueError("broken"))
    async with ReadAhead(source.read()) as ahead:
        assert await ahead.take() == [1, 2]
        with pytest.raises(ValueError, match="broken"):
            await ahead.take()
    assert source.closed


async def test_leaving_early_closes_the_source() -> None:
    source = Source(1, endless=True)
    async with ReadAhead(source.read()) as ahead:
        assert await ahead.take() == [1]
    assert source.closed


async def test_cancelled_while_waiting() -> None:
    source = Source(0, endless=True)

    async def read() -> None:
        async with ReadAhead(source.read()) as ahead:
            await ahead.take()

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert source.closed


class Steps:
    """A source that gives one item for each time it is told to, and ends when told."""

    def __init__(self) -> None:
        self.orders: asyncio.Queue[int | None] = asyncio.Queue()

    async def read(self) -> AsyncGenerator[int, None]:
        while (item := await self.orders.get()) is not None:
            yield item


FAR_S = 3600.0
PATIENCE_S = 10


async def test_where_many_are_written_the_first_goes_at_once_and_so_does_the_end() -> None:
    steps, pace = Steps(), Pace(free=0, distance_s=FAR_S)
    async with ReadAhead(steps.read(), pace) as ahead:
        steps.orders.put_nowait(1)
        assert await asyncio.wait_for(ahead.take(), PATIENCE_S) == [1]
        taking = asyncio.ensure_future(ahead.take())
        for item in (2, 3):
            steps.orders.put_nowait(item)
        while not steps.orders.empty():
            await asyncio.sleep(0)
        assert not taking.done(), "what comes now waits for its distance"
        steps.orders.put_nowait(None)
        assert await asyncio.wait_for(taking, PATIENCE_S) == [2, 3]
        assert await asyncio.wait_for(ahead.take(), PATIENCE_S) == []
    assert pace.answers == 0


async def test_no_distance_is_kept_where_there_is_no_room_for_more() -> None:
    steps = Steps()
    async with ReadAhead(steps.read(), Pace(free=0, distance_s=FAR_S), at_most=3) as ahead:
        steps.orders.put_nowait(0)
        assert await asyncio.wait_for(ahead.take(), PATIENCE_S) == [0]
        for item in (1, 2, 3):
            steps.orders.put_nowait(item)
        assert await asyncio.wait_for(ahead.take(), PATIENCE_S) == [1, 2, 3]


async def test_a_few_answers_keep_no_distance() -> None:
    steps = Steps()
    async with ReadAhead(steps.read(), Pace(free=1, distance_s=FAR_S)) as ahead:
        for item in (1, 2, 3):
            steps.orders.put_nowait(item)
            assert await asyncio.wait_for(ahead.take(), PATIENCE_S) == [item]
