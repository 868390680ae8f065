"""The thread that steps a text model's batch: whoever has a place and is not parked, all at once.

Owns the running generations. Hears of tickets through its inbox between two steps and answers with what happened; what it posts
is delivered on the loop in order. Never decides who runs: `generations.py` does.
"""

from __future__ import annotations

import asyncio
import enum
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from runtime.errors import PenstockError
from worker.engine import EngineFailed, Generation, Piece, TextEngine

_log = structlog.get_logger("penstock.generation")

UNREAD_PIECES = 64
"""Where a generation parks until its reader catches up."""

_LOOP_STALLS_S = 1.0
"""What the loop was told before is waited for no longer than this: it may be closing."""


class Step(enum.Enum):
    """What the thread tells of a ticket besides pieces and errors."""

    PARKED = "parked"
    """It is not stepped until it comes through the inbox again."""
    RELEASED = "released"
    """It is over for the thread: its place is free."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One generation. Each field is written on one side only."""

    generation: Generation
    arrived_ns: int
    # The loop writes these.
    read: int = 0
    left: bool = False
    error: PenstockError | None = None
    ended: bool = False
    parked: bool = False
    first_ns: int = 0
    last_ns: int = 0
    responses: int = 0
    pieces: deque[Piece] = field(default_factory=deque)
    wake: asyncio.Future[None] | None = None
    timer: asyncio.TimerHandle | None = None
    # The thread writes these.
    produced: int = 0
    began_ns: int = 0
    infer_ns: int = 0


Event = tuple[Ticket, Piece | PenstockError | Step]


@dataclass(frozen=True, slots=True)
class Execution:
    """One step of the batch."""

    rows: int
    """Generations that went on."""
    infer_ns: int


@dataclass(frozen=True, slots=True)
class Told:
    """What happened since the thread told something last."""

    events: list[Event] = field(default_factory=list)
    executions: list[Execution] = field(default_factory=list)


class Stepper:
    """The thread's body. `inbox` gives tickets to begin or to take up again; None ends it."""

    def __init__(self, engine: TextEngine, inbox: queue.SimpleQueue[Ticket | None], post: Callable[[Told], None]) -> None:
        self._engine = engine
        self._inbox = inbox
        self._post = post
        self._active: list[Ticket] = []
        self._told = Told()
        self._heard = threading.Event()
        self._heard.set()

    def work(self) -> None:
        """Until the inbox says so."""
        while self._hear():
            self._step()
            self._flush()
        for ticket in self._active:
            self._release(ticket)
        self._flush()
        self._engine.close()

    def heard(self) -> None:
        """Called on the loop once it has delivered what was posted: the next step computes meanwhile, no further one."""
        self._heard.set()

    def _hear(self) -> bool:
        """Take what the inbox holds; wait for it where nothing is active. False: the end."""
        while True:
            try:
                ticket = self._inbox.get(block=not self._active)
            except queue.Empty:
                return True
            if ticket is None:
                return False
            if ticket.left:
                self._release(ticket)
                self._flush()
                continue
            if not ticket.began_ns:
                ticket.began_ns = time.monotonic_ns()
            self._active.append(ticket)

    def _step(self) -> None:
        stepped = []
        for ticket in self._active:
            if ticket.left:
                self._release(ticket)
            else:
                stepped.append(ticket)
        self._active = [ticket for ticket, answer in self._answers(stepped) if self._goes_on(ticket, answer)]

    def _answers(self, stepped: list[Ticket]) -> list[tuple[Ticket, Piece | PenstockError | None]]:
        if not stepped:
            return []
        begun_ns = time.monotonic_ns()
        try:
            answers = self._engine.step([ticket.generation for ticket in stepped])
        except Exception as error:
            return [(ticket, known_failure(error)) for ticket in stepped]
        infer_ns = time.monotonic_ns() - begun_ns
        for ticket in stepped:
            ticket.infer_ns += infer_ns
        if rows := sum(not isinstance(answer, PenstockError) for answer in answers):
            self._told.executions.append(Execution(rows, infer_ns))
        return list(zip(stepped, answers, strict=True))

    def _goes_on(self, ticket: Ticket, answer: Piece | PenstockError | None) -> bool:
        """Tell what there is to tell; whether the ticket takes part in the next step."""
        if answer is None:
            return True
        self._tell(ticket, answer)
        if isinstance(answer, PenstockError) or answer.finish is not None:
            self._release(ticket)
            return False
        ticket.produced += 1
        if ticket.produced - ticket.read < UNREAD_PIECES:
            return True
        self._tell(ticket, Step.PARKED)
        return False

    def _release(self, ticket: Ticket) -> None:
        ticket.generation.close()
        self._tell(ticket, Step.RELEASED)

    def _tell(self, ticket: Ticket, event: Piece | PenstockError | Step) -> None:
        self._told.events.append((ticket, event))

    def _flush(self) -> None:
        # Executions alone wait: they are for statistics, and the next piece is not far.
        if self._told.events:
            # A small model's thread would else keep the GIL from the loop, which waits 5 ms before it asks for it.
            self._heard.wait(_LOOP_STALLS_S)
            self._heard.clear()
            told, self._told = self._told, Told()
            self._post(told)


def known_failure(error: Exception) -> PenstockError:
    """What a request is told of it; what the engine did not mean to raise goes to the log."""
    if isinstance(error, PenstockError):
        return error
    _log.error("step_failed", exc_info=error)
    return EngineFailed("the engine failed on this generation; the worker's log has the reason")
