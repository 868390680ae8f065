"""Generations of one model: who runs, who waits, who reads.

Owns the waiting queue, the places at the engine and each generation's pieces on their way to a reader. A generation whose
reader is slow is not stepped until it catches up; one whose reader left is dropped before its next step. `stepper.py` is the
thread.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator

from runtime.errors import DeadlineExceeded, PenstockError
from worker.batcher import ModelLeaving
from worker.batching import DEFAULT_PRIORITY, BatchPolicy, BatchQueue, QueueFull, Waiting
from worker.engine import EngineFailed, Piece, TextEngine, TextRequest
from worker.statistics import CopyStatistics, Failure, Timing
from worker.stepper import Event, Step, Stepper, Ticket

DEFAULT_RUNNING = 8
"""Generations stepped by turns, where the manifest does not say (`max_generations`)."""


class Generations:
    """One text model's work. Used on the loop only."""

    def __init__(
        self,
        engine: TextEngine,
        statistics: CopyStatistics,
        *,
        name: str,
        max_running: int = DEFAULT_RUNNING,
        max_waiting: int,
    ) -> None:
        self._statistics = statistics
        self._max_running = max_running
        self._loop = asyncio.get_running_loop()
        self._waiting: BatchQueue[Ticket] = BatchQueue(BatchPolicy(max_rows=0, max_requests=max_waiting))
        self._running: set[Ticket] = set()
        self._leaving = False
        self._idle: list[asyncio.Future[None]] = []
        # Holds at most the running generations, a resumption for each, and the end.
        self._inbox: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        stepper = Stepper(engine, self._inbox, self._post)
        threading.Thread(target=stepper.work, name=name, daemon=True).start()

    @property
    def pending_requests(self) -> int:
        return self._waiting.requests

    @property
    def queued_rows(self) -> int:
        return self._waiting.rows

    async def generate(
        self, request: TextRequest, *, priority: int = 0, deadline_s: float | None = None
    ) -> AsyncGenerator[Piece, None]:
        """Pieces as they come; the last one has a finish. Closing or cancelling ends the generation before its next step.

        Raises QueueFull, DeadlineExceeded, ModelLeaving, InvalidArgument for what the model cannot take.
        """
        ticket, waiting = self._admit(request, priority, deadline_s)
        try:
            while True:
                if ticket.pieces:
                    piece = ticket.pieces.popleft()
                    self._read_one(ticket)
                    yield piece
                    if piece.finish is not None:
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
                self._failed(Failure.CANCELED, ticket)
            self._leave(ticket, waiting)

    async def drained(self) -> None:
        """Refuse what comes from now on; return when what was admitted has ended."""
        self._leaving = True
        if self._running or self._waiting.requests:
            idle: asyncio.Future[None] = self._loop.create_future()
            self._idle.append(idle)
            await idle

    def close(self) -> None:
        """End what is left; the thread closes the engine and ends."""
        self._leaving = True
        for waiting in list(self._waiting):
            self._waiting.withdraw(waiting)
            self._fail(waiting.work, ModelLeaving("the model was unloaded before this generation ran; retry"), Failure.OTHER)
        for ticket in self._running:
            ticket.left = True
            self._fail(ticket, ModelLeaving("the model was unloaded while this generation ran; retry"), Failure.OTHER)
        self._inbox.put(None)

    def _admit(self, request: TextRequest, priority: int, deadline_s: float | None) -> tuple[Ticket, Waiting[Ticket]]:
        now_s = self._loop.time()
        ticket = Ticket(request, time.monotonic_ns())
        if self._leaving:
            self._failed(Failure.REJECTED, ticket)
            raise ModelLeaving("this copy of the model is being unloaded; retry")
        if deadline_s is not None and deadline_s <= now_s:
            self._failed(Failure.REJECTED, ticket)
            raise DeadlineExceeded("no time was left when the request reached the model's queue")
        waiting = Waiting(ticket, 1, None, now_s, priority or DEFAULT_PRIORITY, deadline_s)
        try:
            self._waiting.offer(waiting)
        except QueueFull:
            self._failed(Failure.REJECTED, ticket)
            raise
        if deadline_s is not None:
            ticket.timer = self._loop.call_at(deadline_s, self._expire, ticket, waiting)
        self._start()
        return ticket, waiting

    def _start(self) -> None:
        now_s = self._loop.time()
        while len(self._running) < self._max_running and (taken := self._waiting.take(now_s)):
            ticket = taken[0].work
            self._running.add(ticket)
            self._inbox.put(ticket)

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

    def _post(self, events: list[Event]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver, events)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            return

    def _deliver(self, events: list[Event]) -> None:
        """What the thread tells, on the loop."""
        for ticket, event in events:
            if isinstance(event, Piece):
                self._arrived(ticket, event)
            elif isinstance(event, PenstockError):
                self._fail(ticket, event, Failure.BACKEND if isinstance(event, EngineFailed) else Failure.OTHER)
            elif event is Step.RELEASED:
                self._running.discard(ticket)
            else:
                # The reader may have caught up, or left, before this was heard: then nobody else would resume it.
                ticket.parked = True
                if ticket.left or not ticket.pieces:
                    self._resume(ticket)
        self._start()
        self._check_idle()

    def _arrived(self, ticket: Ticket, piece: Piece) -> None:
        if ticket.left or ticket.error is not None:
            return
        now_ns = time.monotonic_ns()
        if not ticket.first_ns:
            ticket.first_ns = now_ns
            self._statistics.first_response.observe((now_ns - ticket.arrived_ns) / 1e6)
        if piece.finish is not None:
            ticket.ended = True
            self._count(ticket, piece, now_ns)
        ticket.pieces.append(piece)
        _wake(ticket)

    def _count(self, ticket: Ticket, last: Piece, now_ns: int) -> None:
        statistics = self._statistics
        statistics.executed(1, 1, Timing(0, ticket.infer_ns, 0), wall_ms=int(time.time() * 1000))
        statistics.queue.add(max(0, ticket.began_ns - ticket.arrived_ns))
        statistics.success.add(now_ns - ticket.arrived_ns)
        statistics.prompt_tokens += last.prompt_tokens
        statistics.completion_tokens += last.completion_tokens

    def _fail(self, ticket: Ticket, error: PenstockError, reason: Failure) -> None:
        if ticket.error is None and not ticket.ended:
            ticket.error = error
            self._failed(reason, ticket)
            _wake(ticket)

    def _failed(self, reason: Failure, ticket: Ticket) -> None:
        self._statistics.failed(reason, time.monotonic_ns() - ticket.arrived_ns)

    def _check_idle(self) -> None:
        if self._idle and not self._running and not self._waiting.requests:
            for idle in self._idle:
                if not idle.done():
                    idle.set_result(None)
            self._idle.clear()


def _wake(ticket: Ticket) -> None:
    if ticket.wake is not None and not ticket.wake.done():
        ticket.wake.set_result(None)
