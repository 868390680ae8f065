"""Who is asked instead where a model does not answer: the models that a rule lists, in its order.

Decides which failures another model may make good, and which of those listed this caller may have, and in which version. Only
the list of the model that was asked for counts, so that there are no circles; a request asks four of it at most, within its
caller's deadline. A model that is full, or not loaded now, is passed by at once where one of the others has room, and waited
for where none has. Sends nothing: `gateway.dispatch` does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from gateway.admission import KeyFacts, RateLimited
from gateway.exchange import Exchange
from gateway.fleet import Fleet
from gateway.ledger import Ledger
from gateway.links.types import CallContext, Method
from gateway.metrics import GatewayMetrics
from gateway.refusals import ModelUnknown, RouteDenied, may_come
from gateway.routes import Routes
from gateway.tracing import note_event
from gateway.versions import VersionGone, split_name
from placement.routing.policy import choose
from placement.routing.state import HEARD_LIFETIME_S
from placement.rules import ALL_CAUSES, Cause, Route
from placement.types import Decision, Granted, Refusal, Request
from runtime.errors import Code, ContextExceeded, PenstockError
from runtime.ids import ModelName, ModelVersion

MAX_HOPS = 4
"""Models that one request asks besides the one it names."""

_GLANCED_AT = 8
"""Workers that are looked at before the policy is asked whether any has room."""

_COLD = (Refusal.NOT_READY, Refusal.UNKNOWN_MODEL, Refusal.UNKNOWN_VERSION, Refusal.NO_REGION)
_TEXT = frozenset({"chat", "completion"})
_FAILURES = frozenset(
    {
        Code.UNAVAILABLE,
        Code.INTERNAL,
        Code.UNKNOWN,
        Code.DATA_LOSS,
        Code.NOT_FOUND,
        Code.FAILED_PRECONDITION,
        Code.DEADLINE_EXCEEDED,
    }
)
"""NOT_FOUND: every worker that was thought to have the model had let it go. FAILED_PRECONDITION: an operator has to act first,
as where an upstream refuses the key. DEADLINE_EXCEEDED: an upstream's; where the caller's own is over, nobody is asked."""

_OWN_FAULTS = (ModelUnknown, VersionGone, RouteDenied, RateLimited)
"""A name that means nothing, what an operator forbade, and the caller's own limits are for no other model to make good."""


def cause_of(error: PenstockError) -> Cause | None:
    """Why the model did not answer; None: another would not help."""
    if isinstance(error, ContextExceeded):
        return Cause.CONTEXT
    if isinstance(error, _OWN_FAULTS):
        return None
    if error.code is Code.RESOURCE_EXHAUSTED:
        return Cause.OVERLOAD
    return Cause.FAILURE if error.code in _FAILURES else None


class Targets(Protocol):
    """What names mean, and who may have that: gateway.targets.Targets."""

    def find(self, key: KeyFacts, model: str, wanted: str = "", session_key: str = "") -> ModelVersion | None: ...

    def is_known(self, model: str) -> bool: ...


class Fallbacks:
    """Belongs to one event loop. `ledger` is the router's."""

    def __init__(self, routes: Routes, targets: Targets, fleet: Fleet, ledger: Ledger, metrics: GatewayMetrics) -> None:
        self._routes, self._fleet, self._targets = routes, fleet, targets
        self._ledger, self._metrics = ledger, metrics
        self._now_s = asyncio.get_running_loop().time

    def listed(self, method: Method, request: Request, route: Route, key: KeyFacts) -> Iterator[Request]:
        """The request to each of those listed that its caller may have and that can be asked so, MAX_HOPS at most."""
        asked = {(request.model, request.version)}
        for name in route.fallbacks:
            if len(asked) > MAX_HOPS:
                return
            target = self._target(name, key, request.session_key)
            if target is not None and target not in asked and self._takes(method, *target):
                asked.add(target)
                yield replace(request, model=target[0], version=target[1])

    def hindrance(self, request: Request, route: Route) -> Cause | None:
        """Why it is known beforehand that a worker would have to be waited for; None: one would not, or it is not known."""
        fleet = self._fleet
        if self._is_free(request, route):
            return None
        decision = self._decision(request, route)
        if isinstance(decision, Granted):
            return None if self._has_place(decision) else Cause.OVERLOAD
        if decision.reason is Refusal.ALL_FULL:
            return Cause.OVERLOAD
        is_cold = decision.reason in _COLD and fleet.synced
        return Cause.FAILURE if is_cold and may_come(fleet, request, decision, crosses=route.cross_region) else None

    def cause_of(self, request: Request, error: PenstockError) -> Cause | None:
        """As the function; that nobody holds a model which the registry knows is no fault of its name."""
        if isinstance(error, ModelUnknown) and self._targets.is_known(request.model):
            return Cause.FAILURE
        return cause_of(error)

    def has_room(self, request: Request, call: CallContext) -> bool:
        route = self._routes.at_home(call.tenant, request.model, request.region)
        decision = self._decision(request, route)
        return isinstance(decision, Granted) and self._has_place(decision)

    def pass_by(self, request: Request, cause: Cause) -> None:
        """This model is not asked for now, and wanted all the same: that is demand."""
        region = request.region or self._fleet.home
        version = request.version or self._fleet.newest(request.model, region)
        tally = self._ledger.tallies[region, request.model, version]
        if cause is Cause.OVERLOAD:
            tally.refuse()
        else:
            tally.miss()

    def count(self, request: Request, to: Request, cause: Cause) -> None:
        self._metrics.fell_back(request.model, to.model, cause.value)

    def is_over(self, call: CallContext) -> bool:
        return call.deadline_s is not None and call.deadline_s <= self._now_s()

    def _is_free(self, request: Request, route: Route) -> bool:
        """Whether a place is seen at a glance. It costs a tenth of a decision, and is enough for most requests."""
        fleet, region = self._fleet, request.region or self._fleet.home
        index = fleet.view.models.get(request.model)
        version = request.version or (index.newest_ready.get(region) if index is not None else None)
        if index is None or version is None or route.deny or route.allow:
            return False
        found, ours, others = index.ready.get((version, region)), fleet.state.in_flight.values, fleet.state.pressure.values
        seats = found.seats[:_GLANCED_AT] if found is not None else ()
        return any(ours[seat.slot] + others[seat.slot] < seat.capacity for seat in seats)

    def _has_place(self, granted: Granted) -> bool:
        """Whether the worker has one with what others sent there, as it said a moment ago: it refuses what it has none for."""
        view, state = self._fleet.view, self._fleet.state
        if self._now_s() - state.heard_at_s.values[granted.slot] >= HEARD_LIFETIME_S:
            return True
        load = state.load_of(view, granted.worker_id)
        return load.in_flight + load.foreign_in_flight < view.seats[granted.worker_id].capacity

    def _decision(self, request: Request, route: Route) -> Decision:
        fleet = self._fleet
        request = request if request.region else replace(request, region=fleet.home)
        return choose(fleet.view, fleet.state, request, now_s=self._now_s(), route=route)

    def _target(self, name: str, key: KeyFacts, session_key: str) -> tuple[ModelName, ModelVersion] | None:
        """What this name means to this caller; None: nothing, now."""
        model, wanted = split_name(name)
        if not key.allows(model):
            return None
        try:
            version = self._targets.find(key, model, wanted, session_key)
        except PenstockError:  # another tenant's, withdrawn, or an alias without a target
            return None
        return None if version is None else (ModelName(model), version)

    def _takes(self, method: Method, model: ModelName, version: ModelVersion) -> bool:
        """Whether it can be asked so, as far as its copies say: a prompt is nothing for a model that takes tensors."""
        if method is not Method.GENERATE:
            return True
        tasks = {copy.task for _, copy in self._fleet.copies(model, version)}
        return not tasks or not tasks.isdisjoint(_TEXT)


class Detour:
    """One request's way from the model it names to those that stand in for it."""

    __slots__ = ("_call", "_exchange", "_fallbacks", "_left", "_method", "_own", "_request", "_route")

    def __init__(
        self, fallbacks: Fallbacks, method: Method, request: Request, route: Route, call: CallContext, exchange: Exchange
    ) -> None:
        self._fallbacks, self._method = fallbacks, method
        self._request, self._route = request, route
        self._call, self._exchange = call, exchange
        self._left: deque[Request] | None = None
        """Who was not asked yet; None: nobody has looked."""
        self._own: PenstockError | None = None
        """What the model itself answered."""

    def first(self) -> Request:
        """Whom to ask first: the model itself, unless it would have to be waited for and another has room."""
        fallbacks, request = self._fallbacks, self._request
        cause = fallbacks.hindrance(request, self._route)
        if cause is None or cause not in self._route.fallback_on:
            return request
        others = self._others()
        for each in others:
            if fallbacks.has_room(each, self._call):
                fallbacks.pass_by(request, cause)
                others.remove(each)
                others.appendleft(request)
                return self._to(each, cause)
        return request

    def after(self, asked: Request, error: PenstockError) -> Request:
        """Whom to ask next. Raises what is to be answered where that is nobody."""
        cause, on = self._fallbacks.cause_of(asked, error), self._route.fallback_on
        if asked is self._request:
            self._own = error
        else:
            on = ALL_CAUSES  # whom to ask next is decided; why this one did not answer does not change it
        others = self._others() if cause in on and not self._fallbacks.is_over(self._call) else None
        if cause is None or not others:
            self._exchange.fell_back = ""
            if self._own is None or self._own is error:
                raise error
            raise self._own from error
        return self._to(others.popleft(), cause)

    def _to(self, request: Request, cause: Cause) -> Request:
        if request is self._request:
            self._exchange.fell_back = ""
        else:
            self._exchange.fell_back = self._request.model
            self._fallbacks.count(self._request, request, cause)
            note_event("fallback", model=self._request.model, to=request.model, why=cause.value)
        return request

    def _others(self) -> deque[Request]:
        if self._left is None:
            caller = self._exchange.caller
            listed = () if caller is None else self._fallbacks.listed(self._method, self._request, self._route, caller.key)
            self._left = deque(listed)
        return self._left
