"""Whose turn it is among tenants that wait for the same thing: deficit round robin, and within a tenant the most urgent first.

A turn gives a tenant as many requests as its share says; what it could not use while it waited is lost with its last request.
A place that is of no use to the tenant whose turn it is goes to the next that can use it, out of turn: that one has so much
less in its own, and never owes more than one turn. So nobody is starved by a place that others could not have had.
Source: Shreedhar and Varghese, "Efficient Fair Queuing Using Deficit Round Robin", IEEE/ACM Transactions on Networking 4 (3),
1996, with every request of cost 1.

Owns one class of one line. Never reads a clock, and never decides who may wait: `placement.waiting.queue` does.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NewType

from placement.rules import STANDARD
from placement.types import CandidateKey
from runtime.ids import TenantId, WorkerId

Ticket = NewType("Ticket", int)
"""One offer of one scheduler."""

_LAST = 1 << 32
"""Above every priority that a client can give: protobuf's uint32."""


@dataclass(frozen=True, slots=True)
class Waiter:
    """A request that waits for a place."""

    ticket: Ticket
    key: CandidateKey
    tenant: TenantId
    arrived_s: float
    deadline_s: float
    """It waits until then at most."""
    priority_class: int = STANDARD
    """0 comes before 1, 1 before 2."""
    share: int = 1
    """Its tenant's, of what its class is given."""
    priority: int = 0
    """1 comes first among its tenant's; 0: none was given, and it comes after all that have one."""
    exclude: frozenset[WorkerId] = frozenset()
    """Workers that are of no use to it."""

    @property
    def urgency(self) -> tuple[int, float, float, int]:
        """The smaller, the earlier among its tenant's."""
        return self.priority or _LAST, self.deadline_s, self.arrived_s, self.ticket


_urgency = attrgetter("urgency")
Suits = Callable[[Waiter], bool]


@dataclass(slots=True, eq=False)
class _Backlog:
    """What one tenant has waiting, the most urgent first."""

    share: int = 1
    credit: int = 0
    """Requests that it may still have in this turn; negative: it had them out of turn."""
    waiters: list[Waiter] = field(default_factory=list)


class Turns:
    """The tenants of one class, in the order of their turns; the first one's is now."""

    def __init__(self) -> None:
        self._ring: dict[TenantId, _Backlog] = {}
        self._turn: TenantId | None = None
        """Whose turn has begun."""
        self._count = 0

    def __len__(self) -> int:
        """How many requests wait."""
        return self._count

    def add(self, waiter: Waiter) -> None:
        """Let it wait. A tenant that had nothing waiting has its turn after all others."""
        backlog = self._ring.setdefault(waiter.tenant, _Backlog())
        backlog.share = max(1, waiter.share)
        insort(backlog.waiters, waiter, key=_urgency)
        self._count += 1
        self._begin()

    def discard(self, waiter: Waiter) -> None:
        """Let it wait no more; its tenant's turn stays what it was."""
        backlog = self._ring[waiter.tenant]
        del backlog.waiters[bisect_left(backlog.waiters, waiter.urgency, key=_urgency)]
        self._count -= 1
        self._close(waiter.tenant, backlog)

    def take(self, suits: Suits) -> Waiter | None:
        """The next one whom the place suits; None where it suits nobody."""
        for tenant, backlog in self._ring.items():
            for waiter in backlog.waiters:
                if suits(waiter):
                    self._charge(tenant, backlog)
                    self.discard(waiter)
                    return waiter
        return None

    def order(self) -> Iterator[Waiter]:
        """All of them as they would be taken, were every place to suit everybody."""
        ring = deque((backlog.credit, backlog, iter(backlog.waiters)) for backlog in self._ring.values())
        while ring:
            credit, backlog, waiters = ring.popleft()
            for waiter in waiters:
                yield waiter
                credit -= 1
                if credit < 1:
                    ring.append((credit, backlog, waiters))
                    break
            while ring:
                credit, backlog, waiters = ring.popleft()
                if credit + backlog.share >= 1:
                    ring.appendleft((credit + backlog.share, backlog, waiters))
                    break
                ring.append((credit + backlog.share, backlog, waiters))

    def firsts(self) -> Iterator[Waiter]:
        """The most urgent one of each tenant."""
        return (backlog.waiters[0] for backlog in self._ring.values())

    def ahead_of(self, waiter: Waiter) -> int:
        """About how many would be taken before this one, were it to wait here: off by no more than one turn of each tenant."""
        own = self._ring.get(waiter.tenant)
        before_own = bisect_left(own.waiters, waiter.urgency, key=_urgency) if own is not None else 0
        rounds = before_own // max(1, waiter.share)
        total, passed = before_own, False
        for tenant, backlog in self._ring.items():
            if tenant == waiter.tenant:
                passed = True
                continue
            turns = rounds if passed else rounds + 1
            total += min(len(backlog.waiters), turns * backlog.share)
        return total

    def _charge(self, tenant: TenantId, backlog: _Backlog) -> None:
        backlog.credit -= 1
        if tenant != self._turn:
            backlog.credit = max(backlog.credit, -backlog.share)

    def _close(self, tenant: TenantId, backlog: _Backlog) -> None:
        """End what is used up: a tenant without requests leaves, a turn without credit goes to the back."""
        if not backlog.waiters:
            del self._ring[tenant]
        if tenant == self._turn and (not backlog.waiters or backlog.credit < 1):
            self._turn = None
            if backlog.waiters:
                self._ring[tenant] = self._ring.pop(tenant)
        self._begin()

    def _begin(self) -> None:
        """Give the first one its turn; who owes it whole waits for the next."""
        while self._turn is None and self._ring:
            tenant = next(iter(self._ring))
            backlog = self._ring[tenant]
            backlog.credit += backlog.share
            if backlog.credit >= 1:
                self._turn = tenant
            else:
                self._ring[tenant] = self._ring.pop(tenant)
