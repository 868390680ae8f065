"""Equal requests at the same time: one is asked of a worker, the others wait for what it gets.

Owns who has the lead and who waits. Where the lead gets no answer that others could have, the next of those who wait takes
over. Never asks anybody, never keeps an answer.
"""

from __future__ import annotations

import asyncio

from gateway.cache.types import Answer, Key
from runtime.errors import DeadlineExceeded


class Flight:
    """One request under way, for all that are equal to it."""

    __slots__ = ("_ended", "answer", "was_abandoned")

    def __init__(self) -> None:
        self._ended = asyncio.Event()
        self.answer: Answer | None = None
        """Once it has ended: what everybody gets; None: the lead got nothing that others could have."""
        self.was_abandoned = False
        """Its caller went away before it had an answer, which says nothing of the request."""

    def end(self, answer: Answer | None, *, abandoned: bool = False) -> None:
        self.answer, self.was_abandoned = answer, abandoned
        self._ended.set()

    async def wait(self) -> None:
        await self._ended.wait()


class Flights:
    """Those under way, by key. Belongs to one event loop."""

    def __init__(self, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._under_way: dict[Key, Flight] = {}
        self.waiting = 0

    def __len__(self) -> int:
        return len(self._under_way)

    @property
    def has_room(self) -> bool:
        """Whether one more may wait."""
        return self.waiting < self._most_waiting

    def under_way(self, key: Key) -> Flight | None:
        return self._under_way.get(key)

    def begin(self, key: Key) -> Flight:
        """Take the lead; whoever does ends it, whatever happens."""
        flight = self._under_way[key] = Flight()
        return flight

    def end(self, key: Key, flight: Flight, answer: Answer | None, *, abandoned: bool = False) -> None:
        """Doing it again does nothing."""
        if self._under_way.get(key) is flight:
            del self._under_way[key]
            flight.end(answer, abandoned=abandoned)

    async def follow(self, flight: Flight, deadline_s: float | None) -> None:
        """Return once it has ended. `deadline_s` on the loop's clock. Raises DeadlineExceeded."""
        self.waiting += 1
        try:
            async with asyncio.timeout_at(deadline_s):
                await flight.wait()
        except TimeoutError:
            raise DeadlineExceeded(
                "no time is left: an equal request was still being answered; give it a longer deadline"
            ) from None
        finally:
            self.waiting -= 1
