"""A router over a fleet in memory, whose scheduler and workers a test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from gateway.capacity import Capacity, CapacitySettings, CapacitySource
from gateway.fleet import Fleet
from gateway.links.types import CallContext
from gateway.metrics import GatewayMetrics
from gateway.routing import Router, RoutingSettings
from gateway.types import FleetNews
from placement.copies.assign import Placement
from placement.routing.retry_budget import RetryBudget
from placement.rules import RoutingPolicy
from placement.types import ANY_REGION, Request, Strategy, Worker
from runtime.clock import SystemClock
from runtime.ids import ModelName, Region, WorkerId
from tests.gateway.fakes import FakeLink, FakeSource, copy_of, wish_of, worker_of

M = Request(ModelName("m"))
CALL = CallContext()


@dataclass
class Routed:
    fleet: Fleet
    router: Router
    source: FakeSource
    links: dict[str, FakeLink]
    registry: CollectorRegistry
    metrics: GatewayMetrics

    async def told(self, *workers: Worker, wishes: tuple[str, ...] = ()) -> None:
        changed = self.fleet.changed
        self.source.tell(*workers, wishes=[wish_of(model) for model in wishes])
        await changed.wait()

    def tell(self, *workers: Worker, wishes: tuple[Placement, ...] | None = None, policy: RoutingPolicy | None = None) -> None:
        self.fleet.apply(FleetNews(True, workers, placements=wishes, policy=policy))

    def in_flight(self) -> dict[str, int]:
        return {who: self.fleet.state.load_of(self.fleet.view, WorkerId(who)).in_flight for who in self.links}

    def counted(self, metric: str, **labels: str) -> float:
        return self.registry.get_sample_value(metric, labels) or 0.0


@asynccontextmanager
async def routed(
    *workers: Worker,
    cold_wait_s: float = 5.0,
    budget: RetryBudget | None = None,
    links: dict[str, FakeLink] | None = None,
    capacity: CapacitySource | None = None,
    waiters: int = 8,
    capacity_wait_s: float = 5.0,
    home: Region = ANY_REGION,
    cross_region: bool = False,
) -> AsyncIterator[Routed]:
    made = {} if links is None else links
    source, registry = FakeSource(), CollectorRegistry()

    def open_link(worker: Worker) -> FakeLink:
        return made.setdefault(worker.worker_id, FakeLink(worker.address))

    fleet = Fleet(source, open_link, SystemClock(), home=home, cross_region=cross_region)
    settings, metrics = RoutingSettings(Strategy.ROUND_ROBIN, cold_wait_s, cross_region), GatewayMetrics(registry)
    asked = None if capacity is None else Capacity(capacity, metrics, CapacitySettings(waiters, capacity_wait_s))
    routed = Routed(fleet, Router(fleet, metrics, settings, budget, asked), source, made, registry, metrics)
    following = asyncio.create_task(fleet.run())
    try:
        if workers:
            await routed.told(*workers)
        yield routed
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def pair() -> tuple[Worker, Worker]:
    return worker_of("a", copy_of("m")), worker_of("b", copy_of("m"))
