"""Gateways, a scheduler and a worker that is full: everybody gets a place, nobody polls, and no place is given twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from gateway.capacity import Capacity
from gateway.fleet import Fleet
from gateway.links.link import WorkerLink
from gateway.links.types import CallContext
from gateway.metrics import GatewayMetrics
from gateway.peers import SchedulerClient
from gateway.routing import Router
from gateway.schedulers import Schedulers
from gateway.types import FleetNews
from placement.types import Request, Worker
from runtime.channel import inner_channel
from runtime.clock import SystemClock
from runtime.identity import Role
from tests.integration.test_capacity import HERE, MODEL, PAYLOAD, Mesh, SchedulerOn, mesh
from tests.support.waiting import eventually

__all__ = ["mesh"]
ASKED = Request(MODEL)


@asynccontextmanager
async def gateway(mesh: Mesh, name: str, scheduler: SchedulerOn) -> AsyncIterator[Router]:
    identity, clock, metrics = mesh.node(name, Role.GATEWAY), SystemClock(), GatewayMetrics(CollectorRegistry())

    def opened(address: str) -> SchedulerClient:
        return SchedulerClient(address, inner_channel(address, identity, Role.SCHEDULER))

    def open_link(worker: Worker) -> WorkerLink:
        return WorkerLink(worker.address, identity, worker.worker_id)

    known = opened(scheduler.address)
    async with known.channel:
        schedulers = Schedulers([known], opened, HERE, clock)
        fleet = Fleet(schedulers, open_link, clock, home=HERE)
        fleet.apply(FleetNews(True, tuple(mesh.view.workers.values())))
        router = Router(fleet, metrics, capacity=Capacity(schedulers, metrics))
        try:
            yield router
        finally:
            following = asyncio.create_task(fleet.run())
            await asyncio.sleep(0)
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


async def test_two_gateways_share_two_places_among_sixty_requests(mesh: Mesh) -> None:
    site, scheduler = await mesh.site(places=2), await mesh.scheduler()
    async with gateway(mesh, "one", scheduler) as one, gateway(mesh, "two", scheduler) as two:
        calls = [
            asyncio.ensure_future(router.infer(ASKED, PAYLOAD, CallContext(tenant=f"t{number % 3}")))
            for number in range(30)
            for router in (one, two)
        ]
        await eventually(lambda: site.in_flight == 2)
        seen = 0
        async with asyncio.timeout(20):
            while not all(call.done() for call in calls):
                seen = max(seen, site.in_flight)
                site.copy.finish()
                await asyncio.sleep(0.001)
        assert all(call.exception() is None for call in calls)
        assert seen == 2
        assert len(site.copy.began) == 60
        await eventually(lambda: site.in_flight == site.inference.holds.kept == site.waiting == 0)


async def test_a_caller_that_goes_leaves_no_one_waiting_at_the_worker(mesh: Mesh) -> None:
    site, scheduler = await mesh.site(places=1), await mesh.scheduler()
    (running,) = await mesh.fill(site)
    async with gateway(mesh, "one", scheduler) as router:
        waits = asyncio.ensure_future(router.infer(ASKED, PAYLOAD, CallContext(tenant="a")))
        await eventually(lambda: site.waiting == 1)
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        await eventually(lambda: site.waiting == 0)
        site.copy.finish()
        await running
        later = asyncio.ensure_future(router.infer(ASKED, PAYLOAD, CallContext(tenant="a")))
        await eventually(lambda: len(site.copy.began) == 2)
        site.copy.finish()
        assert await later
