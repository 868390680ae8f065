"""Who waits for a place, who is next, and who is turned away and for how long.

Requests wait in lines: one for a model, version and region each. In a line the priority classes go strictly one after the
other; within a class tenants have turns by their shares (`placement.waiting.fair_turns`). The queue is bounded as a whole and
for each model, and of both a tenant has a part at most (`placement.shares`), so that nobody fills it alone. Whoever would not
be served within its time, as the line moves now, is turned away at once rather than when it is too late. One that is turned
away is told when there will be room for it: each of several is told a place of its own.

Owns the waiting and nothing else: every change is one of `offer`, `take`, `withdraw` and `expire`, each offer ends by exactly
one of them, and time is an argument. Never knows who has room: whoever found a place takes the next waiter for it.
"""

from __future__ import annotations

import enum
import heapq
from collections import Counter
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import TypeVar

from placement.shares import share_allows
from placement.types import CandidateKey
from placement.waiting.fair_turns import Suits, Ticket, Turns, Waiter
from placement.waiting.pace import Pace
from runtime.ids import ModelName, TenantId

CLASSES = 3
RETRY_LEAST_S = 0.1
RETRY_MOST_S = 60.0
RETRY_UNKNOWN_S = 1.0
"""Where nobody has been served yet."""
_PROMISES = 1024
_Name = TypeVar("_Name", bound=Hashable)


class Bound(enum.Enum):
    """What a request was turned away by."""

    QUEUE = "queue"
    MODEL = "model"
    TENANT = "tenant"
    TIME = "time"


@dataclass(frozen=True, slots=True)
class QueueBounds:
    """How many may wait."""

    total: int = 2048
    """Half of the calls that a server takes at once (runtime.serving.ServerLimits): each that waits is one."""
    per_model: int = 1024
    tenant_share: float = 0.9
    """What one tenant may hold while it is alone, of both; 1 = tenants are not told apart."""


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """It does not wait: by which bound, a sentence for the person, and when there will be room."""

    bound: Bound
    detail: str
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class _Room:
    """How many places there are (None: of the whole queue), how many of them free, how many this tenant's."""

    model: ModelName | None
    places: int
    free: int
    held: int


class CapacityQueue:
    """All lines of one scheduler."""

    def __init__(self, bounds: QueueBounds | None = None) -> None:
        self._bounds = bounds or QueueBounds()
        self._lines: dict[CandidateKey, _Line] = {}
        self._waiters: dict[Ticket, Waiter] = {}
        self._deadlines: list[tuple[float, Ticket]] = []
        self._at_model: Counter[ModelName] = Counter()
        self._of_tenant: Counter[TenantId] = Counter()
        self._of_tenant_at_model: Counter[tuple[TenantId, ModelName]] = Counter()
        self._promised_s: dict[Hashable, float] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket in self._waiters

    @property
    def keys(self) -> list[CandidateKey]:
        """Lines in which somebody waits."""
        return list(self._lines)

    def waiting(self, key: CandidateKey) -> int:
        line = self._lines.get(key)
        return 0 if line is None else len(line)

    def by_class(self) -> tuple[int, ...]:
        """How many wait in each class."""
        return tuple(sum(len(line.classes[each]) for line in self._lines.values()) for each in range(CLASSES))

    def offer(self, waiter: Waiter, now_s: float) -> TurnedAway | None:
        """Let it wait, or say why not. Whoever finds nobody before it waits, however little time it has."""
        refused = self._over_bounds(waiter, now_s) or self._too_late(waiter, now_s)
        if refused is not None:
            return refused
        line = self._lines.get(waiter.key)
        if line is None:
            line = self._lines[waiter.key] = _Line(now_s)
        line.classes[_class(waiter)].add(waiter)
        self._waiters[waiter.ticket] = waiter
        heapq.heappush(self._deadlines, (waiter.deadline_s, waiter.ticket))
        self._count(waiter, 1)
        return None

    def take(self, key: CandidateKey, now_s: float, suits: Suits = lambda _: True) -> Waiter | None:
        """The next in this line whom the place suits; it waits no more."""
        line = self._lines.get(key)
        waiter = None if line is None else line.take(suits)
        if line is not None and waiter is not None:
            self._drop(waiter, line)
            if len(line):
                line.pace.served(now_s)
        return waiter

    def withdraw(self, ticket: Ticket) -> Waiter | None:
        """It waits no more, because nobody waits for it; None where it did not."""
        waiter = self._waiters.get(ticket)
        if waiter is not None:
            line = self._lines[waiter.key]
            line.classes[_class(waiter)].discard(waiter)
            self._drop(waiter, line)
        return waiter

    def expire(self, now_s: float) -> list[Waiter]:
        """Those whose time is over, the earliest first; they wait no more."""
        expired: list[Waiter] = []
        while (at_s := self.next_expiry_s) is not None and at_s <= now_s:
            waiter = self.withdraw(self._deadlines[0][1])
            if waiter is not None:
                expired.append(waiter)
        return expired

    @property
    def next_expiry_s(self) -> float | None:
        """When the next one's time is over; None: nobody waits."""
        while self._deadlines and self._deadlines[0][1] not in self._waiters:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def upcoming(self, key: CandidateKey, at_most: int | None = None) -> list[Waiter]:
        """The next ones of a line as they stand now, were every place to suit everybody."""
        line = self._lines.get(key)
        return [] if line is None else list(islice(line.order(), at_most))

    def others_first(self, key: CandidateKey, beside: Collection[TenantId], at_most: int) -> list[Waiter]:
        """The most urgent one in a line of each tenant but these: whom a place may suit that those may not have."""
        line, found = self._lines.get(key), dict[TenantId, Waiter]()
        for waiter in () if line is None else line.firsts():
            if len(found) >= at_most:
                break
            if waiter.tenant not in beside:
                found.setdefault(waiter.tenant, waiter)
        return list(found.values())

    def _over_bounds(self, waiter: Waiter, now_s: float) -> TurnedAway | None:
        for room in self._rooms(waiter):
            where = "the queue" if room.model is None else f"the queue of model {room.model!r}"
            if room.free <= 0:
                bound = Bound.QUEUE if room.model is None else Bound.MODEL
                detail = f"{room.places} requests wait in {where}, as many as may; back off, then retry"
                return TurnedAway(bound, detail, self._room_in_s(waiter, now_s))
            if not share_allows(room.held, room.free, self._bounds.tenant_share):
                detail = (
                    f"tenant {waiter.tenant!r} has {room.held} requests waiting in {where}, its part of the {room.places}"
                    " that may; let some of them end, then retry"
                )
                return TurnedAway(Bound.TENANT, detail, self._room_in_s(waiter, now_s))
        return None

    def _rooms(self, waiter: Waiter) -> tuple[_Room, _Room]:
        """What there is for it in the whole queue, and in its model's."""
        bounds, tenant, model = self._bounds, waiter.tenant, waiter.key.model
        whole = _Room(None, bounds.total, bounds.total - len(self._waiters), self._of_tenant[tenant])
        own = bounds.per_model - self._at_model[model]
        return whole, _Room(model, bounds.per_model, own, self._of_tenant_at_model[tenant, model])

    def _too_late(self, waiter: Waiter, now_s: float) -> TurnedAway | None:
        line = self._lines.get(waiter.key)
        ahead = 0 if line is None else line.ahead_of(waiter)
        if line is None or not ahead or not line.pace.is_known:
            return None
        wait_s, left_s = ahead * line.pace.interval_s(now_s), waiter.deadline_s - now_s
        if wait_s <= left_s:
            return None
        detail = (
            f"{ahead} requests for model {waiter.key.model!r} are to be served before this one, which takes about"
            f" {wait_s:.1f} s, and {max(0.0, left_s):.1f} s are left for it; retry later, or with a longer deadline"
        )
        return TurnedAway(Bound.TIME, detail, _bounded(wait_s - left_s))

    def _room_in_s(self, waiter: Waiter, now_s: float) -> float:
        """When there will be room for it beside everybody else who was told so before, if each comes back then."""
        if len(self._promised_s) > _PROMISES:
            self._promised_s = {who: at_s for who, at_s in self._promised_s.items() if at_s > now_s}
        share, told_s = self._bounds.tenant_share, 0.0
        for room in self._rooms(waiter):
            interval_s = self._interval_s(room.model, now_s)
            # Each service leaves one place free. Shares: `share_allows`, solved for how many are free.
            part = (room.held + 1) * (1 - share) / share - (room.free - 1)
            for whose, services, each in (
                (room.model, 1.0 - room.free, 1.0),
                ((room.model, waiter.tenant), part, 1 / share),
            ):
                promised_s = self._promised_s.get(whose, 0.0)
                at_s = max(now_s + services * interval_s, promised_s + each * interval_s)
                self._promised_s[whose] = min(at_s, now_s + RETRY_MOST_S)
                if room.held or promised_s > now_s or whose == room.model:
                    # The next service is up to one interval away, whenever this is asked: only whole ones are sure.
                    told_s = max(told_s, ceil((at_s - now_s) / interval_s - 1e-6) * interval_s)
        return _bounded(told_s)

    def _interval_s(self, scope: ModelName | None, now_s: float) -> float:
        """Between services of a model's lines (None: of all), taken together."""
        lines = [line for key, line in self._lines.items() if scope in (None, key.model)]
        known = [max(line.pace.interval_s(now_s), 1e-6) for line in lines if line.pace.is_known]
        if known:
            return 1 / sum(1 / interval_s for interval_s in known)
        return max([RETRY_UNKNOWN_S, *(line.pace.interval_s(now_s) for line in lines)])

    def _drop(self, waiter: Waiter, line: _Line) -> None:
        del self._waiters[waiter.ticket]
        self._count(waiter, -1)
        if not len(line):
            del self._lines[waiter.key]

    def _count(self, waiter: Waiter, by: int) -> None:
        model, tenant = waiter.key.model, waiter.tenant
        _add(self._at_model, model, by)
        _add(self._of_tenant, tenant, by)
        _add(self._of_tenant_at_model, (tenant, model), by)


class _Line:
    """Those that wait for one model, version and region."""

    def __init__(self, now_s: float) -> None:
        self.classes = tuple(Turns() for _ in range(CLASSES))
        self.pace = Pace(now_s)

    def __len__(self) -> int:
        return sum(len(turns) for turns in self.classes)

    def take(self, suits: Suits) -> Waiter | None:
        for turns in self.classes:
            waiter = turns.take(suits)
            if waiter is not None:
                return waiter
        return None

    def order(self) -> Iterator[Waiter]:
        for turns in self.classes:
            yield from turns.order()

    def firsts(self) -> Iterator[Waiter]:
        for turns in self.classes:
            yield from turns.firsts()

    def ahead_of(self, waiter: Waiter) -> int:
        place = _class(waiter)
        return sum(len(turns) for turns in self.classes[:place]) + self.classes[place].ahead_of(waiter)


def _class(waiter: Waiter) -> int:
    """A class that is none counts as the nearest one."""
    return min(max(waiter.priority_class, 0), CLASSES - 1)


def _bounded(retry_after_s: float) -> float:
    return min(max(retry_after_s, RETRY_LEAST_S), RETRY_MOST_S)


def _add(counter: Counter[_Name], name: _Name, by: int) -> None:
    counter[name] += by
    if not counter[name]:
        del counter[name]
