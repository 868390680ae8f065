"""How many may do something at once, and how many may wait for it: what bounds the memory of one process.

Where many share the places, none of them has all: whoever opens streams and lets them stand keeps only itself waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType

from registry.files.errors import UploadsFull


class Places:
    """`async with places:` is a place, as soon as one is free; first come, first served."""

    def __init__(self, what: str, at_once: int, waiting: int, *, each: int = 0) -> None:
        """`each`: of those places at most so many are one name's (`of`); 0 = all."""
        self._what, self._most_waiting = what, waiting
        self._free = asyncio.Semaphore(at_once)
        self._waiting = 0
        self._each = each or at_once
        self._shares: dict[str, _Share] = {}
        """Of names that have a place or wait for one."""

    @asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[None]:
        """A place for one of many that share them. Raises UploadsFull where too many wait already, by this name or in all."""
        share = self._shares.setdefault(name, _Share(asyncio.Semaphore(self._each)))
        if share.inside >= self._each + self._most_waiting // 2:
            raise self._full(share.inside - self._each)
        share.inside += 1
        try:
            async with share.turns, self:
                yield
        finally:
            share.inside -= 1
            if not share.inside:
                del self._shares[name]

    async def __aenter__(self) -> None:
        """Raises UploadsFull where too many wait already."""
        if self._waiting >= self._most_waiting:
            raise self._full(self._waiting)
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._free.release()

    def _full(self, waiting: int) -> UploadsFull:
        return UploadsFull(f"{waiting} {self._what} wait for their turn already, as many as may", retry_after_s=1.0)


@dataclass(slots=True)
class _Share:
    turns: asyncio.Semaphore
    inside: int = 0
    """Who has a turn or waits for one."""
