"""Several answers as one stream: whole, in order, bounded, and none left running."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from gateway.openai.choices import merged
from gateway.openai.pieces import Finish, Piece
from runtime.errors import Unavailable

PATIENCE_S = 10


class Source:
    """One choice: how many pieces it gives, and what became of it."""

    open = 0

    def __init__(self, choice: int, size: int, failure: Exception | None = None, *, hangs: bool = False) -> None:
        self.choice, self.size, self.failure, self.hangs = choice, size, failure, hangs
        self.begun, self.closed, self.given = asyncio.Event(), False, 0

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        self.begun.set()
        try:
            for each in range(self.size):
                await asyncio.sleep(0)
                self.given += 1
                last = each == self.size - 1 and self.failure is None and not self.hangs
                yield Piece(f"{each} ", Finish.STOP if last else None, choice=self.choice)
            if self.failure is not None:
                raise self.failure
            if self.hangs:
                await asyncio.Event().wait()
        finally:
            self.closed = True


async def read(sources: list[Source], at_once: int = 16) -> list[Piece]:
    async with aclosing(merged([source.pieces() for source in sources], at_once)) as pieces:
        return [piece async for piece in pieces]


@pytest.mark.parametrize("at_once", [1, 2, 16])
async def test_every_piece_of_each_in_its_order(at_once: int) -> None:
    sources = [Source(choice, size) for choice, size in enumerate((1, 300, 7, 40))]
    pieces = await asyncio.wait_for(read(sources, at_once), PATIENCE_S)
    for source in sources:
        own = [piece.text for piece in pieces if piece.choice == source.choice]
        assert own == [f"{each} " for each in range(source.size)]
    assert all(source.closed for source in sources)


async def test_no_more_run_than_may() -> None:
    running = most = 0

    async def counted(choice: int) -> AsyncGenerator[Piece, None]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1
        yield Piece("", Finish.STOP, choice=choice)

    async with aclosing(merged([counted(choice) for choice in range(20)], 3)) as pieces:
        assert len([piece async for piece in pieces]) == 20
    assert most == 3


async def test_the_first_failure_ends_them_all() -> None:
    sources = [Source(0, 1, hangs=True), Source(1, 2, Unavailable("lost")), Source(2, 3, hangs=True)]
    with pytest.raises(Unavailable, match="lost"):
        await asyncio.wait_for(read(sources), PATIENCE_S)
    assert all(source.closed for source in sources)


async def test_leaving_early_ends_them_all() -> None:
    sources = [Source(choice, 1, hangs=True) for choice in range(4)]
    tasks = len(asyncio.all_tasks())
    async with aclosing(merged([source.pieces() for source in sources], 2)) as pieces:
        await anext(pieces)
        await asyncio.wait_for(sources[1].begun.wait(), PATIENCE_S)
    assert [source.closed for source in sources] == [True, True, False, False], "those whose turn never came had nothing open"
    assert len(asyncio.all_tasks()) == tasks


async def test_a_cancelled_reader_ends_them_all() -> None:
    sources = [Source(choice, 1, hangs=True) for choice in range(3)]
    reading = asyncio.create_task(read(sources))
    await asyncio.wait_for(asyncio.gather(*(source.begun.wait() for source in sources)), PATIENCE_S)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert all(source.closed for source in sources)


async def test_a_slow_reader_holds_them_back() -> None:
    sources = [Source(0, 10_000), Source(1, 10_000)]
    async with aclosing(merged([source.pieces() for source in sources], 2)) as pieces:
        await anext(pieces)
        before = -1
        while before != (given := sum(source.given for source in sources)):
            before = given
            for _ in range(1000):
                await asyncio.sleep(0)
        assert given < 100
