"""By which rules a request is routed: what the routing policy in force comes to for its tenant, model and region.

Owns the routes worked out so far, for as long as their policy is in force; there are never more than a bound. Where there are
no rules, nothing is looked up.
"""

from __future__ import annotations

from typing import Protocol

from placement.rules import Route, RoutingPolicy, route_for
from placement.types import ANY_REGION
from runtime.ids import ModelName, Region, TenantId

MAX_ROUTES = 4_096


class Fleet(Protocol):
    """Hears the policy: gateway.fleet.Fleet."""

    @property
    def policy(self) -> RoutingPolicy: ...

    @property
    def home(self) -> Region: ...


class Routes:
    def __init__(self, fleet: Fleet, base: Route) -> None:
        """`base` holds where no rule says anything."""
        self._fleet, self._base = fleet, base
        self._policy: RoutingPolicy | None = None
        self._known: dict[tuple[str, ModelName, Region], Route] = {}
        self._has_detours = False

    @property
    def has_detours(self) -> bool:
        """Whether any rule names fallbacks or hedges; where none does, nothing of that has to be looked up."""
        policy = self._fleet.policy
        if policy is not self._policy:
            self._take(policy)
        return self._has_detours

    def of(self, tenant: str, model: ModelName, region: Region) -> Route:
        policy = self._fleet.policy
        if not policy.rules:
            return self._base
        if policy is not self._policy:
            self._take(policy)
        route = self._known.get((tenant, model, region))
        return route if route is not None else self._work_out(policy, tenant, model, region)

    def at_home(self, tenant: str, model: str, region: Region = ANY_REGION) -> Route:
        """Of a request from this region; any: from home."""
        return self.of(tenant, ModelName(model), region or self._fleet.home)

    def _take(self, policy: RoutingPolicy) -> None:
        self._policy = policy
        self._known.clear()
        self._has_detours = any(rule.detours for rule in policy.rules)

    def _work_out(self, policy: RoutingPolicy, tenant: str, model: ModelName, region: Region) -> Route:
        if len(self._known) >= MAX_ROUTES:  # callers choose the names: any that is wanted again is soon back
            self._known.clear()
        route = route_for(policy, TenantId(tenant), model, region, self._base)
        self._known[tenant, model, region] = route
        return route
