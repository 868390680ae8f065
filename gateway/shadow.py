"""What another strategy would have decided, beside the one that decides: counted, and told now and then.

A rule of the routing policy names it. Nothing is sent by it and no turn moves. Costs as much as a decision for each request
that the rule matches, and nothing for others.
"""

from __future__ import annotations

from typing import Protocol

import structlog

from placement.routing.explain import shadow_choice
from placement.routing.state import RoutingState
from placement.rules import Route
from placement.types import Decision, Granted, Request
from placement.view import FleetView
from runtime.ids import WorkerId

TOLD_EVERY_S = 1.0
"""A difference is logged at most so often; the metric has all of them."""

_log = structlog.get_logger("penstock.shadow")


class Fleet(Protocol):
    """What is chosen from: gateway.fleet.Fleet."""

    @property
    def view(self) -> FleetView: ...

    @property
    def state(self) -> RoutingState: ...


class Metrics(Protocol):
    """What is counted: gateway.metrics.GatewayMetrics."""

    def shadowed(self, strategy: str, shadow: str, *, agreed: bool) -> None: ...


class Shadow:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._told_s = -TOLD_EVERY_S

    def compare(self, fleet: Fleet, request: Request, route: Route, decision: Decision, now_s: float) -> None:
        """Before the decision is reserved: both are to see the same fleet. `request` has its random bits."""
        other = shadow_choice(fleet.view, fleet.state, request, now_s=now_s, route=route)
        if other is None or route.shadow is None:
            return
        chosen, rather = _worker(decision), _worker(other)
        self._metrics.shadowed(route.strategy.value, route.shadow.value, agreed=chosen == rather)
        if chosen != rather and now_s - self._told_s >= TOLD_EVERY_S:
            self._told_s = now_s
            _log.info(
                "shadow_differs",
                model=request.model,
                strategy=route.strategy.value,
                shadow=route.shadow.value,
                worker_id=chosen,
                shadow_worker_id=rather,
            )


def _worker(decision: Decision) -> WorkerId | None:
    return decision.worker_id if isinstance(decision, Granted) else None
