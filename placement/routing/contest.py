"""One request among the candidates of one version and region: what a strategy looks at, and who is open to it.

Everything that is told apart by filters is told here, once for a handful and once over columns: who has room, whom the route
lets in, who is passed over, who failed this request before. Never decides who of the open ones is best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from placement.candidates import Candidates, Flags, Floats
from placement.routing.selection import EVERYBODY, Selection
from placement.routing.state import HEARD_LIFETIME_S, RoutingState
from placement.rules import Route
from placement.types import ANY_REGION, Request
from runtime.ids import Region

PLAIN_LIMIT = 24
"""Up to so many candidates the plain way is the faster one (benchmarks/placement.py)."""


@dataclass(slots=True)
class Contest:
    """The scratch of one decision."""

    candidates: Candidates
    state: RoutingState
    request: Request
    route: Route
    now_s: float
    tried: tuple[int, ...] = ()
    """Where those are that this request has failed on."""
    selection: Selection = EVERYBODY
    passes_over: bool = False
    """Whom `state.health` shuns."""

    @property
    def is_plain(self) -> bool:
        return len(self.candidates.seats) <= PLAIN_LIMIT

    def lets_in(self, index: int) -> bool:
        """Whether this candidate is allowed, and has not failed this request."""
        allowed = self.selection.allowed
        return index not in self.tried and (allowed is None or bool(allowed[index]))

    def heard(self, slot: int) -> bool:
        """Whether what the worker last said still counts."""
        return self.now_s - self.state.heard_at_s.values[slot] < HEARD_LIFETIME_S

    def fresh(self) -> Flags:
        """`heard`, of all by the candidates' order."""
        since_s: Floats = self.state.heard_at_s.array.take(self.candidates.slots)
        np.subtract(self.now_s, since_s, out=since_s)
        return since_s < HEARD_LIFETIME_S

    def pressure(self, slot: int) -> float:
        """Requests there and rows waiting: ours, and others' as last heard."""
        taken = self.state.in_flight.values[slot]
        return taken + self.state.pressure.values[slot] if self.heard(slot) else taken


def contest_of(candidates: Candidates, state: RoutingState, request: Request, route: Route, now_s: float) -> Contest:
    tried: tuple[int, ...] = ()
    if request.exclude:
        tried = tuple([index for who in request.exclude if (index := candidates.index_of(who)) >= 0])
    return Contest(candidates, state, request, route, now_s, tried, state.selections.of(candidates, route), state.health.shuns)


def open_plain(contest: Contest) -> list[int]:
    """Who could be chosen, by index."""
    in_flight, seats = contest.state.in_flight.values, contest.candidates.seats
    found = [index for index, seat in enumerate(seats) if in_flight[seat.slot] < seat.capacity]
    return _let_in_plain(contest, found)


def open_columns(contest: Contest, taken: Floats) -> Flags:
    """The same, as flags. `taken`: our requests there, by the candidates' order."""
    return _let_in_columns(contest, taken < contest.candidates.capacities)


def eligible_plain(contest: Contest) -> list[int]:
    """Who could be chosen but for room."""
    return _let_in_plain(contest, list(range(len(contest.candidates.seats))))


def eligible_columns(contest: Contest) -> Flags:
    return _let_in_columns(contest, contest.candidates.capacities >= 0.0)


def distances(contest: Contest) -> Floats | None:
    """How far each candidate is from the request's own region; None: all are equally far."""
    candidates = contest.candidates
    if candidates.key.region != ANY_REGION:
        return None
    regions = candidates.regions()
    if len(regions.names) < 2:
        return None
    return candidates.by_region([distance(contest.state, contest.request.region, each) for each in regions.names])


def distance(state: RoutingState, home: Region, region: Region) -> float:
    """0 near to 1 far: as the caller measured it, else by whether it is one's own."""
    return state.proximity.get(region, 0.0 if home in (ANY_REGION, region) else 1.0)


def _let_in_plain(contest: Contest, found: list[int]) -> list[int]:
    if (allowed := contest.selection.allowed) is not None:
        listed = allowed.tolist()
        found = [index for index in found if listed[index]]
    if contest.passes_over:
        until_s, seats, now_s = contest.state.health.shunned_until_s.values, contest.candidates.seats, contest.now_s
        found = [index for index in found if until_s[seats[index].slot] <= now_s]
    if contest.tried:
        found = [index for index in found if index not in contest.tried]
    return found


def _let_in_columns(contest: Contest, open_: Flags) -> Flags:
    if (allowed := contest.selection.allowed) is not None:
        open_ &= allowed
    if contest.passes_over:
        open_ &= contest.state.health.shunned_until_s.array.take(contest.candidates.slots) <= contest.now_s
    for index in contest.tried:
        open_[index] = False
    return open_
