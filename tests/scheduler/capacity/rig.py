"""A queue at work over workers that a test makes full and free, on a clock that stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from placement.copies.wishes import Placement
from placement.rules import DEFAULT_ROUTE, Route
from placement.types import Copy, CopyState, Worker
from placement.view import FleetView
from placement.waiting.queue import QueueBounds
from runtime.errors import PenstockError, ResourceExhausted, Unavailable
from runtime.ids import Digest, ModelName, ModelVersion, Region, TenantId, WorkerId
from scheduler.capacity.loop import Capacity
from scheduler.capacity.types import Asked, CapacityRules, Place
from scheduler.capacity.world import World
from tests.placement.fleets import DIGITS, HERE, V1, copy, worker
from tests.support.manual_clock import ManualClock, settle


@dataclass(eq=False)
class _Waiting:
    hold_id: str
    version: ModelVersion
    tenant: TenantId
    granted: asyncio.Future[None]


@dataclass
class Site:
    """One worker's places: who waits for one, the oldest first, and what is kept."""

    free: int = 0
    waiting: list[_Waiting] = field(default_factory=list)
    kept: dict[str, TenantId] = field(default_factory=dict)
    blocked: set[str] = field(default_factory=set)
    """Tenants that have their part."""
    failure: PenstockError | None = None
    asked: int = 0

    def settle(self) -> None:
        for each in list(self.waiting):
            if self.free and each.tenant not in self.blocked and not each.granted.done():
                self.free -= 1
                self.waiting.remove(each)
                self.kept[each.hold_id] = each.tenant
                each.granted.set_result(None)


class Sites:
    """Workers by name; implements `scheduler.capacity.holding.Peers`."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.by_id: dict[str, Site] = {}

    def __getitem__(self, name: str) -> Site:
        return self.by_id.setdefault(name, Site())

    async def hold(
        self,
        worker: Worker,
        *,
        hold_id: str,
        model: ModelName,
        version: ModelVersion,
        tenant: TenantId,
        wait_s: float,
        ttl_s: float,
        token_sha256: bytes = b"",
    ) -> ModelVersion:
        site = self[worker.worker_id]
        site.asked += 1
        if site.failure is not None:
            raise site.failure
        mine = _Waiting(hold_id, version, tenant, asyncio.get_running_loop().create_future())
        site.waiting.append(mine)
        site.settle()
        timer = asyncio.ensure_future(self._give_up(site, mine, wait_s))
        try:
            await mine.granted
        finally:
            timer.cancel()
            if mine in site.waiting:
                site.waiting.remove(mine)
        return version

    async def release(self, worker: Worker, hold_id: str) -> None:
        site = self[worker.worker_id]
        if site.kept.pop(hold_id, None) is not None:
            self.free(worker.worker_id)

    def free(self, name: str, places: int = 1) -> None:
        """So many places come back."""
        self[name].free += places
        self[name].settle()

    async def _give_up(self, site: Site, mine: _Waiting, wait_s: float) -> None:
        await self._clock.sleep(wait_s)
        if not mine.granted.done():
            mine.granted.set_exception(ResourceExhausted("no place came free"))


@dataclass
class Mesh:
    clock: ManualClock
    sites: Sites
    capacity: Capacity
    view: FleetView = field(default_factory=FleetView)
    wishes: list[Placement] = field(default_factory=list)
    leads: bool = True
    synced: bool = True
    routes: dict[str, Route] = field(default_factory=dict)
    missed: list[tuple[str, str, str]] = field(default_factory=list)

    def show(self, *workers: Worker) -> None:
        """These are in the fleet from now on, as they are here."""
        self.view = self.view.with_changes(workers)
        self.capacity.touch()

    def lose(self, name: str) -> None:
        self.view = self.view.with_changes((), [WorkerId(name)])
        self.capacity.touch()

    def route(self, tenant: str, **options: Any) -> None:
        self.routes[tenant] = replace(DEFAULT_ROUTE, **options)

    def ask(self, tenant: str = "a", *, region: Region = HERE, **options: Any) -> asyncio.Task[Place]:
        asked = Asked(DIGITS, region, TenantId(tenant), **options)
        return asyncio.get_running_loop().create_task(self.capacity.wait(asked))

    def waiting_at(self, name: str) -> str:
        """Whose holds wait there, in order."""
        return "".join(each.tenant for each in self.sites[name].waiting)


def ready(
    name: str, *, region: Region = HERE, capacity: int = 4, version: str = V1, state: CopyState = CopyState.READY
) -> Worker:
    return worker(name, copy(state, version=version), region=region, capacity=capacity)


def failed(name: str, reason: str) -> Worker:
    held = Copy(DIGITS, V1, Digest("d" * 64), CopyState.FAILED, reason)
    return worker(name, held)


def wish(*, copies: int = 1, region: Region = HERE, version: str = V1) -> Placement:
    return Placement(DIGITS, ModelVersion(version), Digest("d" * 64), region, copies, 0)


@asynccontextmanager
async def queueing(
    *workers: Worker, bounds: QueueBounds | None = None, rules: CapacityRules | None = None
) -> AsyncIterator[Mesh]:
    clock = ManualClock()
    sites = Sites(clock)
    made: list[Mesh] = []
    world = World(
        view=lambda: made[0].view,
        wishes=lambda: made[0].wishes,
        leads=lambda _: made[0].leads,
        route_of=lambda tenant, model, region: made[0].routes.get(tenant, DEFAULT_ROUTE),
        synced=lambda: made[0].synced,
        on_missed=lambda model, version, region: made[0].missed.append((model, version, region)),
    )
    mesh = Mesh(clock, sites, Capacity(sites, world, clock, Random(1), bounds=bounds, rules=rules))
    made.append(mesh)
    mesh.show(*workers)
    async with mesh.capacity.running():
        yield mesh


async def places(*asks: asyncio.Task[Place]) -> list[str]:
    """At which workers."""
    return [place.worker_id for place in await asyncio.gather(*asks)]


def gone() -> Unavailable:
    return Unavailable("nobody answers at this address")


async def granted(asks: list[asyncio.Task[Place]]) -> list[int]:
    """Which of them have a place by now."""
    await settle()
    return [number for number, ask in enumerate(asks) if ask.done() and not ask.cancelled() and ask.exception() is None]
