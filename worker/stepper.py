"""The thread that steps a text model's generations by turns, one token each a round.

Owns the running generations. Hears of tickets through its inbox and answers with events; what it posts is delivered on the
loop in order. Never decides who runs: `generation.py` does.
"""

from __future__ import annotations

import asyncio
import enum
import queue
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from runtime.errors import PenstockError
from worker.engine import EngineFailed, Generation, Piece, TextEngine, TextRequest

_log = structlog.get_logger("penstock.generation")

UNREAD_PIECES = 64
"""Where a generation parks until its reader catches up."""

_GATHER_NS = 500_000
"""Pieces of one round leave together, but none waits longer than this for the rest of the round."""


class Step(enum.Enum):
    """What the thread tells of a ticket besides pieces and errors."""

    PARKED = "parked"
    """It is not stepped until it comes through the inbox again."""
    RELEASED = "released"
    """It is over for the thread: its place is free."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One generation. Each field is written on one side only."""

    request: TextRequest
    arrived_ns: int
    # The loop writes these.
    read: int = 0
    left: bool = False
    error: PenstockError | None = None
    ended: bool = False
    parked: bool = False
    first_ns: int = 0
    pieces: deque[Piece] = field(default_factory=deque)
    wake: asyncio.Future[None] | None = None
    timer: asyncio.TimerHandle | None = None
    # The thread writes these.
    generation: Generation | None = None
    produced: int = 0
    began_ns: int = 0
    infer_ns: int = 0


Event = tuple[Ticket, Piece | PenstockError | Step]


class Stepper:
    """The thread's body. `inbox` gives tickets to begin or to take up again; None ends it."""

    def __init__(
        self, engine: TextEngine, inbox: queue.SimpleQueue[Ticket | None], post: Callable[[list[Event]], None]
    ) -> None:
        self._engine = engine
        self._inbox = inbox
        self._post = post
        self._active: list[Ticket] = []
        self._events: list[Event] = []
        self._gathering_since_ns = 0

    def work(self) -> None:
        """Until the inbox says so."""
        while self._hear():
            for ticket in tuple(self._active):
                self._step(ticket)
                self._flush(older_than_ns=_GATHER_NS)
            self._flush()
        for ticket in self._active:
            self._release(ticket)
        self._flush()
        self._engine.close()

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
            elif ticket.generation is not None:
                self._active.append(ticket)
            else:
                self._begin(ticket)
            if not self._active:
                self._flush()

    def _begin(self, ticket: Ticket) -> None:
        ticket.began_ns = time.monotonic_ns()
        try:
            ticket.generation = self._engine.begin(ticket.request)
        except Exception as error:
            self._tell(ticket, _known(error))
            self._release(ticket)
            return
        ticket.infer_ns = time.monotonic_ns() - ticket.began_ns
        self._active.append(ticket)

    def _step(self, ticket: Ticket) -> None:
        if ticket.left or ticket.generation is None:
            self._active.remove(ticket)
            self._release(ticket)
            return
        begun_ns = time.monotonic_ns()
        try:
            piece = ticket.generation.step()
        except Exception as error:
            self._tell(ticket, _known(error))
            self._active.remove(ticket)
            self._release(ticket)
            return
        ticket.infer_ns += time.monotonic_ns() - begun_ns
        if piece is None:
            return
        ticket.produced += 1
        self._tell(ticket, piece)
        if piece.finish is not None:
            self._active.remove(ticket)
            self._release(ticket)
        elif ticket.produced - ticket.read >= UNREAD_PIECES:
            self._active.remove(ticket)
            self._tell(ticket, Step.PARKED)

    def _release(self, ticket: Ticket) -> None:
        if ticket.generation is not None:
            ticket.generation.close()
            ticket.generation = None
        self._tell(ticket, Step.RELEASED)

    def _tell(self, ticket: Ticket, event: Piece | PenstockError | Step) -> None:
        if not self._events:
            self._gathering_since_ns = time.monotonic_ns()
        self._events.append((ticket, event))

    def _flush(self, older_than_ns: int = 0) -> None:
        if self._events and time.monotonic_ns() - self._gathering_since_ns >= older_than_ns:
            events, self._events = self._events, []
            self._post(events)


def _known(error: Exception) -> PenstockError:
    if isinstance(error, PenstockError):
        return error
    _log.error("generation_failed", exc_info=error)
    return EngineFailed("the engine failed on this generation; the worker's log has the reason")
