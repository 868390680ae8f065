"""What a scheduler offers beside the fleet itself, put together: demand, capacity queue, reservations, routing, picker.

Owns what its rooms share: the outlook by which they choose, the routes that the policy comes to. Decides nothing.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from placement.rules import Route, route_for
from runtime.clock import Clock
from runtime.ids import ModelName, Region, TenantId
from runtime.keyvalue import KeyValueStore
from scheduler.capacity.loop import Capacity
from scheduler.capacity.servicer import CapacityServicer
from scheduler.capacity.world import World
from scheduler.demand.intake import DemandIntake
from scheduler.demand.servicer import DemandServicer
from scheduler.loop import Scheduler
from scheduler.outlook import Outlook
from scheduler.picker.picking import Picker
from scheduler.reservations.desk import Desk
from scheduler.reservations.servicer import ReservationServicer
from scheduler.routing.explaining import Explainer
from scheduler.routing.servicer import RoutingServicer
from scheduler.routing.store import RoutingPolicies
from scheduler.servicer import Rooms
from scheduler.workers import WorkerPeers

_ROUTES = 4_096
"""Kept at once, of one policy."""


class Services:
    """Belongs to one event loop. Made before the scheduler's loops run."""

    def __init__(
        self,
        scheduler: Scheduler,
        store: KeyValueStore,
        workers: WorkerPeers,
        home: Region,
        clock: Clock,
        rng: random.Random,
        base: Route,
    ) -> None:
        """`base`: what gateways do where no rule says anything."""
        self._scheduler, self._base = scheduler, base
        self._routes: dict[tuple[TenantId, ModelName, Region], Route] = {}
        self.intake, self.policies = DemandIntake(clock), RoutingPolicies(store, clock)
        self.outlook = Outlook(scheduler.fleet, scheduler.board, clock, self.intake.loads, home)
        world = World(
            view=lambda: self.outlook.view,
            wishes=scheduler.control.wishes,
            leads=lambda region: scheduler.leads(region) is not None,
            route_of=self.route_of,
            on_missed=self.intake.missed,
            shortage=scheduler.reconciler.shortage,
            synced=scheduler.synced,
        )
        self.capacity = Capacity(workers, world, clock, rng)
        members = lambda: scheduler.fleet.members  # noqa: E731
        self.desk = Desk(self.outlook, members, workers, self.route_of, clock, synced=scheduler.synced)
        self.picker = Picker(self.outlook, home, self.route_of)
        policy = lambda: self.policies.current  # noqa: E731
        explainer = Explainer(self.outlook, self.intake, policy, home, rng, base, self._proximity, self.capacity.prospect)
        self.rooms = Rooms(
            demand=DemandServicer(self.intake),
            capacity=CapacityServicer(self.capacity, home, clock),
            reservations=ReservationServicer(self.desk, home),
            routing=RoutingServicer(self.policies, explainer),
        )
        self._listen()

    def route_of(self, tenant: TenantId, model: ModelName, region: Region) -> Route:
        """What the policy in force comes to."""
        key = tenant, model, region
        if (known := self._routes.get(key)) is not None:
            return known
        if len(self._routes) >= _ROUTES:
            self._routes.clear()
        route = self._routes[key] = route_for(self.policies.current, tenant, model, region, self._base)
        return route

    def _proximity(self) -> Mapping[Region, float]:
        return self.outlook.state.proximity

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the rooms' loops while the context lasts."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.policies.running())
            await stack.enter_async_context(self.capacity.running())
            yield

    def _listen(self) -> None:
        scheduler = self._scheduler
        scheduler.reconciler.follow(self.intake)
        scheduler.on_delta.append(self.outlook.follow)
        scheduler.on_change.append(self.capacity.touch)
        scheduler.audience.policy = lambda: self.policies.known
        self.policies.on_change += [self._routes.clear, scheduler.audience.tell_policy, self.capacity.touch]
