"""Generations of one model: who runs, who waits, who reads.

Owns the waiting queue, the places in the batch and each generation's pieces on their way to a reader. A request is checked and
turned into tokens before it takes a place, on a thread for that, so that a refusal waits for no other generation. One whose
reader is slow is not stepped until it catches up; one whose reader left is dropped before the next step. `stepper.py` is the
thread that steps.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace
from functools import partial

from runtime.errors import DeadlineExceeded, PenstockError
from worker.batching.batcher import ModelLeaving, QueueTimeout
from worker.batching.queue import BatchPolicy, BatchQueue, QueueFull, Waiting
from worker.engine import EngineFailed, Piece, TextEngine, TextRequest
from worker.generation.records import GenerationRecords
from worker.generation.stepper import Step, Stepper, Ticket, Told, known_failure
from worker.lane import ThreadLane
from worker.statistics import CopyStatistics, Failure
from worker.types import CallContext

_NO_CALL = CallContext()


class Generations:
    """One text model's work. Used on the loop only."""

    def __init__(
        self,
        engine: TextEngine,
        statistics: CopyStatistics,
        policy: BatchPolicy,
        *,
        name: str,
        model: str = "",
        version: str = "",
    ) -> None:
        """`policy` is how requests wait; how many run is the engine's to say."""
        self._engine = engine
        self._records = GenerationRecords(statistics, model=model, version=version)
        self._loop = asyncio.get_running_loop()
        self._most_waiting = policy.max_requests
        # Each generation takes its place alone, as soon as there is one.
        self._waiting: BatchQueue[Waiting[Ticket]] = BatchQueue(
            replace(policy, max_rows=0, delay_s=0.0, preferred_rows=frozenset())
        )
        self._expiry: asyncio.TimerHandle | None = None
        self._expiry_at_s = math.inf
        self._preparing = 0
        self._prompts = ThreadLane(f"{name}-prompts")
        self._running: set[Ticket] = set()
        self._leaving = False
        self._closed = False
        self._idle: list[asyncio.Future[None]] = []
        # Holds at most the running generations, a resumption for each, and the end.
        self._inbox: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._stepper = Stepper(engine, self._inbox, self._post)
        threading.Thread(target=self._stepper.work, name=name, daemon=True).start()

    @property
    def pending_requests(self) -> int:
        return self._waiting.requests

    @property
    def queued_rows(self) -> int:
        return self._waiting.rows

    @property
    def busy(self) -> bool:
        """Whether a generation is prepared, waits or runs."""
        return bool(self._preparing or self._running or self._waiting.requests)

    async def generate(
        self, request: TextRequest, call: CallContext = _NO_CALL, *, priority: int = 0, timeout_s: float | None = None
    ) -> AsyncGenerator[Piece, None]:
        """Pieces as they come; the last one has a finish. Closing or cancelling ends the generation before its next step.

        Raises QueueFull, QueueTimeout, DeadlineExceeded, ModelLeaving, InvalidArgument for what the model cannot take.
        """
        ticket, waiting = await self._admitted(request, call, priority or call.priority, timeout_s)
        try:
            while True:
                if ticket.pieces:
                    piece = ticket.pieces.popleft()
                    self._read_one(ticket)
                    yield piece
                    if piece.finish is not None:
                        self._records.read(ticket, call, piece)
                        return
                elif ticket.error is not None:
                    raise ticket.error
                else:
                    ticket.wake = self._loop.create_future()
                    await ticket.wake
        finally:
            if ticket.timer is not None:
                ticket.timer.cancel()
            if not ticket.ended and ticket.error is None:
                self._records.failed(Failure.CANCELED, ticket)
            self._leave(ticket, waiting)

    async def drained(self) -> None:
        """Refuse what comes from now on; return when what was admitted has ended."""
        self._leaving = True
        if self.busy:
            idle: asyncio.Future[None] = self._loop.create_future()
            self._idle.append(idle)
            await idle

    def close(self) -> None:
        """End what is left; the thread closes the engine and ends."""
        if self._closed:
            return
        self._leaving = self._closed = True
        for waiting in list(self._waiting):
            self._waiting.withdraw(waiting)
            self._fail(waiting.work, ModelLeaving("the model was unloaded before this generation ran; retry"), Failure.OTHER)
        for ticket in self._running:
            ticket.left = True
            self._fail(ticket, ModelLeaving("the model was unloaded while this generation ran; retry"), Failure.OTHER)
        if self._expiry is not None:
            self._expiry.cancel()
        self._prompts.close()
        self._inbox.put(None)

    async def _admitted(
        self, request: TextRequest, call: CallContext, priority: int, timeout_s: float | None
    ) -> tuple[Ticket, Waiting[Ticket]]:
        """Checked, tokenized and in the queue; meanwhile it counts as one of those who wait. Raises what `generate` does."""
        arrived_ns = time.monotonic_ns()
        failure = Failure.REJECTED
        try:
            self._check_room(call.deadline_s)
            failure = Failure.OTHER
            self._preparing += 1
            try:
                ticket = Ticket(await self._prompts.call(partial(self._engine.begin, request)), arrived_ns)
                failure = Failure.REJECTED
                return ticket, self._offer(ticket, priority, call.deadline_s, timeout_s)
            finally:
                self._preparing -= 1
                self._check_idle()
        except BaseException as error:
            known = known_failure(error) if isinstance(error, Exception) else None
            failure = Failure.CANCELED if known is None else Failure.BACKEND if isinstance(known, EngineFailed) else failure
            self._records.refused(failure, arrived_ns)
            if known is None or known is error:
                raise
            raise known from error

    def _check_room(self, deadline_s: float | None) -> None:
        if self._leaving:
            raise ModelLeaving("this copy of the model is being unloaded; retry")
        if deadline_s is not None and deadline_s <= self._loop.time():
            raise DeadlineExceeded("no time was left when the request reached the model's queue")
        places = self._most_waiting + self._engine.slots - len(self._running)
        if (count := self._preparing + self._waiting.requests) >= places:
            raise QueueFull(f"Exceeds maximum queue size: {count} of {places} requests wait; back off", retry_after_s=0.1)

    def _offer(self, ticket: Ticket, priority: int, deadline_s: float | None, timeout_s: float | None) -> Waiting[Ticket]:
        now_s = self._loop.time()
        if self._closed:
            raise ModelLeaving("the model was unloaded before this generation ran; retry")
        if deadline_s is not None and deadline_s <= now_s:
            raise DeadlineExceeded("the deadline passed while the prompt was read")
        waiting = Waiting(ticket, 1, None, now_s, priority)
        self._waiting.offer(waiting, timeout_s)
        if deadline_s is not None:
            ticket.timer = self._loop.call_at(deadline_s, self._expire, ticket, waiting)
        self._start()
        return waiting

    def _start(self) -> None:
        """Give free places to who waits, and see to it that nobody waits longer than the queue's policy allows."""
        now_s = self._loop.time()
        if self._waiting.earliest_s <= now_s:
            self._abandon_overdue(now_s)
        while len(self._running) < self._engine.slots and (taken := self._waiting.take(now_s)):
            ticket = taken[0].work
            self._running.add(ticket)
            self._inbox.put(ticket)
        if self._waiting.requests and self._waiting.earliest_s < self._expiry_at_s:
            self._expiry_at_s = self._waiting.earliest_s
            if self._expiry is not None:
                self._expiry.cancel()
            self._expiry = self._loop.call_at(self._expiry_at_s, self._abandon_late)

    def _abandon_late(self) -> None:
        self._expiry, self._expiry_at_s = None, math.inf
        self._abandon_overdue(self._loop.time())
        self._start()
        self._check_idle()

    def _abandon_overdue(self, now_s: float) -> None:
        for waiting in self._waiting.overdue(now_s):
            self._waiting.withdraw(waiting)
            waited_ms = (now_s - waiting.arrived_s) * 1000
            error = QueueTimeout(f"Request timeout expired: it waited {waited_ms:.0f} ms for a place in the batch")
            self._fail(waiting.work, error, Failure.REJECTED)

    def _leave(self, ticket: Ticket, waiting: Waiting[Ticket]) -> None:
        self._waiting.withdraw(waiting)
        ticket.left = True
        ticket.pieces.clear()
        if ticket.parked:
            self._resume(ticket)
        self._check_idle()

    def _expire(self, ticket: Ticket, waiting: Waiting[Ticket]) -> None:
        state = "waited for its turn" if self._waiting.withdraw(waiting) else "was generated"
        ticket.left = True
        self._fail(ticket, DeadlineExceeded(f"the deadline passed while the text {state}"), Failure.REJECTED)
        if ticket.parked:
            self._resume(ticket)
        self._check_idle()

    def _read_one(self, ticket: Ticket) -> None:
        ticket.read += 1
        if ticket.parked and not ticket.pieces:
            self._resume(ticket)

    def _resume(self, ticket: Ticket) -> None:
        ticket.parked = False
        self._inbox.put(ticket)

    def _post(self, told: Told) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._deliver, told)

    def _deliver(self, told: Told) -> None:
        """What the thread tells, on the loop."""
        self._records.executed(told.executions)
        for ticket, event in told.events:
            if isinstance(event, Piece):
                self._arrived(ticket, event)
            elif isinstance(event, PenstockError):
                self._fail(ticket, event, Failure.BACKEND if isinstance(event, EngineFailed) else Failure.OTHER)
            elif event is Step.RELEASED:
                self._running.discard(ticket)
                self._records.released(ticket)
            else:
                # The reader may have caught up, or left, before this was heard: then nobody else would resume it.
                ticket.parked = True
                if ticket.left or not ticket.pieces:
                    self._resume(ticket)
        self._stepper.heard()
        self._start()
        self._check_idle()

    def _arrived(self, ticket: Ticket, piece: Piece) -> None:
        if ticket.left or ticket.error is not None:
            return
        self._records.arrived(ticket, piece)
        ticket.ended = piece.finish is not None
        ticket.pieces.append(piece)
        _wake(ticket)

    def _fail(self, ticket: Ticket, error: PenstockError, reason: Failure) -> None:
        if ticket.error is None and not ticket.ended:
            ticket.error = error
            self._records.failed(reason, ticket)
            _wake(ticket)

    def _check_idle(self) -> None:
        if self._idle and not self.busy:
            for idle in self._idle:
                if not idle.done():
                    idle.set_result(None)
            self._idle.clear()


def _wake(ticket: Ticket) -> None:
    if ticket.wake is not None and not ticket.wake.done():
        ticket.wake.set_result(None)
