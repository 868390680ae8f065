"""A request as it comes in: what its route makes of it in the queue, how long it may wait, which workers are of use to it.

Decides none of that: the routing policy and the rules do. Owns the numbering of requests.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import count

from placement.rules import Route
from placement.types import CandidateKey
from placement.waiting.fair_turns import Ticket, Waiter
from runtime.clock import Clock
from runtime.ids import Region, WorkerId
from scheduler.capacity.aim import Reach
from scheduler.capacity.types import Asked, CapacityRules, Place
from scheduler.capacity.world import RouteOf

_REACHES = 1024


@dataclass(slots=True, eq=False)
class OpenRequest:
    """One that waits, or whose place has come."""

    waiter: Waiter
    reach: Reach
    place: asyncio.Future[Place]
    own_deadline: bool
    """Its time was what the caller gave."""


class Reception:
    """Of one queue."""

    def __init__(self, route_of: RouteOf, clock: Clock, rules: CapacityRules) -> None:
        self._route_of, self._clock, self._rules = route_of, clock, rules
        self._reaches: dict[tuple[Region, Route, frozenset[WorkerId]], Reach] = {}
        self._tickets = count()

    def receive(self, asked: Asked) -> OpenRequest:
        now_s, rules = self._clock.monotonic_s(), self._rules
        route = self._route_of(asked.tenant, asked.model, asked.region)
        own = asked.timeout_s is not None and asked.timeout_s <= rules.most_wait_s
        wait_s = rules.longest_wait_s if asked.timeout_s is None else min(asked.timeout_s, rules.most_wait_s)
        waiter = Waiter(
            Ticket(next(self._tickets)),
            CandidateKey(asked.model, asked.version, asked.region),
            asked.tenant,
            now_s,
            now_s + wait_s,
            route.priority_class,
            route.share,
            asked.priority,
            asked.exclude,
        )
        place: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        return OpenRequest(waiter, self._reach(asked, route), place, own)

    def _reach(self, asked: Asked, route: Route) -> Reach:
        alike = (asked.region, route, asked.exclude)
        if alike not in self._reaches and len(self._reaches) >= _REACHES:
            self._reaches.clear()  # those in use stay with their requests
        return self._reaches.setdefault(alike, Reach(*alike))
