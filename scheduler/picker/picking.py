"""Picks endpoints for a request: the policy's choice first, then who would be next, for Envoy to fall back to.

Reads the outlook and reserves in it what it grants; `settle` takes that back. Workers without a KServe port of their own are no
endpoints. Never does I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from placement.routing.policy import choose
from placement.rules import Route
from placement.types import Granted, Outcome, Refusal, Refused, Request
from runtime.errors import Code
from runtime.ids import ModelName, Region, TenantId, WorkerId
from scheduler.outlook import Outlook
from scheduler.picker.types import Asked, Picked, TurnedAway

FALLBACKS = 2
_SHED_RETRY_S = 1.0
_NOBODY = TenantId("")


class Picker:
    """Belongs to one event loop."""

    def __init__(self, outlook: Outlook, region: Region, route_of: Callable[[TenantId, ModelName, Region], Route]) -> None:
        self._outlook, self._region, self._route_of = outlook, region, route_of
        self.picked = 0
        self.turned_away = 0

    def pick(self, asked: Asked, subset: Collection[str] | None = None, draw: int = 0) -> Picked | TurnedAway:
        """The endpoints for it, of these alone where a subset is given. `draw`: 64 random bits."""
        now_s, outlook = self._outlook.look(), self._outlook
        route = self._route_of(_NOBODY, asked.model, self._region)
        request = Request(
            asked.model,
            asked.version,
            self._region,
            session_key=asked.session_key,
            exclude=self._not_endpoints(asked.model, subset),
            draw=draw,
        )
        found: list[Granted] = []
        while len(found) <= FALLBACKS:
            decision = choose(outlook.view, outlook.state, request, now_s=now_s, route=route)
            if isinstance(decision, Refused):
                break
            found.append(decision)
            request = replace(request, exclude=request.exclude | {decision.worker_id})
        if not found:
            assert isinstance(decision, Refused)  # noqa: S101 (the loop ended by it)
            self.turned_away += 1
            return self._turned_away(decision, asked)
        outlook.state.reserve(found[0])
        self.picked += 1
        return Picked(tuple(outlook.view.workers[each.worker_id].kserve_address for each in found), found[0])

    def settle(self, picked: Picked, outcome: Outcome, latency_ms: float | None) -> None:
        """The request has ended, for better or worse."""
        self._outlook.state.release(picked.granted, outcome, now_s=self._outlook.look(), latency_ms=latency_ms)

    def _not_endpoints(self, model: ModelName, subset: Collection[str] | None) -> frozenset[WorkerId]:
        index, workers = self._outlook.view.models.get(model), self._outlook.view.workers
        addresses = {who: workers[who].kserve_address for who in index.holders} if index is not None else {}
        return frozenset(who for who, at in addresses.items() if not at or (subset is not None and at not in subset))

    def _turned_away(self, refused: Refused, asked: Asked) -> TurnedAway:
        if refused.reason is Refusal.ALL_FULL:
            return TurnedAway(429, Code.RESOURCE_EXHAUSTED, refused.detail, _SHED_RETRY_S)
        if refused.reason is Refusal.ALL_EXCLUDED:
            why = f"no worker with model {asked.model!r} is an endpoint that may be picked: a worker is one with --kserve-port"
            return TurnedAway(503, Code.UNAVAILABLE, why)
        return TurnedAway(503, Code.UNAVAILABLE, refused.detail)
