"""Reads an answer ahead of whoever writes it on, so that all that came while one write was under way leaves in the next.

Owns the reading task and the bound on what waits. Nothing is delayed to be gathered: what is there goes at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

AT_MOST = 64
"""Items that may wait to be written; then the source is left to wait, and the worker with it."""


class ReadAhead(Generic[T]):
    """`async with ReadAhead(source) as ahead`: leaving closes the source, wherever it is."""

    def __init__(self, source: AsyncGenerator[T, None], *, at_most: int = AT_MOST) -> None:
        self._source, self._at_most = source, at_most
        self._items: list[T] = []
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> ReadAhead[T]:
        self._task = asyncio.create_task(self._read(), name="read-ahead")
        self._task.add_done_callback(lambda _: self._news.set())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def take(self) -> list[T]:
        """Everything there is; waits for the first. Empty: the source has ended. Raises what the source raised."""
        while not self._items:
            task = self._task
            if task is None or task.done():
                if task is not None:
                    task.result()
                return []
            self._news.clear()
            await self._news.wait()
        items, self._items = self._items, []
        self._room.set()
        return items

    async def _read(self) -> None:
        async with aclosing(self._source) as source:
            async for item in source:
                self._items.append(item)
                self._news.set()
                if len(self._items) >= self._at_most:
                    self._room.clear()
                    await self._room.wait()
