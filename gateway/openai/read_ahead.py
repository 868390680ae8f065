"""Reads an answer ahead of whoever writes it on, so that all that came while one write was under way leaves in the next.

Owns the reading task and the bound on what waits. The first of an answer goes at once, and so does its end. Where many answers
are written side by side, writes of one keep a distance of a few milliseconds, which nobody sees: a write costs the gateway as
much as reading ten tokens does.
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

FREE_ANSWERS = 8
"""So many answers are written without any distance."""

DISTANCE_S = 0.005


class Pace:
    """How far apart the writes of one answer are, by how many are written. Belongs to one event loop."""

    def __init__(self, *, free: int = FREE_ANSWERS, distance_s: float = DISTANCE_S) -> None:
        self._free, self._distance_s = free, distance_s
        self.answers = 0

    @property
    def distance_s(self) -> float:
        return self._distance_s if self.answers > self._free else 0.0


class ReadAhead(Generic[T]):
    """`async with ReadAhead(source) as ahead`: leaving closes the source, wherever it is."""

    def __init__(self, source: AsyncGenerator[T, None], pace: Pace | None = None, *, at_most: int = AT_MOST) -> None:
        self._source, self._pace, self._at_most = source, pace or Pace(), at_most
        self._items: list[T] = []
        self._news, self._room, self._enough = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._taken_s: float | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> ReadAhead[T]:
        self._pace.answers += 1
        self._task = asyncio.create_task(self._read(), name="read-ahead")
        self._task.add_done_callback(self._ended)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pace.answers -= 1
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def take(self) -> list[T]:
        """Everything there is; waits for the first. Empty: the source has ended. Raises what the source raised."""
        if self._taken_s is not None and (distance_s := self._pace.distance_s):
            await self._keep(self._taken_s + distance_s)
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
        self._taken_s = self._loop.time()
        return items

    async def _keep(self, until_s: float) -> None:
        """Wait until then, or until there is no room for more or nothing to wait for."""
        if until_s <= self._loop.time():
            return
        timer = self._loop.call_at(until_s, self._enough.set)
        try:
            await self._enough.wait()
        finally:
            timer.cancel()
            if self._task is not None and not self._task.done():
                self._enough.clear()

    def _ended(self, _: object) -> None:
        self._news.set()
        self._enough.set()

    async def _read(self) -> None:
        async with aclosing(self._source) as source:
            async for item in source:
                self._items.append(item)
                self._news.set()
                if len(self._items) >= self._at_most:
                    self._enough.set()
                    self._room.clear()
                    await self._room.wait()
