"""Lets requests in as far as limits allow, from what this gateway holds: in memory, without asking anybody.

A request has to fit into all that it falls under; one that does not costs nothing. Where nothing is in hand and the leader may
have some, it waits for the next answer, for a second at most; where the leader said that there is none, it is refused with the
wait that was told. While the leader cannot be reached each limit's own policy decides. Owns who waits, and never more than a
bound of them. Never asks the leader itself: `gateway.limits.sharing` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from gateway.admission import KeyFacts, RateLimited
from gateway.limits.dues import Due, Dues, dues_of
from gateway.limits.holding import Holding
from gateway.limits.purse import Purse
from gateway.limits.telling import headers_of, sentence_of
from gateway.limits.ticket import Ticket
from placement.limits.types import Moment
from runtime.clock import Clock
from runtime.ids import KeyId

WAIT_S = 1.0
"""For the leader's answer, at most."""

MAX_WAITING = 10_000
MAX_KEYS = 100_000
_AGAIN_S = 1.0
"""What is told where nobody knows."""


class Metrics(Protocol):
    """What is counted: gateway.metrics.GatewayMetrics."""

    def limited(self, kind: str) -> None: ...

    def refused(self, reason: str) -> None: ...


class Limiter:
    """A `gateway.exchange.Limiter`. Belongs to one event loop."""

    def __init__(self, purse: Purse, clock: Clock, metrics: Metrics, *, wait_s: float = WAIT_S) -> None:
        self.purse, self._clock, self._metrics, self._wait_s = purse, clock, metrics, wait_s
        self._loop = asyncio.get_running_loop()
        self._dues: dict[KeyId, Dues] = {}
        self._waiting: dict[Holding, set[asyncio.Future[None]]] = {}
        self._waiters = 0
        self.hurry = asyncio.Event()
        """Set where somebody waits for the leader's answer, or what is in hand has just run out."""
        self.wanted = asyncio.Event()
        """Set once there is any limit at all."""
        self.sure = True
        """Whether the leader answers, or may still: kept by `gateway.limits.sharing`."""
        self.stir = purse.stir
        purse.on_forgotten.append(self._dues.clear)

    @property
    def waiting(self) -> int:
        """Requests that wait for an answer now."""
        return self._waiters

    def moment(self) -> Moment:
        return Moment(self._clock.monotonic_s(), self._clock.wall_s())

    async def admit(self, key: KeyFacts, model: str, tokens: int, deadline_s: float | None = None) -> Ticket | None:
        """`model` may be empty: the call asks nothing of one. `tokens`: what it is thought to come to; 0: nobody knows.

        `deadline_s`: when the request ends, on the event loop's clock. None: nothing limits it. Raises RateLimited.
        """
        dues = self._dues.get(key.key_id)
        if dues is None or dues.limits is not key.limits:
            dues = self._found(key)
        due = dues.of(model)
        if not due.all:
            return None
        if (short := _short(due)) is not None:
            await self._gathered(due, short, deadline_s)
        return self._taken(due, tokens)

    def tell(self, holdings: Iterable[Holding]) -> None:
        """The leader has answered for these: who waits for one looks again."""
        for holding in holdings:
            self._wake(holding)

    def settled(self, holding: Holding) -> None:
        """A request gave some back, or used more than was thought."""
        self.stir(holding)
        if self._waiting and holding.held >= 1:
            self._wake(holding)

    def unsure(self) -> None:
        """The leader does not answer any more: nobody waits for it."""
        self.sure = False
        for holding in list(self._waiting):
            self._wake(holding)

    def _found(self, key: KeyFacts) -> Dues:
        if len(self._dues) >= MAX_KEYS:
            self._dues.clear()
        dues = self._dues[key.key_id] = dues_of(key, self.purse)
        self.wanted.set()
        return dues

    def _taken(self, due: Due, tokens: int) -> Ticket:
        for holding in due.single:
            holding.held -= 1
            holding.used += 1
            holding.asked += 1
            if not holding.stirred:
                self.stir(holding)
            if holding.held < 1 and not holding.retry_at_s:
                self.hurry.set()
        charged = tuple([self._charge(holding, tokens) for holding in due.tokens]) if due.tokens else ()
        return Ticket(self, due, charged)

    def _charge(self, holding: Holding, tokens: int) -> int:
        """Tokens are let in while any are left, and taken in full."""
        units = tokens or holding.one_request
        holding.held -= units
        holding.used += units
        holding.asked += units
        self.stir(holding)
        if holding.held < 1 and not holding.retry_at_s:
            self.hurry.set()
        return units

    async def _gathered(self, due: Due, first: Holding, deadline_s: float | None) -> None:
        """Return once there is a unit of everything. Raises RateLimited."""
        until_s = self._loop.time() + self._wait_s
        until_s = until_s if deadline_s is None else min(until_s, deadline_s)
        wanted: dict[Holding, int] = {}
        missing: Holding | None = first
        answered = False
        try:
            while missing is not None:
                moment = self.moment()
                if not self.sure:
                    if not missing.borrow(moment, self.purse.holders):
                        raise self._refusal(due, missing, missing.borrow_wait_s(moment), unsure=True)
                elif missing.retry_at_s > moment.now_s:
                    raise self._refusal(due, missing, missing.retry_at_s - moment.now_s)
                else:
                    self._want(due, wanted)
                    if await self._answered(missing, until_s):
                        answered = True
                    elif answered or not missing.borrow(self.moment(), self.purse.holders):
                        raise self._refusal(due, missing, _AGAIN_S, unsure=not answered)
                missing = _short(due)
        finally:
            for holding, units in wanted.items():
                holding.waiting -= units

    def _want(self, due: Due, wanted: dict[Holding, int]) -> None:
        """Have all that is missing asked for at once, and kept in hand until the rest has come."""
        for holding in due.all:
            if holding.held < 1 and holding not in wanted:
                wanted[holding] = units = holding.one_request
                holding.waiting += units
                self.stir(holding)
        self.hurry.set()

    async def _answered(self, short: Holding, until_s: float) -> bool:
        """Whether the leader said anything of this in time, or it became certain that it will not."""
        if self._waiters >= MAX_WAITING:
            return False
        told: asyncio.Future[None] = self._loop.create_future()
        waiting = self._waiting.setdefault(short, set())
        waiting.add(told)
        self._waiters += 1
        try:
            async with asyncio.timeout_at(until_s):
                await told
        except TimeoutError:
            return False
        finally:
            self._waiters -= 1
            waiting.discard(told)
            if not waiting and self._waiting.get(short) is waiting:
                del self._waiting[short]
        return True

    def _wake(self, holding: Holding) -> None:
        for told in self._waiting.pop(holding, ()):
            if not told.done():
                told.set_result(None)

    def _refusal(self, due: Due, short: Holding, wait_s: float, *, unsure: bool = False) -> RateLimited:
        short.asked += short.one_request
        self.stir(short)
        self._metrics.limited(short.terms.kind.value)
        self._metrics.refused(RateLimited.reason)
        told = headers_of(due.all, self.moment())
        return RateLimited(sentence_of(short, wait_s, unsure=unsure), retry_after_s=wait_s, headers=told)


def _short(due: Due) -> Holding | None:
    """The first that nothing is in hand of."""
    for holding in due.all:
        if holding.held < 1:
            return holding
    return None
