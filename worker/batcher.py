"""Requests in, answers out: runs one model's queue over its engine.

Owns the waiting requests' futures, the running execution and the expiry timer. An idle engine starts at the end of the loop
turn in which a request came, so that what arrived together travels together; while it is busy the queue gathers.
`batching.py` decides what goes together. Every admitted request ends exactly once: answered, failed, expired or cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import structlog

from runtime.errors import Code, DeadlineExceeded, PenstockError, Unavailable
from worker.batching import DEFAULT_PRIORITY, BatchPolicy, BatchQueue, QueueFull, Waiting
from worker.engine import Array, EngineFailed, TensorEngine
from worker.lane import Lane
from worker.statistics import CopyStatistics, Failure, Timing

_log = structlog.get_logger("penstock.batcher")


class QueueTimeout(PenstockError, code=Code.DEADLINE_EXCEEDED, reason="QUEUE_TIMEOUT"):
    """The request waited longer than its own `timeout` parameter allows."""


class ModelLeaving(PenstockError, code=Code.UNAVAILABLE, reason="MODEL_LEAVING"):
    """This copy is being unloaded; another one can answer."""


@dataclass(slots=True, eq=False)
class Job:
    """One admitted request."""

    inputs: Mapping[str, Array]
    future: asyncio.Future[Sequence[Array]]
    arrived_ns: int
    deadline_s: float | None
    started_ns: int = 0


@dataclass(slots=True)
class Executed:
    """What the engine's thread gives back: per request its outputs or its error, per execution its size and timing."""

    answers: list[Sequence[Array] | Exception] = field(default_factory=list)
    executions: list[tuple[int, int, Timing]] = field(default_factory=list)
    """Rows, requests, timing."""


class Batcher:
    """One model's requests. Used on the loop only."""

    def __init__(
        self,
        policy: BatchPolicy,
        engine: TensorEngine,
        lane: Lane,
        statistics: CopyStatistics,
        *,
        batched: bool = True,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._policy = policy
        self._queue: BatchQueue[Job] = BatchQueue(policy)
        self._engine = engine
        self._lane = lane
        self._statistics = statistics
        self._batched = batched
        self._clock_ns = clock_ns
        self._loop = asyncio.get_running_loop()
        self._running: Sequence[Waiting[Job]] = ()
        self._start_pending = False
        self._wake_at_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._leaving = False
        self._idle: list[asyncio.Future[None]] = []

    @property
    def queued_rows(self) -> int:
        return self._queue.rows

    @property
    def pending_requests(self) -> int:
        """Requests that wait for the engine."""
        return self._queue.requests

    async def infer(
        self,
        inputs: Mapping[str, Array],
        rows: int,
        shape: object,
        *,
        priority: int = 0,
        deadline_s: float | None = None,
        queue_timeout_s: float | None = None,
    ) -> Sequence[Array]:
        """The outputs of this request alone. Cancelling gives its place back.

        `shape` is equal for requests that may share an execution. Raises QueueFull, QueueTimeout, DeadlineExceeded,
        ModelLeaving, EngineFailed.
        """
        arrived_ns = self._clock_ns()
        waiting = self._admit(inputs, rows, shape, priority, deadline_s, queue_timeout_s, arrived_ns)
        try:
            outputs = await waiting.work.future
        except asyncio.CancelledError:
            self._queue.withdraw(waiting)
            future = waiting.work.future
            if future.cancelled() or future.exception() is None:  # else its failure, counted already, crossed the cancellation
                self._failed(Failure.CANCELED, arrived_ns)
            if self._idle and not self._busy():
                self._tell_idle()
            raise
        self._statistics.success.add(self._clock_ns() - arrived_ns)
        return outputs

    async def drained(self) -> None:
        """Refuse what comes from now on; return when what was admitted has ended."""
        self._leaving = True
        if self._busy():
            idle: asyncio.Future[None] = self._loop.create_future()
            self._idle.append(idle)
            await idle

    def close(self) -> None:
        """Fail what is left and let the lane end."""
        self._leaving = True
        for waiting in list(self._queue):
            self._queue.withdraw(waiting)
            self._fail(waiting, ModelLeaving("the model was unloaded before this request ran; retry"), Failure.OTHER)
        for waiting in self._running:
            self._fail(waiting, Unavailable("the model was unloaded while this request ran; retry"), Failure.OTHER)
        if self._timer is not None:
            self._timer.cancel()
        self._lane.close()
        self._tell_idle()

    def _admit(
        self,
        inputs: Mapping[str, Array],
        rows: int,
        shape: object,
        priority: int,
        deadline_s: float | None,
        queue_timeout_s: float | None,
        arrived_ns: int,
    ) -> Waiting[Job]:
        now_s = arrived_ns * 1e-9
        if self._leaving:
            self._failed(Failure.REJECTED, arrived_ns)
            raise ModelLeaving("this copy of the model is being unloaded; retry")
        if deadline_s is not None and deadline_s <= now_s:
            self._failed(Failure.REJECTED, arrived_ns)
            raise DeadlineExceeded("no time was left when the request reached the model's queue")
        expires_s = deadline_s
        if queue_timeout_s is not None and (expires_s is None or now_s + queue_timeout_s < expires_s):
            expires_s = now_s + queue_timeout_s
        job = Job(inputs, self._loop.create_future(), arrived_ns, deadline_s)
        waiting = Waiting(job, rows, shape, now_s, priority or DEFAULT_PRIORITY, expires_s)
        try:
            self._queue.offer(waiting)
        except QueueFull:
            self._failed(Failure.REJECTED, arrived_ns)
            raise
        if not self._running:
            self._soon()
        if expires_s is not None:
            self._watch(expires_s)
        return waiting

    def _soon(self) -> None:
        if not self._start_pending:
            self._start_pending = True
            self._loop.call_soon(self._start_soon)

    def _start_soon(self) -> None:
        self._start_pending = False
        self._start()

    def _wake(self) -> None:
        self._wake_at_s = None
        self._start()

    def _start(self) -> None:
        """Give the idle engine its next execution, or have it wake us when one is due."""
        if self._running or not self._queue.requests:
            return
        now_s = self._clock_ns() * 1e-9
        batch = self._queue.take(now_s)
        if batch:
            self._wake_at_s = None
            self._running = batch
            self._lane.submit(partial(self._execute, batch), self._finished)
        elif (due_s := self._queue.due_s()) is not None and due_s != self._wake_at_s:
            self._wake_at_s = due_s
            self._lane.wake_after(max(0.0, due_s - now_s), self._wake)

    def _finished(self, executed: Executed | None, error: BaseException | None) -> None:
        """Back from the lane: the next execution first, then the answers, so that the engine does not wait for them."""
        batch, self._running = self._running, ()
        self._start()
        if executed is None:
            _log.error("execution_failed", exc_info=error)
            executed = Executed([EngineFailed("the engine failed; the worker's log has the reason")] * len(batch))
        wall_ms = int(time.time() * 1000)
        for rows, requests, timing in executed.executions:
            self._statistics.executed(rows, requests, timing, wall_ms=wall_ms)
        queued = self._statistics.queue
        for waiting, answer in zip(batch, executed.answers, strict=True):
            job = waiting.work
            queued.add(max(0, job.started_ns - job.arrived_ns))
            if isinstance(answer, Exception):
                self._fail(waiting, answer, Failure.BACKEND)
            elif not job.future.done():
                job.future.set_result(answer)
        if self._idle and not self._busy():
            self._tell_idle()

    def _execute(self, batch: Sequence[Waiting[Job]]) -> Executed:
        """On the engine's thread. One bad request does not spoil its neighbours: after a failure each runs alone."""
        executed = Executed()
        self._execute_as_one(batch, executed)
        if len(batch) > 1 and isinstance(executed.answers[0], Exception):
            executed.answers.clear()
            for waiting in batch:
                self._execute_as_one((waiting,), executed)
        return executed

    def _execute_as_one(self, batch: Sequence[Waiting[Job]], executed: Executed) -> None:
        begun_ns = self._clock_ns()
        for waiting in batch:
            waiting.work.started_ns = begun_ns
        rows = sum(waiting.rows for waiting in batch)
        try:
            inputs = _gathered(batch)
            gathered_ns = self._clock_ns()
            outputs = self._engine.run(inputs)
            ran_ns = self._clock_ns()
            executed.answers.extend(_divided(outputs, batch, rows) if self._batched else [outputs])
        except PenstockError as error:
            executed.answers.extend([error] * len(batch))
            return
        timing = Timing(gathered_ns - begun_ns, ran_ns - gathered_ns, self._clock_ns() - ran_ns)
        executed.executions.append((rows, len(batch), timing))

    def _watch(self, expires_s: float) -> None:
        """One timer for all: it fires at the earliest expiry seen, and is set again for the next."""
        if self._timer is None or expires_s < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(expires_s, self._expire)

    def _expire(self) -> None:
        """Timer-driven, so a request is answered in time also while the engine is busy."""
        self._timer = None
        now_s = self._clock_ns() * 1e-9
        for waiting in self._queue.expire(now_s):
            self._fail(waiting, _expiry(waiting, now_s), Failure.REJECTED)
        for waiting in self._running:
            deadline_s = waiting.work.deadline_s
            if deadline_s is not None and deadline_s <= now_s:
                self._fail(waiting, DeadlineExceeded("the deadline passed while the engine ran"), Failure.REJECTED)
        expiries_s = [waiting.expires_s for waiting in self._queue if waiting.expires_s is not None]
        expiries_s += [
            waiting.work.deadline_s
            for waiting in self._running
            if waiting.work.deadline_s is not None and not waiting.work.future.done()
        ]
        if expiries_s:
            self._watch(max(min(expiries_s), now_s + 0.001))
        if self._idle and not self._busy():
            self._tell_idle()

    def _fail(self, waiting: Waiting[Job], error: Exception, reason: Failure) -> None:
        if not waiting.work.future.done():
            waiting.work.future.set_exception(error)
            self._failed(reason, waiting.work.arrived_ns)

    def _failed(self, reason: Failure, arrived_ns: int) -> None:
        self._statistics.failed(reason, self._clock_ns() - arrived_ns)

    def _busy(self) -> bool:
        return bool(self._running) or self._queue.requests > 0

    def _tell_idle(self) -> None:
        for idle in self._idle:
            if not idle.done():
                idle.set_result(None)
        self._idle.clear()


def _gathered(batch: Sequence[Waiting[Job]]) -> Mapping[str, Array]:
    """The requests' inputs under each other; a request alone is not copied."""
    first = batch[0].work.inputs
    if len(batch) == 1:
        return first
    return {name: np.concatenate([waiting.work.inputs[name] for waiting in batch]) for name in first}


def _divided(outputs: Sequence[Array], batch: Sequence[Waiting[Job]], rows: int) -> list[Sequence[Array]]:
    """Views of each request's own rows."""
    for output in outputs:
        if output.ndim == 0 or output.shape[0] != rows:
            raise EngineFailed(f"the model gave an output of shape {list(output.shape)} for a batch of {rows} rows")
    if len(batch) == 1:
        return [outputs]
    answers: list[Sequence[Array]] = []
    start = 0
    for waiting in batch:
        end = start + waiting.rows
        answers.append([output[start:end] for output in outputs])
        start = end
    return answers


def _expiry(waiting: Waiting[Job], now_s: float) -> PenstockError:
    if waiting.work.deadline_s is not None and waiting.work.deadline_s <= now_s:
        return DeadlineExceeded("the deadline passed while the request waited for the engine")
    return QueueTimeout(f"Request timeout expired: it waited {(now_s - waiting.arrived_s) * 1000:.0f} ms for the engine")
