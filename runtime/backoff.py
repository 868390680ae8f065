"""How long to wait before trying again: longer each time, up to a bound, and never all at the same moment.

Decides a delay, and waits so that an event can cut it short. Never decides whether to try again.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from runtime.clock import Clock


@dataclass(frozen=True, slots=True)
class Backoff:
    """first, first × factor, … up to max; each lengthened by a random part of up to `jitter` of itself."""

    first_s: float = 0.1
    factor: float = 2.0
    max_s: float = 5.0
    jitter: float = 0.5

    def delay_s(self, failures: int, rng: random.Random) -> float:
        """The delay after this many failures in a row, from 1."""
        exponent = min(max(failures, 1) - 1, 64)  # past that a float overflows before min() is reached
        return min(self.first_s * self.factor**exponent, self.max_s) * (1.0 + self.jitter * rng.random())


DEFAULT_BACKOFF = Backoff(max_s=2.0)
"""For what the mesh has to have again within 10 s of its return: two attempts fit, also where the first one came just before a
channel was ready to connect."""


async def sleep_unless(clock: Clock, delay_s: float, woken: asyncio.Event) -> None:
    """Return after the delay, or as soon as the event is set."""
    if woken.is_set() or delay_s <= 0:
        await asyncio.sleep(0)
        return
    waits = (asyncio.ensure_future(clock.sleep(delay_s)), asyncio.ensure_future(woken.wait()))
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
