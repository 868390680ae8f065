"""Places kept for requests that are still to come: who waits for one, which are kept, and when each ends.

A hold waits here, at the worker, ahead of every new request: whenever a place comes back, those that wait are asked first,
oldest first, and a tenant that has its part of the worker is passed over until it has less. One that got its place has it until
its request comes, it is released, its time is over, or the worker drains. A hold with a secret's digest is a reservation:
requests come and go under it, one at a time, and the place stays until the hold ends.

Owns the holds. `worker.quota` counts their places like any request's; who may ask for one is the servicer's question.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NewType

from runtime.errors import AlreadyExists, Code, PenstockError
from worker.quota import Admission, QuotaGuard, WorkerFull

HoldId = NewType("HoldId", str)
"""128 random bits of whoever asked, in hex."""

MAX_WAITING = 256
"""Holds that may wait here at once."""

COMING_S = 30.0
"""How long a place is kept while the request's payload comes in parts."""

_RETRY_AFTER_S = 0.1


class HoldGone(PenstockError, code=Code.NOT_FOUND, reason="HOLD_GONE"):
    """No place is kept under that id: it never was, or its time is over."""


class HoldBusy(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="HOLD_BUSY"):
    """A request is in flight under this reservation; the next one may come when it has ended."""


@dataclass(frozen=True, slots=True)
class Hold:
    """What is asked for."""

    hold_id: HoldId
    model: str
    version: str
    tenant: str
    ttl_s: float
    """How long a place is kept, once there is one."""
    token_sha256: bytes = field(default=b"", repr=False)
    """Set: a reservation, for whoever shows the secret."""


@dataclass(slots=True, eq=False)
class _Waiting:
    hold: Hold
    room: Callable[[], float]
    granted: asyncio.Future[None]


@dataclass(slots=True, eq=False)
class _Kept:
    hold: Hold
    admission: Admission
    timer: asyncio.TimerHandle
    busy: bool = False
    """A reservation's request is in flight."""


class Holds:
    """Of one worker. Used on the loop only."""

    def __init__(self, guard: QuotaGuard, *, max_waiting: int = MAX_WAITING) -> None:
        self._guard, self._max_waiting = guard, max_waiting
        self._waiting: dict[HoldId, _Waiting] = {}
        self._kept: dict[HoldId, _Kept] = {}
        self._kept_at: Counter[tuple[str, str]] = Counter()
        self._closed: PenstockError | None = None
        self.granted = 0
        self.expired = 0
        """Holds whose time was over before they were used, and reservations that came to their end."""
        guard.freed = self._settle

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def kept(self) -> int:
        """Places that are kept: all of them count as in flight."""
        return len(self._kept)

    async def hold(self, asked: Hold, *, wait_s: float, room: Callable[[], float] = lambda: float("inf")) -> None:
        """Return when a place is kept. `room`: how many more the model's own queue takes.

        Cancelled, it withdraws. Raises WorkerFull where no place came within the time or too many wait, AlreadyExists, and
        what `close` was given.
        """
        if self._closed is not None:
            raise self._closed
        if asked.hold_id in self._waiting or asked.hold_id in self._kept:
            raise AlreadyExists("a hold with this id is here already; choose 128 new random bits for each")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(asked, room, loop.create_future())
        self._waiting[asked.hold_id] = waiting
        self._settle()
        if not waiting.granted.done() and (wait_s <= 0 or len(self._waiting) > self._max_waiting):
            del self._waiting[asked.hold_id]
            raise self._full(wait_s)
        timer = loop.call_later(wait_s, self._give_up, asked.hold_id, wait_s)
        try:
            await waiting.granted
        except asyncio.CancelledError:
            self.release(asked.hold_id)
            raise
        finally:
            timer.cancel()

    def enter(self, tenant: str, hold_id: str) -> Admission:
        """Let a request in on the place that is kept for it; where none is, as any other.

        It counts for its own tenant from now on. A reservation is none of a gateway's: those who hold its secret enter by
        `enter_reserved`. Raises WorkerFull, TenantQuotaReached.
        """
        kept = self._for_a_gateway(hold_id)
        if kept is None:
            return self._guard.enter(tenant)
        try:
            kept.admission.pass_to(tenant)
        except PenstockError:
            self._end(kept)
            raise
        self._forget(kept)
        return kept.admission

    def expect(self, hold_id: str) -> None:
        """Its request has begun to come, and may take a while: keep the place until it has."""
        kept = self._for_a_gateway(hold_id)
        if kept is not None:
            kept.timer.cancel()
            kept.timer = asyncio.get_running_loop().call_later(COMING_S, self._expire, kept.hold.hold_id)

    def forgo(self, hold_id: str) -> None:
        """Its request will not enter any more; a reservation stays."""
        kept = self._for_a_gateway(hold_id)
        if kept is not None:
            self._end(kept)

    def reserved(self, hold_id: str) -> Hold | None:
        """What is reserved under this id, its secret's digest among it; None where nothing is, or not any more."""
        kept = self._kept.get(HoldId(hold_id))
        return kept.hold if kept is not None and kept.hold.token_sha256 else None

    def enter_reserved(self, hold_id: str) -> Admission:
        """Let a request in under a reservation, whose place stays when it has ended. Raises HoldGone, HoldBusy.

        Whether the caller has the secret is the caller's to see to, before.
        """
        kept = self._kept.get(HoldId(hold_id))
        if kept is None or not kept.hold.token_sha256:
            raise HoldGone("no place is reserved here under this id: its time is over, or it was released; reserve anew")
        if kept.busy:
            raise HoldBusy(
                "a request is in flight under this reservation; send the next one when it has ended",
                retry_after_s=_RETRY_AFTER_S,
            )
        kept.busy = True
        return _Visit(kept.admission, partial(self._left, kept))

    def release(self, hold_id: HoldId) -> None:
        """End it, waiting or kept; one that is not there is left as it is. A request in flight under it goes on to its end."""
        waiting = self._waiting.pop(hold_id, None)
        if waiting is not None:
            _fail(waiting, HoldGone("the hold was released before it had a place"))
        elif (kept := self._kept.get(hold_id)) is not None:
            self._end(kept)

    def close(self, why: PenstockError) -> None:
        """Keep no places from now on, and give up those that are kept. Who waits, or asks later, gets `why`."""
        self._closed = why
        waiting, self._waiting = self._waiting, {}
        for each in waiting.values():
            _fail(each, why)
        for kept in list(self._kept.values()):
            self._end(kept)

    def _for_a_gateway(self, hold_id: str) -> _Kept | None:
        kept = self._kept.get(HoldId(hold_id))
        return None if kept is None or kept.hold.token_sha256 else kept

    def _settle(self) -> None:
        """Give what is free to those that wait."""
        for waiting in list(self._waiting.values()):
            if self._guard.in_flight >= self._guard.max_in_flight:
                return
            hold = waiting.hold
            if waiting.granted.done() or waiting.room() <= self._kept_at[hold.model, hold.version]:
                continue
            admission = self._guard.enter_if_free(hold.tenant)
            if admission is not None:
                self._grant(waiting, admission)

    def _grant(self, waiting: _Waiting, admission: Admission) -> None:
        hold = waiting.hold
        del self._waiting[hold.hold_id]
        timer = asyncio.get_running_loop().call_later(hold.ttl_s, self._expire, hold.hold_id)
        self._kept[hold.hold_id] = _Kept(hold, admission, timer)
        self._kept_at[hold.model, hold.version] += 1
        self.granted += 1
        waiting.granted.set_result(None)

    def _give_up(self, hold_id: HoldId, waited_s: float) -> None:
        waiting = self._waiting.pop(hold_id, None)
        if waiting is not None:
            _fail(waiting, self._full(waited_s))

    def _expire(self, hold_id: HoldId) -> None:
        kept = self._kept.get(hold_id)
        if kept is not None:
            self.expired += 1
            self._end(kept)

    def _end(self, kept: _Kept) -> None:
        self._forget(kept)
        if not kept.busy:
            kept.admission.__exit__()

    def _left(self, kept: _Kept) -> None:
        """A reservation's request has ended."""
        kept.busy = False
        kept.admission.unqueue()
        if self._kept.get(kept.hold.hold_id) is not kept:
            kept.admission.__exit__()

    def _forget(self, kept: _Kept) -> None:
        kept.timer.cancel()
        key = kept.hold.model, kept.hold.version
        del self._kept[kept.hold.hold_id]
        self._kept_at[key] -= 1
        if not self._kept_at[key]:
            del self._kept_at[key]

    def _full(self, waited_s: float) -> WorkerFull:
        if len(self._waiting) >= self._max_waiting:
            seen = f"{len(self._waiting)} holds wait for a place here, as many as may"
        else:
            seen = f"no place came free within {waited_s:g} s; {self._guard.in_flight} requests are in flight"
        return WorkerFull(f"{seen}; ask another worker, or later", retry_after_s=_RETRY_AFTER_S)


def _fail(waiting: _Waiting, error: PenstockError) -> None:
    if not waiting.granted.done():
        waiting.granted.set_exception(error)


class _Visit(Admission):
    """One request under a reservation: leaving it leaves the place where it was."""

    __slots__ = ("_leave", "_place")

    def __init__(self, place: Admission, leave: Callable[[], None]) -> None:
        self._place, self._leave = place, leave

    @property
    def tells_apart(self) -> bool:
        return self._place.tells_apart

    def queue(self, model: object, *, waiting: int, places: int) -> None:
        self._place.queue(model, waiting=waiting, places=places)

    def unqueue(self) -> None:
        self._place.unqueue()

    def __exit__(self, *_: object) -> None:
        self._leave()
