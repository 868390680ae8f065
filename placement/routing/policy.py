"""Decides which worker takes a request, or why none does.

Pure: the fleet, what the caller knows of it, the request, its route and the time go in, a decision comes out; nothing is
changed. The decision is its own delta: `RoutingState.reserve(granted)` in the same step, `RoutingState.release(granted, …)`
when it has ended.

In this order: the model, its version (an empty one means the newest that is ready), the region, then among the ready copies
there those that the route lets in, that this request has not failed on, that are not passed over, and that have room; of these
the strategy's best, the lowest id among equals. Affinities come last, so that no pin holds a request to a worker that failed
it (litellm#32308). Workers whose breaker is open, that were put aside or that drain are passed over while anyone else has
room, and are tried when nobody has: a worker that may fail is better than certain failure. Every candidate is warm: a copy that
is not ready is none.

A sticky session's own worker holds its state: it is left only when it is gone, not ready, denied or has failed this request.
Full, it is waited for. A route that crosses regions looks elsewhere only where the request's own region has nobody for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from placement.candidates import Candidates
from placement.routing import refusals, scoring, strategies
from placement.routing.contest import Contest, contest_of, distance
from placement.routing.scoring import Pick
from placement.routing.state import RoutingState
from placement.rules import DEFAULT_ROUTE, Route
from placement.types import ANY_REGION, Decision, Granted, Refusal, Refused, Request, Strategy, Why
from placement.view import FleetView, ModelIndex
from runtime.ids import Region

ABROAD_COST = 0.25
"""What cost weighs at least where regions are chosen among."""

_EVERYWHERE = frozenset({Refusal.UNKNOWN_MODEL, Refusal.UNKNOWN_VERSION})
"""Refusals that hold in every region."""

_REASONS = {
    Strategy.AFFINITY: Why.SCORE,
    Strategy.ROUND_ROBIN: Why.TURN,
    Strategy.WEIGHTED_ROUND_ROBIN: Why.TURN,
    Strategy.LEAST_LOADED: Why.SCORE,
    Strategy.TWO_CHOICES: Why.DRAW,
    Strategy.LATENCY: Why.LATENCY,
    Strategy.COST: Why.COST,
}
_IN_TURNS = frozenset({Strategy.ROUND_ROBIN, Strategy.WEIGHTED_ROUND_ROBIN})


Ruling = tuple[Decision, Contest | None]
"""The decision, and the contest that it was made by; None: there was nobody to choose from."""


def choose(view: FleetView, state: RoutingState, request: Request, *, now_s: float, route: Route = DEFAULT_ROUTE) -> Decision:
    """The worker that takes this request now. `now_s` is of the caller's monotonic clock, as everywhere in `state`.

    Raises ValueError where `state` has not adopted this view.
    """
    return ruled(view, state, request, now_s, route)[0]


def ruled(view: FleetView, state: RoutingState, request: Request, now_s: float, route: Route) -> Ruling:
    """What `choose` answers, and what it looked at last."""
    if state.tenures is not view.tenures:
        raise ValueError("the state knows another view; adopt this one before choosing from it")
    index = view.models.get(request.model)
    if index is None:
        return refusals.unknown_model(request), None
    case = _Case(view, index, state, request, now_s, route)
    if request.sticky and request.session_key:
        return _sticky(case)
    ruling = _in_region(case)
    if isinstance(ruling[0], Granted) or not _may_go_abroad(case, ruling[0]):
        return ruling
    return _abroad(case)


def abroad_route(route: Route) -> Route:
    """By what regions are chosen among: near and cheap ones first, unless the route's own strategy measures that itself."""
    strategy = route.strategy if route.strategy in (Strategy.COST, Strategy.LATENCY) else Strategy.AFFINITY
    return replace(route, strategy=strategy, weights=replace(route.weights, cost=max(route.weights.cost, ABROAD_COST)))


@dataclass(slots=True)
class _Case:
    """One request before the policy."""

    view: FleetView
    index: ModelIndex
    state: RoutingState
    request: Request
    now_s: float
    route: Route

    def candidates(self, region: Region) -> Candidates | Refused:
        """Those that could answer in this region, or why nobody could."""
        index = self.index
        version = self.request.version or index.newest_ready.get(region)
        found = index.ready.get((version, region)) if version else None
        return found if found is not None else refusals.not_ready(self.view, index, self.request, region)

    def contest(self, candidates: Candidates) -> Contest:
        return contest_of(candidates, self.state, self.request, self.route, self.now_s)


def _may_go_abroad(case: _Case, refused: Refused) -> bool:
    return case.route.cross_region and case.request.region != ANY_REGION and refused.reason not in _EVERYWHERE


def _in_region(case: _Case) -> Ruling:
    found = case.candidates(case.request.region)
    return (found, None) if isinstance(found, Refused) else _best(case.contest(found))


def _abroad(case: _Case) -> Ruling:
    """Any region's best."""
    case.route = abroad_route(case.route)
    found = case.candidates(ANY_REGION)
    if isinstance(found, Refused):
        return found, None
    return _best(case.contest(found), Why.ABROAD)


def _best(contest: Contest, usually: Why | None = None) -> Ruling:
    """The strategy's choice; of those passed over only if it has no other. `usually`: why, if nothing special is."""
    strategy = contest.route.strategy
    best = strategies.pick(contest, strategy)
    if best is not None:
        return _granted(contest, best, usually=usually), contest
    if contest.passes_over:
        contest.passes_over = False
        best = strategies.pick(contest, strategy)
        if best is not None:
            return _granted(contest, best, Why.LAST_RESORT), contest
    return refusals.nobody(contest), contest


def _granted(contest: Contest, best: Pick, why: Why | None = None, usually: Why | None = None) -> Granted:
    candidates, request, strategy = contest.candidates, contest.request, contest.route.strategy
    seat = candidates.seats[best.index]
    trusted = contest.state.health.is_trusted(seat.worker_id)
    if why is None:
        why = Why.PROBE if not trusted else usually or (Why.SESSION if best.own else _REASONS[strategy])
    return Granted(
        seat.worker_id,
        candidates.key.version,
        why,
        best.score,
        seat.slot,
        seat.tenure,
        not trusted,
        candidates.key if strategy in _IN_TURNS and not request.sticky else None,
        best.credits,
        request.model,
        request.prefix,
        request.session_key if request.sticky else "",
    )


def _sticky(case: _Case) -> Ruling:
    """The session's own worker: where its state is known to be, else where a session of that name begins."""
    ruling = _at_home(case) or _new_home(case, case.request.region)
    decision = ruling[0]
    # A full home is waited for, not left; only who has none in the region looks for one elsewhere.
    if isinstance(decision, Granted) or decision.reason is Refusal.ALL_FULL or not _may_go_abroad(case, decision):
        return ruling
    return _home_abroad(case)


def _at_home(case: _Case) -> Ruling | None:
    """Where the session's state is known to be; None: nowhere, or it has to be left."""
    request = case.request
    home = case.state.sessions.home_of(request.model, request.session_key)
    if home is None or request.version not in ("", home.version):
        return None
    found = case.index.ready.get((home.version, ANY_REGION if case.route.cross_region else request.region))
    if found is None:
        return None
    contest = case.contest(found)
    contest.passes_over = False
    where = found.index_of(home.worker_id)
    if where < 0 or found.seats[where].tenure != home.tenure or not contest.lets_in(where):
        return None
    return _settled(contest, where), contest


def _new_home(case: _Case, region: Region) -> Ruling:
    """Rendezvous over all that could be it but for room; those passed over only if there is no other."""
    found = case.candidates(region)
    if isinstance(found, Refused):
        return found, None
    contest = case.contest(found)
    where = scoring.home_of(contest)
    if where < 0 and contest.passes_over:
        contest.passes_over = False
        where = scoring.home_of(contest)
    return _settled(contest, where) if where >= 0 else refusals.nobody(contest), contest


def _home_abroad(case: _Case) -> Ruling:
    """The nearest region in which the session could have its state."""
    found = case.candidates(ANY_REGION)
    if isinstance(found, Refused):
        return found, None
    own, regions = case.request.region, found.regions().names
    ruling: Ruling = (refusals.nobody(case.contest(found)), None)
    for region in sorted(regions, key=lambda each: (distance(case.state, own, each), each)):
        ruling = _new_home(case, region)
        if isinstance(ruling[0], Granted) or ruling[0].reason is Refusal.ALL_FULL:
            break
    return ruling


def _settled(contest: Contest, where: int) -> Decision:
    seat = contest.candidates.seats[where]
    if contest.state.in_flight.values[seat.slot] >= seat.capacity:
        return refusals.full_home(contest, seat.worker_id)
    shunned = contest.now_s < contest.state.health.shunned_until_s.values[seat.slot]
    return _granted(contest, Pick(where, 0.0, own=True), Why.LAST_RESORT if shunned else None)
