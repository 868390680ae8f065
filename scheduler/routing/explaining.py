"""Explains what would become of a request, as if one gateway knew what all of them told.

Every gateway decides by its own reservations, breakers and turns; here they are taken together, so what it says is how the mesh
sees the request, and one gateway may differ where it knows more: whose turn it is, which worker saw a prompt, where a running
sequence has its state. Changes nothing: each explanation is worked out in a state of its own, beside the event loop.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Protocol

from placement.routing.explain import explain
from placement.routing.prefixes import hashes_of
from placement.routing.state import RoutingState
from placement.rules import DEFAULT_ROUTE, Route, RoutingPolicy, route_for
from placement.types import CandidateKey, Load, Refusal, Refused, Request
from placement.view import FleetView
from runtime.ids import Region, WorkerId
from scheduler.routing.types import Answer, Question

LISTED = 1_000
"""Copies told of at most, the best first: an answer has to fit a message."""


_COLD = (Refusal.UNKNOWN_MODEL, Refusal.UNKNOWN_VERSION, Refusal.NO_REGION, Refusal.NOT_READY)


class Sight(Protocol):
    """The fleet as this scheduler knows it: scheduler.outlook.Outlook."""

    @property
    def view(self) -> FleetView: ...


class Reports(Protocol):
    """What gateways tell of workers: scheduler.demand.intake.DemandIntake."""

    def loads(self) -> Mapping[WorkerId, Load]: ...

    def avoided(self) -> Collection[WorkerId]: ...


class Explainer:
    """Belongs to one event loop."""

    def __init__(
        self,
        sight: Sight,
        reports: Reports,
        policy: Callable[[], RoutingPolicy],
        home: Region,
        rng: random.Random,
        base: Route = DEFAULT_ROUTE,
        proximity: Callable[[], Mapping[Region, float]] = dict,
        prospect: Callable[[CandidateKey, bool], str] = lambda key, abroad: "",
    ) -> None:
        """`home`: the region of a request that names none. `base`: what gateways do where no rule says anything. `prospect`:
        what a request would wait for for which no copy is ready, in its region or in any.
        """
        self._sight, self._reports, self._policy, self._home = sight, reports, policy, home
        self._rng, self._base, self._proximity, self._prospect = rng, base, proximity, prospect

    async def explain(self, question: Question) -> Answer:
        loads, avoided = dict(self._reports.loads()), frozenset(self._reports.avoided())
        view, proximity, draw = self._sight.view, self._proximity(), self._rng.getrandbits(64)
        region = question.region or self._home
        route = route_for(self._policy(), question.tenant, question.model, region, self._base)
        answer = await asyncio.to_thread(_answered, question, region, route, view, loads, avoided, proximity, draw)
        return self._with_prospect(answer, CandidateKey(question.model, question.version, region), abroad=route.cross_region)

    def _with_prospect(self, answer: Answer, key: CandidateKey, *, abroad: bool) -> Answer:
        decision = answer.decision
        if isinstance(decision, Refused) and decision.reason in _COLD and (seen := self._prospect(key, abroad)):
            return replace(answer, decision=Refused(decision.reason, f"{decision.detail}; {seen}"))
        return answer


def _answered(
    question: Question,
    region: Region,
    route: Route,
    view: FleetView,
    loads: Mapping[WorkerId, Load],
    avoided: frozenset[WorkerId],
    proximity: Mapping[Region, float],
    draw: int,
) -> Answer:
    if question.strategy is not None:
        route = replace(route, strategy=question.strategy)
    state = RoutingState(view)
    state.proximity = proximity
    for who in loads.keys() | avoided:
        load = loads.get(who, Load())
        # As one gateway would know it that had sent everything itself: so that a full worker is seen to be full.
        total = Load(load.in_flight + load.foreign_in_flight, 0, load.queued_rows, load.latency_ewma_ms)
        state.suppose(view, who, total, now_s=0.0, avoided=who in avoided)
    told = explain(view, state, _request(question, region, draw), now_s=0.0, route=route)
    return Answer(told.decision, told.strategy, route.rules, told.considered[:LISTED], route.shadow, told.shadow)


def _request(question: Question, region: Region, draw: int) -> Request:
    """As a gateway makes it of what an application sends."""
    tenant, session = question.tenant, question.session_key
    return Request(
        question.model,
        question.version,
        region,
        session_key=f"{tenant}/{session}" if tenant and session else session,
        exclude=question.exclude,
        prefix=hashes_of(question.prompt, salt=f"{tenant}\0{question.model}"),
        draw=draw,
    )
