"""Shows for one request every copy of its model: the filter that it did not pass, or each part of its score, and why it lost.

Pure, and slow beside `choose`, of which it is the commentary: the decision is the one that `choose` makes, and what is said of
each copy is worked out one by one from what that looked at last. Changes nothing.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace

from placement.routing import parts, strategies
from placement.routing.contest import Contest, open_plain
from placement.routing.parts import Parts, ScorePart
from placement.routing.policy import choose, ruled
from placement.routing.state import RoutingState
from placement.rules import DEFAULT_ROUTE, Route
from placement.types import ANY_REGION, Copy, CopyState, Decision, Granted, Request, Strategy, Worker
from placement.view import FleetView
from runtime.ids import ModelVersion, Region, WorkerId

__all__ = ["Considered", "Explanation", "Filter", "ScorePart", "explain", "shadow_choice"]


class Filter(enum.Enum):
    """What a copy did not pass, in the order in which it is looked at."""

    VERSION = "version"
    REGION = "region"
    READY = "ready"
    POLICY = "policy"
    EXCLUDED = "excluded"
    PASSED_OVER = "passed over"
    ROOM = "room"
    PREFERENCE = "preference"


@dataclass(frozen=True, slots=True)
class Considered:
    """One copy, and what became of it."""

    worker_id: WorkerId
    region: Region
    version: ModelVersion
    excluded_by: Filter | None
    parts: Parts
    score: float
    verdict: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The decision, and every copy: the chosen one first, then the others by score, then those that were filtered out."""

    decision: Decision
    strategy: Strategy
    """The one that decided: among regions it may be another than the route's own."""
    considered: tuple[Considered, ...]
    shadow: Decision | None = None
    """What the route's shadow would have chosen; None: it has none."""


def explain(
    view: FleetView, state: RoutingState, request: Request, *, now_s: float, route: Route = DEFAULT_ROUTE
) -> Explanation:
    """Raises ValueError where `state` has not adopted this view, as `choose` does."""
    decision, contest = ruled(view, state, request, now_s, route)
    witness = _Witness(request, decision, contest, now_s)
    chosen = decision.worker_id if isinstance(decision, Granted) else None
    found = [witness.consider(worker, copy) for worker, copy in view.copies_of(request.model)]
    found.sort(key=lambda each: (each.excluded_by is not None, each.worker_id != chosen, -each.score, each.worker_id))
    shadow = shadow_choice(view, state, request, now_s=now_s, route=route)
    return Explanation(decision, (contest.route if contest is not None else route).strategy, tuple(found), shadow)


def shadow_choice(view: FleetView, state: RoutingState, request: Request, *, now_s: float, route: Route) -> Decision | None:
    """What the route's shadow would have chosen; None: it has none. Changes nothing, and nobody's turn moves by it."""
    if route.shadow is None:
        return None
    return choose(view, state, request, now_s=now_s, route=replace(route, strategy=route.shadow, shadow=None))


@dataclass(slots=True)
class _Witness:
    """Says of one copy after another what became of it."""

    request: Request
    decision: Decision
    contest: Contest | None
    now_s: float
    _parts: dict[int, Parts] = field(init=False, default_factory=dict)
    _best: Parts = field(init=False, default=())

    def __post_init__(self) -> None:
        if self.contest is not None:
            open_ = open_plain(self.contest)
            if self._is_sticky:
                self._parts = dict.fromkeys(open_, ())
            else:
                if self.contest.route.strategy is not Strategy.AFFINITY:
                    open_ = strategies.contenders_plain(self.contest)
                self._parts = parts.parts_of(self.contest, self.contest.route.strategy, open_)
            if isinstance(self.decision, Granted):
                self._best = self._parts.get(self.contest.candidates.index_of(self.decision.worker_id), ())

    @property
    def _is_sticky(self) -> bool:
        return self.request.sticky and bool(self.request.session_key)

    def consider(self, worker: Worker, copy: Copy) -> Considered:
        excluded = self._not_a_candidate(worker, copy)
        made: Parts = ()
        if excluded is None and self.contest is not None:
            index = self.contest.candidates.index_of(worker.worker_id)
            excluded = self._filtered(self.contest, index)
            made = self._parts.get(index, ())
        score = parts.total(made)
        if excluded is not None:
            return Considered(worker.worker_id, worker.region, copy.version, excluded[0], (), 0.0, excluded[1])
        verdict = self._verdict(worker.worker_id, made, score)
        return Considered(worker.worker_id, worker.region, copy.version, None, made, score, verdict)

    def _not_a_candidate(self, worker: Worker, copy: Copy) -> tuple[Filter, str] | None:
        key = self.contest.candidates.key if self.contest is not None else None
        version, region = (key.version, key.region) if key is not None else (self.request.version, self.request.region)
        if version and copy.version != version:
            return Filter.VERSION, f"version {version} is {'asked for' if self.request.version else 'the one chosen from'}"
        if region not in (ANY_REGION, worker.region):
            return Filter.REGION, f"the request stays in region {region!r}"
        if copy.state is not CopyState.READY:
            return Filter.READY, f"{copy.state.value}{f' ({copy.reason})' if copy.reason else ''}"
        return None

    def _filtered(self, contest: Contest, index: int) -> tuple[Filter, str] | None:
        seat = contest.candidates.seats[index]
        if contest.selection.allowed is not None and not contest.selection.allowed[index]:
            return Filter.POLICY, f"a rule lets this request not go there ({', '.join(contest.route.rules) or 'unnamed'})"
        if index in contest.tried:
            return Filter.EXCLUDED, "this request has failed there"
        if contest.passes_over and self.now_s < contest.state.health.shunned_until_s.values[seat.slot]:
            return Filter.PASSED_OVER, contest.state.health.why_shunned(seat.worker_id, self.now_s)
        taken = int(contest.state.in_flight.values[seat.slot])
        if taken >= seat.capacity:
            return Filter.ROOM, f"holds {taken} of {seat.capacity} requests"
        return None if index in self._parts else (Filter.PREFERENCE, "a rule prefers others, and they have room")

    def _verdict(self, worker_id: WorkerId, made: Parts, score: float) -> str:
        decision = self.decision
        if not isinstance(decision, Granted) or self.contest is None:
            return "could take it, but the session's own worker is waited for"
        if worker_id == decision.worker_id:
            return decision.why.value
        if self._is_sticky:
            return "the session's own worker comes first"
        strategy = self.contest.route.strategy
        if strategy in (Strategy.ROUND_ROBIN, Strategy.WEIGHTED_ROUND_ROBIN):
            return "its turn comes later" if strategy is Strategy.ROUND_ROBIN else "it is owed less, or its id comes later"
        if strategy is Strategy.TWO_CHOICES:
            return "not drawn, or the more loaded of the two"
        if score == decision.score:
            return self._among_equals(made)
        name = parts.difference(made, self._best)
        return f"{decision.score - score:.3g} behind" + (f", most of all by {name}" if name else "")

    def _among_equals(self, made: Parts) -> str:
        """Of equals the lowest id is chosen; but of the cheapest the least loaded."""
        loads = [[part.value for part in each if part.name == "occupancy"] for each in (made, self._best)]
        if self.contest is not None and self.contest.route.strategy is Strategy.COST and loads[0] > loads[1]:
            return "as cheap, but more loaded"
        return "as good, but its id comes later"
