"""By which rules a request is routed: what the routing policy in force comes to for its tenant, model and region.

Owns the routes worked out so far, for as long as their policy is in force; there are never more than a bound. Where there are
no rules, nothing is looked up.
"""

from __future__ import annotations

from typing import Protocol

from placement.rules import Route, RoutingPolicy, route_for
from runtime.ids import ModelName, Region, TenantId

MAX_ROUTES = 4_096


class Fleet(Protocol):
    """Hears the policy: gateway.fleet.Fleet."""

    @property
    def policy(self) -> RoutingPolicy: ...


class Routes:
    def __init__(self, fleet: Fleet, base: Route) -> None:
        """`base` holds where no rule says anything."""
        self._fleet, self._base = fleet, base
        self._policy: RoutingPolicy | None = None
        self._known: dict[tuple[str, ModelName, Region], Route] = {}

    def of(self, tenant: str, model: ModelName, region: Region) -> Route:
        policy = self._fleet.policy
        if not policy.rules:
            return self._base
        if policy is not self._policy:
            self._policy = policy
            self._known.clear()
        route = self._known.get((tenant, model, region))
        return route if route is not None else self._work_out(policy, tenant, model, region)

    def _work_out(self, policy: RoutingPolicy, tenant: str, model: ModelName, region: Region) -> Route:
        if len(self._known) >= MAX_ROUTES:  # callers choose the names: any that is wanted again is soon back
            self._known.clear()
        route = route_for(policy, TenantId(tenant), model, region, self._base)
        self._known[tenant, model, region] = route
        return route
