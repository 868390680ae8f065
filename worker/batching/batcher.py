"""Requests in, answers out: runs one model's queue over its engine's slots.

Owns the waiting requests' futures, the running executions and the expiry timer. An idle slot starts at the end of the loop
turn in which a request came, so that what arrived together travels together; while all are busy the queue gathers.
`queue.py` and `sequences.py` decide what goes together, `jobs.py` is what runs on the engine's threads. Every admitted
request ends exactly once: answered, failed, expired or cancelled.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import structlog

from runtime.errors import Code, DeadlineExceeded, PenstockError, Unavailable
from worker.batching.departures import Departures
from worker.batching.jobs import Answer, Executed, Executor, Inputs, Job, JobQueue
from worker.batching.queue import QueueFull
from worker.batching.sequences import SequenceBroken
from worker.engine import Array, EngineFailed
from worker.kserve.parameters import Parameters
from worker.lane import Lane
from worker.spans import ExecutionTimes, trace_execution
from worker.statistics import CopyStatistics, Failure, Timing
from worker.types import CallContext

_log = structlog.get_logger("penstock.batcher")
_NO_PARAMETERS = Parameters()
_SOONEST_S = 0.001
"""How soon the expiry timer is set again at the earliest: a loop's clock may be a little behind ours."""


class QueueTimeout(PenstockError, code=Code.DEADLINE_EXCEEDED, reason="QUEUE_TIMEOUT"):
    """The request waited longer than its own `timeout` parameter, or the model's queue, allows."""


class ModelLeaving(PenstockError, code=Code.UNAVAILABLE, reason="MODEL_LEAVING"):
    """This copy is being unloaded; another one can answer."""


class Batcher:
    """One model's requests. Used on the loop only; `lanes` are the threads of the engine's slots, and their maker's."""

    def __init__(
        self,
        queue: JobQueue,
        executor: Executor,
        lanes: Sequence[Lane],
        statistics: CopyStatistics,
        *,
        in_order: bool = False,
        model: str = "",
        version: str = "",
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._queue = queue
        self._executor = executor
        self._lanes = lanes
        self._statistics = statistics
        self._model, self._version = model, version
        self._clock_ns = clock_ns
        self._loop = asyncio.get_running_loop()
        self._running: list[Sequence[Job]] = [()] * len(lanes)
        self._done = [partial(self._finished, slot) for slot in range(len(lanes))]
        self._free = list(range(len(lanes)))
        # One slot answers in order by itself.
        self._departures = Departures() if in_order and len(lanes) > 1 else None
        self._start_pending = False
        self._wake_at_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = math.inf
        self._leaving = False
        self._idle: list[asyncio.Future[None]] = []

    @property
    def queued_rows(self) -> int:
        return self._queue.rows

    @property
    def pending_requests(self) -> int:
        """Requests that wait for the engine."""
        return self._queue.requests

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return len(self._free) < len(self._lanes) or self._queue.requests > 0

    async def infer(
        self, inputs: Inputs, rows: int, shape: object, call: CallContext, parameters: Parameters = _NO_PARAMETERS
    ) -> Sequence[Array]:
        """The outputs of this request alone. Cancelling gives its place back.

        `shape` is equal for requests that may share an execution. Raises QueueFull, QueueTimeout, DeadlineExceeded,
        ModelLeaving, EngineFailed; where the model works on sequences also InvalidArgument, SequenceBroken.
        """
        arrived_ns = self._clock_ns()
        job = Job(
            inputs,
            rows,
            shape,
            arrived_ns * 1e-9,
            parameters.priority or call.priority,
            None,
            call.deadline_s,
            parameters.sequence,
            call.tenant,
            future=self._loop.create_future(),
            call=call,
            arrived_ns=arrived_ns,
        )
        self._admit(job, parameters.timeout_s)
        try:
            outputs = await job.future
        except asyncio.CancelledError:
            self._cancelled(job)
            raise
        self._statistics.success.add(self._clock_ns() - arrived_ns)
        if call.traceparent:
            self._trace(job)
        return outputs

    async def drained(self) -> None:
        """Refuse what comes from now on; return when what was admitted has ended."""
        self._leaving = True
        self._queue.leave()
        self._soon()
        if self.busy:
            idle: asyncio.Future[None] = self._loop.create_future()
            self._idle.append(idle)
            await idle

    def close(self) -> None:
        """Fail what is left."""
        self._leaving = True
        for job in list(self._queue):
            self._queue.abandon(job)
            self._fail(job, ModelLeaving("the model was unloaded before this request ran; retry"), Failure.OTHER)
        for job in self._running_jobs():
            self._fail(job, Unavailable("the model was unloaded while this request ran; retry"), Failure.OTHER)
        if self._timer is not None:
            self._timer.cancel()
        self._tell_idle()

    def _admit(self, job: Job, timeout_s: float | None) -> None:
        queue = self._queue
        try:
            if self._leaving:
                raise ModelLeaving("this copy of the model is being unloaded; retry")
            if job.deadline_s is not None and job.deadline_s <= job.arrived_s:
                raise DeadlineExceeded("no time was left when the request reached the model's queue")
            queue.offer(job, timeout_s)
        except (QueueFull, ModelLeaving, DeadlineExceeded):
            self._failed(Failure.REJECTED, job)
            raise
        except PenstockError:
            self._failed(Failure.OTHER, job)
            raise
        if self._free and not self._start_pending:
            self._soon()
        if queue.earliest_s < self._timer_at_s:
            self._watch(queue.earliest_s)

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
        """Give idle slots their next executions, or have a lane wake us when one is due."""
        queue, free = self._queue, self._free
        if not queue.requests or not free:
            return
        now_s = self._clock_ns() * 1e-9
        if queue.earliest_s <= now_s:  # the timer may be a little late: what expired is not run for that
            self._abandon_overdue(now_s)
        for index in range(len(free) - 1, -1, -1):
            slot = free[index]
            if batch := queue.take(now_s, slot):
                del free[index]
                self._running[slot] = batch
                self._wake_at_s = None
                if self._departures is not None:
                    self._departures.join(batch)
                self._lanes[slot].submit(partial(self._executor.execute, batch, slot), self._done[slot])
            if not queue.requests:
                return
        if free and (due_s := queue.due_s(free)) is not None and due_s != self._wake_at_s:
            self._wake_at_s = due_s
            self._lanes[free[0]].wake_after(max(0.0, due_s - now_s), self._wake)

    def _finished(self, slot: int, executed: Executed | None, error: BaseException | None) -> None:
        """Back from the lane: the next execution first, then the answers, so that the engine does not wait for them."""
        batch = self._running[slot]
        self._running[slot] = ()
        self._free.append(slot)
        queue = self._queue
        if batch[0].mark is not None:  # else it is of no sequence, and nothing depends on it
            queue.finished(batch, self._clock_ns() * 1e-9)
        self._start()
        if executed is None:
            _log.error("execution_failed", exc_info=error)
            executed = Executed([EngineFailed("the engine failed; the worker's log has the reason")] * len(batch), [])
        statistics = self._statistics
        wall_ms = int(time.time() * 1000)
        for run in executed.runs:
            timing = Timing(run.gathered_ns - run.begun_ns, run.ran_ns - run.gathered_ns, run.ended_ns - run.ran_ns)
            statistics.executed(run.rows, run.requests, timing, wall_ms=wall_ms)
        queued_ns = 0
        for job in batch:
            if job.run is not None:
                queued_ns += job.run.begun_ns - job.arrived_ns
        statistics.queue.add(queued_ns, len(batch))
        answers: Iterable[tuple[Job, Answer]] = zip(batch, executed.answers, strict=True)
        self._send(answers if self._departures is None else self._departures.leave(answers))
        if queue.earliest_s < self._timer_at_s:
            self._watch(queue.earliest_s)
        if self._idle:
            self._tell_if_idle()

    def _send(self, answers: Iterable[tuple[Job, Answer]]) -> None:
        for job, answer in answers:
            if isinstance(answer, Exception):
                self._fail(job, answer, Failure.BACKEND)
            elif not job.future.done():
                job.future.set_result(answer)

    def _cancelled(self, job: Job) -> None:
        self._abandon(job)
        future = job.future
        if future.cancelled() or future.exception() is None:  # else its failure, counted already, crossed the cancellation
            self._failed(Failure.CANCELED, job)
        self._left()

    def _watch(self, at_s: float) -> None:
        """One timer for all: it fires at the earliest expiry, and is set again for the next."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at_s = at_s
        self._timer = self._loop.call_at(at_s, self._expire)

    def _expire(self) -> None:
        """Timer-driven, so a request is answered in time also while the engine is busy."""
        self._timer, self._timer_at_s = None, math.inf
        now_s = self._clock_ns() * 1e-9
        self._abandon_overdue(now_s)
        earliest_s = self._queue.earliest_s
        for job in self._running_jobs():
            if job.deadline_s is None or job.future.done():
                continue
            if job.deadline_s <= now_s:
                self._fail(job, DeadlineExceeded("the deadline passed while the engine ran"), Failure.REJECTED)
            else:
                earliest_s = min(earliest_s, job.deadline_s)
        if earliest_s < math.inf:
            self._watch(max(earliest_s, now_s + _SOONEST_S))
        self._left()

    def _abandon_overdue(self, now_s: float) -> None:
        for job in self._queue.overdue(now_s):
            if job.queued:
                self._abandon(job)
                self._fail(job, _expiry(job, now_s), Failure.REJECTED)

    def _abandon(self, job: Job) -> None:
        for lost in self._queue.abandon(job):
            self._fail(
                lost,
                SequenceBroken("an earlier request of the sequence was not run; begin the sequence anew with the START flag"),
                Failure.OTHER,
            )

    def _left(self) -> None:
        """Requests have ended elsewhere than in the engine: others may take their turn."""
        if self._departures is not None:
            self._send(self._departures.leave())
        if self._free and self._queue.requests:
            self._soon()
        if self._idle:
            self._tell_if_idle()

    def _fail(self, job: Job, error: Exception, reason: Failure) -> None:
        if not job.future.done():
            job.future.set_exception(error)
            self._failed(reason, job)

    def _failed(self, reason: Failure, job: Job) -> None:
        self._statistics.failed(reason, self._clock_ns() - job.arrived_ns)

    def _trace(self, job: Job) -> None:
        run = job.run
        if run is not None:
            times = ExecutionTimes(job.arrived_ns, run.begun_ns, run.gathered_ns, run.ran_ns, run.ended_ns)
            trace_execution(job.call, self._model, self._version, times, rows=job.rows, batch_rows=run.rows)

    def _running_jobs(self) -> Iterator[Job]:
        return (job for batch in self._running for job in batch)

    def _tell_if_idle(self) -> None:
        if not self.busy:
            self._tell_idle()

    def _tell_idle(self) -> None:
        for idle in self._idle:
            if not idle.done():
                idle.set_result(None)
        self._idle.clear()


def _expiry(job: Job, now_s: float) -> PenstockError:
    if job.deadline_s is not None and job.deadline_s <= now_s:
        return DeadlineExceeded("the deadline passed while the request waited for the engine")
    return QueueTimeout(f"Request timeout expired: it waited {(now_s - job.arrived_s) * 1000:.0f} ms for the engine")
