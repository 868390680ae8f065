"""Asking the scheduler for a place where this gateway finds none: every copy is full, or none is ready.

Decides whether there may be one more who waits, for how long, and what its answer means. A place that is given is kept at its
worker under a hold, ahead of whoever comes by, so new requests need not stand back for those that wait here. Never queues
anything itself: the queue, its order and its fairness are the scheduler's.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from gateway.types import CapacityAsk, Held
from runtime.errors import Code, PenstockError


class CapacitySource(Protocol):
    """Who gives places out: gateway.schedulers.Schedulers."""

    async def await_capacity(self, ask: CapacityAsk) -> Held | None: ...


class Metrics(Protocol):
    """What is counted: gateway.metrics.GatewayMetrics."""

    def queued(self, outcome: str) -> None: ...


@dataclass(frozen=True, slots=True)
class CapacitySettings:
    waiters: int = 1_024
    """Requests of this gateway that wait at the scheduler at once; who comes beyond is answered as if there were none."""
    wait_s: float = 60.0
    """How long one waits at most, whatever its deadline."""


class CapacityEnded(PenstockError, code=Code.DEADLINE_EXCEEDED, reason="CAPACITY_WAIT_ENDED"):
    """The wait for a place ended before there was one."""


_CALLERS = (Code.RESOURCE_EXHAUSTED, Code.FAILED_PRECONDITION)
"""What the scheduler says to the caller: the queue is full or too slow for its deadline; nobody can load the model. Whatever
else it says is about the asking itself, and the gateway goes by what it knows."""


class Capacity:
    """Belongs to one event loop."""

    def __init__(self, source: CapacitySource, metrics: Metrics, settings: CapacitySettings | None = None) -> None:
        self._source, self._metrics = source, metrics
        self._settings = settings or CapacitySettings()
        self._loop = asyncio.get_running_loop()
        self.waiting = 0

    def until_s(self, deadline_s: float | None) -> float:
        """When a request stops waiting that begins now, on the loop's clock."""
        until_s = self._loop.time() + self._settings.wait_s
        return until_s if deadline_s is None else min(until_s, deadline_s)

    async def place(self, ask: CapacityAsk) -> Held | None:
        """A place; None: the scheduler gives none out now. Raises CapacityEnded, and what the caller is to be told."""
        if self.waiting >= self._settings.waiters:
            self._metrics.queued("too_many")
            return None
        self.waiting += 1
        try:
            held = await self._source.await_capacity(ask)
        except PenstockError as error:
            self._metrics.queued(error.code.name.lower())
            if error.code in _CALLERS:
                raise
            if error.code is Code.DEADLINE_EXCEEDED:
                raise CapacityEnded(error.message) from error
            return None
        except asyncio.CancelledError:
            self._metrics.queued("cancelled")
            raise
        finally:
            self.waiting -= 1
        self._metrics.queued("nobody" if held is None else "granted")
        return held
