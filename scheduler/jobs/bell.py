"""Wakes all who wait, each time it rings. Only in this process: others' changes are found by looking now and then."""

from __future__ import annotations

import asyncio


class Bell:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._next = asyncio.Event()
        self._closed = False

    @property
    def next(self) -> asyncio.Event:
        """Set by the next ringing. Taken before one looks, so that nothing is missed between looking and waiting."""
        return self._next

    @property
    def closed(self) -> bool:
        return self._closed

    def ring(self) -> None:
        rung, self._next = self._next, asyncio.Event()
        rung.set()
        if self._closed:
            self._next.set()

    def close(self) -> None:
        """Ring for ever: who waits is to leave."""
        self._closed = True
        self.ring()
