"""Requests to one remote model: so many run at once, the others wait in the model's queue, as it has priorities and bounds.

Owns the places, the queue's timer and what is counted of each request. Every admitted one is counted exactly once: answered, or
failed with its reason. Nothing runs here: a request runs in its caller's task once its place is granted.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from runtime.errors import Code, DeadlineExceeded, PenstockError
from worker.batching.batcher import ModelLeaving, QueueTimeout
from worker.batching.queue import BatchQueue, QueueFull, Waiting, batch_policy
from worker.statistics import CopyStatistics, Failure, Timing
from worker.types import ModelSpec

_CALLERS_FAULT = (Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED)


@dataclass(slots=True)
class Visit:
    """One request's stay."""

    arrived_ns: int
    granted: asyncio.Future[None]
    """Its place, or why it gets none."""
    began_ns: int = 0
    first_ns: int = 0
    counted: bool = field(default=False, init=False)


Place = Waiting[Visit]


class Admissions:
    """One model's. Used on the loop only."""

    def __init__(self, spec: ModelSpec, statistics: CopyStatistics, max_running: int) -> None:
        self._statistics = statistics
        self._max_running = max_running
        self._loop = asyncio.get_running_loop()
        # Each runs by itself; what the upstream puts together is its own affair.
        self._queue: BatchQueue[Place] = BatchQueue(replace(batch_policy(spec), max_rows=0, delay_s=0.0))
        self._running = 0
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = math.inf
        self._leaving = False
        self._idle: list[asyncio.Future[None]] = []

    @property
    def queued_rows(self) -> int:
        return self._queue.rows

    @property
    def pending_requests(self) -> int:
        return self._queue.requests

    @property
    def busy(self) -> bool:
        return self._running > 0 or self._queue.requests > 0

    @asynccontextmanager
    async def place(
        self, rows: int = 1, *, priority: int = 0, deadline_s: float | None = None, queue_timeout_s: float | None = None
    ) -> AsyncGenerator[Visit, None]:
        """A place, once there is one, and until the context is left. How it is left is how the request ended.

        Raises QueueFull, QueueTimeout, DeadlineExceeded, ModelLeaving.
        """
        waiting = self._admit(rows, priority, deadline_s, queue_timeout_s)
        visit = waiting.work
        try:
            await visit.granted
            yield visit
        except BaseException as error:
            self._failed(visit, error)
            raise
        finally:
            self._leave(waiting)

    def responded(self, visit: Visit) -> None:
        """A part of its answer came."""
        if not visit.first_ns:
            visit.first_ns = time.monotonic_ns()
            self._statistics.first_response.observe((visit.first_ns - visit.arrived_ns) / 1e6)

    def answered(self, visit: Visit, *, rows: int = 1, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """It has its whole answer."""
        if visit.counted:
            return
        visit.counted = True
        now_ns, statistics = time.monotonic_ns(), self._statistics
        statistics.executed(rows, 1, Timing(0, now_ns - visit.began_ns, 0), wall_ms=int(time.time() * 1000))
        statistics.queue.add(visit.began_ns - visit.arrived_ns)
        statistics.success.add(now_ns - visit.arrived_ns)
        statistics.prompt_tokens += prompt_tokens
        statistics.completion_tokens += completion_tokens

    async def drained(self) -> None:
        """Refuse what comes from now on; return when what was admitted has ended."""
        self._leaving = True
        if self.busy:
            idle: asyncio.Future[None] = self._loop.create_future()
            self._idle.append(idle)
            await idle

    def close(self) -> None:
        """Refuse what waits. What runs is ended by its engine."""
        self._leaving = True
        for waiting in list(self._queue):
            self._refuse(waiting, ModelLeaving("the model was unloaded before this request ran; retry"))
        if self._timer is not None:
            self._timer.cancel()

    def _admit(self, rows: int, priority: int, deadline_s: float | None, queue_timeout_s: float | None) -> Place:
        now_s = self._loop.time()
        visit = Visit(time.monotonic_ns(), self._loop.create_future())
        waiting = Waiting(visit, rows, None, now_s, priority, deadline_s=deadline_s)
        try:
            if self._leaving:
                raise ModelLeaving("this copy of the model is being unloaded; retry")
            if deadline_s is not None and deadline_s <= now_s:
                raise DeadlineExceeded("no time was left when the request reached the model's queue")
            self._queue.offer(waiting, queue_timeout_s)
        except PenstockError as error:
            self._failed(visit, error)
            raise
        self._grant()
        return waiting

    def _grant(self) -> None:
        """Give free places to those whose turn it is; tell those that waited too long."""
        now_s = self._loop.time()
        if self._queue.earliest_s <= now_s:
            for waiting in self._queue.overdue(now_s):
                self._refuse(waiting, _expiry(waiting, now_s))
        while self._running < self._max_running and (taken := self._queue.take(now_s)):
            self._running += 1
            taken[0].work.began_ns = time.monotonic_ns()
            _settle(taken[0].work.granted)
        self._watch()
        if self._idle and not self.busy:
            for idle in self._idle:
                _settle(idle)
            self._idle.clear()

    def _leave(self, waiting: Place) -> None:
        if waiting.work.began_ns:
            self._running -= 1
        else:
            self._queue.abandon(waiting)
        self._grant()

    def _watch(self) -> None:
        """One timer for all that wait: it fires at the earliest expiry."""
        due_s = self._queue.earliest_s if self._queue.requests else math.inf
        if due_s == self._due_s:
            return
        self._due_s = due_s
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due_s, self._fire) if due_s < math.inf else None

    def _fire(self) -> None:
        self._due_s = math.inf
        self._grant()

    def _refuse(self, waiting: Place, error: PenstockError) -> None:
        self._queue.abandon(waiting)
        if not waiting.work.granted.done():
            waiting.work.granted.set_exception(error)

    def _failed(self, visit: Visit, error: BaseException) -> None:
        if not visit.counted:
            visit.counted = True
            self._statistics.failed(_failure(visit, error), time.monotonic_ns() - visit.arrived_ns)


def _failure(visit: Visit, error: BaseException) -> Failure:
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return Failure.CANCELED
    if isinstance(error, QueueFull | QueueTimeout | DeadlineExceeded) or (
        isinstance(error, ModelLeaving) and not visit.began_ns
    ):
        return Failure.REJECTED
    if isinstance(error, PenstockError) and error.code in _CALLERS_FAULT:
        return Failure.OTHER
    return Failure.BACKEND


def _expiry(waiting: Place, now_s: float) -> PenstockError:
    if waiting.deadline_s is not None and waiting.deadline_s <= now_s:
        return DeadlineExceeded("the deadline passed while the request waited for its turn at the upstream")
    waited_ms = (now_s - waiting.arrived_s) * 1000
    return QueueTimeout(f"Request timeout expired: it waited {waited_ms:.0f} ms for its turn at the upstream")


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
