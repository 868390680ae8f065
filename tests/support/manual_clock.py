"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count

_TURNS = 50
"""How often others get the loop before time moves on: enough for a woken task to ask, be answered and wait again."""


class ManualClock:
    """A Clock whose hours belong to the test."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self._now_s = now_s
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()

    def monotonic_s(self) -> float:
        return self._now_s

    def wall_s(self) -> float:
        return 1_700_000_000.0 + self._now_s

    async def sleep(self, delay_s: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now_s + delay_s, next(self._order), woken))
        await woken

    async def advance(self, by_s: float) -> None:
        """Let that much time pass: every sleeper wakes at its own moment, in order, and goes as far as it can."""
        until_s = self._now_s + by_s
        await settle()
        while self._sleepers and self._sleepers[0][0] <= until_s:
            at_s, _, woken = heapq.heappop(self._sleepers)
            if woken.done():
                continue
            self._now_s = max(self._now_s, at_s)
            woken.set_result(None)
            await settle()
        self._now_s = until_s
        await settle()


async def settle() -> None:
    """Let everything that can run now run."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)
