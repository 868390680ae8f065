"""Several answers to one request, as one stream.

Owns the tasks that read them and the bound on what waits to be written. Each keeps its own order; between them the one that has
something goes first. The first failure ends them all: half of what was asked for is no answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from gateway.openai.pieces import Piece

_WAITING = 64
"""Pieces that may wait; then their sources are left to wait, and the workers with them."""


async def merged(sources: Sequence[AsyncGenerator[Piece, None]], at_once: int) -> AsyncGenerator[Piece, None]:
    """Every piece of every source, each of which ends with one that has a finish, `at_once` of them read together.

    Closing it closes them, wherever they are. Raises what the first to fail raised.
    """
    come: asyncio.Queue[Piece | Exception] = asyncio.Queue(_WAITING)
    places = asyncio.Semaphore(at_once)

    async def read(source: AsyncGenerator[Piece, None]) -> None:
        try:
            async with places, aclosing(source) as pieces:
                async for piece in pieces:
                    await come.put(piece)
        except Exception as error:
            await come.put(error)

    reading = [asyncio.create_task(read(source), name="read a choice") for source in sources]
    going = len(sources)
    try:
        while going:
            piece = await come.get()
            if isinstance(piece, Exception):
                raise piece
            yield piece
            going -= piece.finish is not None
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        for source in sources:  # those whose turn never came
            await source.aclose()
