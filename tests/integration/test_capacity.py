"""The capacity queue whole: gateways that found no room, a scheduler, and workers that are full, over mTLS on loopback."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import grpc.aio
import pytest
from inference import grpc_service_pb2
from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc

from gateway.links.link import WorkerLink
from gateway.links.types import CallContext
from placement.copies.wishes import Placement
from placement.rules import DEFAULT_ROUTE, Route
from placement.types import Copy, CopyState, Worker
from placement.view import FleetView
from runtime.channel import inner_channel
from runtime.clock import SystemClock
from runtime.errors import Code, DeadlineExceeded, PenstockError
from runtime.identity import Authority, NodeIdentity, Role
from runtime.ids import Digest, ModelName, ModelVersion, Region, TenantId, WorkerId
from runtime.memory_store import MemoryStore
from runtime.notices import NoticeBoard
from runtime.records import RecordVerifier
from runtime.serving import Listen, serving
from runtime.status import error_of
from scheduler.capacity.loop import Capacity
from scheduler.capacity.servicer import CapacityServicer
from scheduler.capacity.types import CapacityRules
from scheduler.capacity.world import World
from scheduler.loop import Scheduler
from scheduler.placements import Placements
from scheduler.presence import PresenceReader
from scheduler.servicer import SERVICES, FleetServicer, Rooms
from scheduler.workers import TooManyWorkers, WorkerPeers
from tests.support.forwarder import forwarder_to
from tests.support.waiting import eventually
from tests.worker.slow_copy import SlowCopy
from worker.execute.execution import SERVICE, Execution
from worker.execute.hold_service import HoldService
from worker.inference import TableInference
from worker.models import ModelTable
from worker.quota import QuotaPolicy

HERE, MODEL = Region("here"), ModelName("m")
READY = Copy(MODEL, ModelVersion("1"), Digest("d" * 64), CopyState.READY)
PAYLOAD = grpc_service_pb2.ModelInferRequest(model_name=MODEL).SerializeToString()


@dataclass
class Site:
    """A worker that answers."""

    worker: Worker
    copy: SlowCopy
    inference: TableInference
    execution: Execution
    link: WorkerLink

    @property
    def waiting(self) -> int:
        return self.inference.holds.waiting

    @property
    def in_flight(self) -> int:
        return self.inference.guard.in_flight

    async def call(self, tenant: str, hold_id: str = "") -> None:
        await self.link.call(MODEL, "1", PAYLOAD, CallContext(tenant=tenant, hold_id=hold_id))


@dataclass
class SchedulerOn:
    """A scheduler's half: its queue, and the port of FleetService."""

    capacity: Capacity
    peers: WorkerPeers
    stub: scheduler_pb2_grpc.FleetServiceStub
    address: str

    async def await_capacity(self, tenant: str = "a", **fields: Any) -> scheduler_pb2.AwaitCapacityResponse:
        """As a gateway asks. Raises what it is told."""
        request = scheduler_pb2.AwaitCapacityRequest(model=MODEL, region=HERE, tenant=tenant)
        for name, value in fields.items():
            setattr(request, name, value)
        try:
            return await self.stub.AwaitCapacity(request)
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure


@dataclass
class Mesh:
    folder: Path
    authority: Authority
    stack: AsyncExitStack
    view: FleetView = field(default_factory=FleetView)
    wishes: list[Placement] = field(default_factory=list)
    routes: dict[str, Route] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)

    def node(self, name: str, role: Role) -> NodeIdentity:
        return self.authority.enrol(self.folder / name, role)

    async def site(self, *, places: int, share: float = 1.0) -> Site:
        identity = self.node(f"worker-{len(self.sites)}", Role.WORKER)
        table, copy = ModelTable(), SlowCopy(MODEL, "1")
        table.add(copy)
        inference = TableInference(table, quota=QuotaPolicy(places, share))
        worker_id = WorkerId(identity.node_id)
        execution = Execution(inference, worker_id, asyncio.Event(), holds=HoldService(inference, table))
        opening = serving([Listen("127.0.0.1", 0, identity)], [execution.register], [SERVICE], drain_grace_s=0.1)
        running = await self.stack.enter_async_context(opening)
        worker = Worker(worker_id, HERE, f"127.0.0.1:{running.ports[0]}", copies=(READY,), max_in_flight=places)
        link = await self.stack.enter_async_context(WorkerLink(worker.address, self.node("gateway", Role.GATEWAY), worker_id))
        assert await link.wait_connected(5)
        self.view = self.view.with_worker(worker)
        self.sites.append(Site(worker, copy, inference, execution, link))
        return self.sites[-1]

    async def scheduler(self, rules: CapacityRules | None = None) -> SchedulerOn:
        return await self.stack.enter_async_context(self.scheduling(rules))

    @asynccontextmanager
    async def scheduling(self, rules: CapacityRules | None = None) -> AsyncIterator[SchedulerOn]:
        identity, clock = self.node(f"scheduler-{os.urandom(4).hex()}", Role.SCHEDULER), SystemClock()
        world = World(
            lambda: self.view,
            lambda: self.wishes,
            leads=lambda _: True,
            route_of=lambda tenant, model, region: self.routes.get(tenant, DEFAULT_ROUTE),
        )
        store, board = MemoryStore(), NoticeBoard()
        reader = PresenceReader(RecordVerifier(self.authority.certificate_pem, revocations=board.revocations))
        fleet = Scheduler(store, reader, clock, Random(1), board)
        async with WorkerPeers(identity) as peers:
            capacity = Capacity(peers, world, clock, Random(), rules=rules)
            rooms = Rooms(capacity=CapacityServicer(capacity, HERE, clock))
            servicer = FleetServicer(fleet, Placements(store, fleet.control, HERE), rooms)
            register = partial(scheduler_pb2_grpc.add_FleetServiceServicer_to_server, servicer)
            gateway = self.node("gateway", Role.GATEWAY)
            opening = serving([Listen("127.0.0.1", 0, identity)], [register], SERVICES, drain_grace_s=0.1)
            async with opening as running, capacity.running():
                address = f"127.0.0.1:{running.ports[0]}"
                async with inner_channel(address, gateway, Role.SCHEDULER) as channel:
                    yield SchedulerOn(capacity, peers, scheduler_pb2_grpc.FleetServiceStub(channel), address)

    async def fill(self, site: Site, tenant: str = "filler") -> list[asyncio.Task[None]]:
        """Have every place of a worker taken."""
        calls = [asyncio.ensure_future(site.call(tenant)) for _ in range(site.worker.max_in_flight)]
        await eventually(lambda: site.in_flight == site.worker.max_in_flight)
        return calls


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        yield Mesh(tmp_path, Authority.open(tmp_path / "ca"), stack)


async def through_the_queue(mesh: Mesh, scheduler: SchedulerOn, tenant: str) -> str:
    """A request that found no room, from its wait to its answer; the tenant."""
    held = await scheduler.await_capacity(tenant)
    site = next(each for each in mesh.sites if each.worker.worker_id == held.worker_id)
    await site.call(tenant, held.hold_id)
    return tenant


async def test_a_request_that_found_no_room_waits_and_enters_on_the_place_that_came_free(mesh: Mesh) -> None:
    site, scheduler = await mesh.site(places=1), await mesh.scheduler()
    (running,) = await mesh.fill(site)
    waits = asyncio.ensure_future(through_the_queue(mesh, scheduler, "a"))
    await eventually(lambda: site.waiting == 1)
    site.copy.finish()
    await running
    await eventually(lambda: [call.tenant for call in site.copy.began] == ["filler", "a"])
    assert site.in_flight == 1  # the place that was kept, and no second one
    site.copy.finish()
    assert await waits == "a"
    await eventually(lambda: site.in_flight == site.inference.holds.kept == site.waiting == 0)


async def test_tenants_that_all_wait_are_served_by_their_shares_whoever_came_first(mesh: Mesh) -> None:
    mesh.routes["gold"] = replace(DEFAULT_ROUTE, share=3)
    sites = [await mesh.site(places=2) for _ in range(2)]
    scheduler = await mesh.scheduler()
    plugs = [call for site in sites for call in await mesh.fill(site)]
    waits: list[asyncio.Task[str]] = []
    for tenant, number in (("flood", 90), ("gold", 45), ("modest", 15)):
        waits += [asyncio.ensure_future(through_the_queue(mesh, scheduler, tenant)) for _ in range(number)]
    await eventually(lambda: len(scheduler.capacity.queue) == 150)
    for site in sites:
        site.copy.takes_s = 0.002
        site.copy.finish(2)
    async with asyncio.timeout(20):
        done = [await wait for wait in asyncio.as_completed(waits)]
        await asyncio.gather(*plugs)
    first = Counter(done[:60])
    assert abs(first["gold"] - 3 * first["modest"]) <= 5  # answers of one moment may change places
    assert abs(first["flood"] - first["modest"]) <= 3
    assert Counter(done) == {"flood": 90, "gold": 45, "modest": 15}
    assert scheduler.capacity.granted == 150


async def test_a_burst_of_new_requests_cannot_overtake_the_queue(mesh: Mesh) -> None:
    site, scheduler = await mesh.site(places=2), await mesh.scheduler()
    running = await mesh.fill(site)
    waits = [asyncio.ensure_future(through_the_queue(mesh, scheduler, "queued")) for _ in range(4)]
    await eventually(lambda: site.waiting == 4)
    refused: list[PenstockError] = []

    async def burst() -> None:
        while not all(wait.done() for wait in waits):
            try:
                await site.call("burst")
            except PenstockError as error:
                refused.append(error)

    bursting = [asyncio.ensure_future(burst()) for _ in range(4)]
    for served in range(3, 7):
        refused.clear()
        await eventually(lambda: len(refused) >= 20)
        site.copy.finish()
        await eventually(partial(_has_begun, site, served))
    assert {error.code for error in refused} == {Code.RESOURCE_EXHAUSTED}
    assert [call.tenant for call in site.copy.began[2:6]] == ["queued"] * 4
    for task in bursting:
        task.cancel()
    site.copy.finish(2)
    await asyncio.gather(*waits, *running)


def _has_begun(site: Site, number: int) -> bool:
    return len(site.copy.began) >= number


async def test_a_gateway_that_went_away_leaves_its_place_to_the_next(mesh: Mesh) -> None:
    site, scheduler = await mesh.site(places=1), await mesh.scheduler()
    running = await mesh.fill(site)
    gone = asyncio.ensure_future(scheduler.await_capacity("gone"))
    await eventually(lambda: len(scheduler.capacity.queue) == 1)
    stays = asyncio.ensure_future(through_the_queue(mesh, scheduler, "stays"))
    await eventually(lambda: len(scheduler.capacity.queue) == 2)
    gone.cancel()
    await eventually(lambda: scheduler.capacity.withdrawn == 1)
    site.copy.finish()
    await eventually(lambda: [call.tenant for call in site.copy.began[1:]] == ["stays"])
    site.copy.finish()
    await asyncio.gather(stays, *running)
    await eventually(lambda: site.waiting == site.in_flight == 0)


async def test_a_place_that_is_not_used_comes_back(mesh: Mesh) -> None:
    site, scheduler = await mesh.site(places=1), await mesh.scheduler(CapacityRules(hold_ttl_s=0.1))
    held = await scheduler.await_capacity()
    assert held.expires_after_ms <= 100
    await eventually(lambda: site.inference.holds.expired == 1)
    assert site.in_flight == 0
    late = asyncio.ensure_future(site.call("a", held.hold_id))  # is let in as any other
    await eventually(lambda: site.in_flight == 1)
    site.copy.finish()
    await late


async def test_a_deadline_ends_the_wait_while_every_worker_is_busy(mesh: Mesh) -> None:
    site, scheduler = await mesh.site(places=1), await mesh.scheduler()
    running = await mesh.fill(site)
    with pytest.raises(DeadlineExceeded, match="no worker with model 'm' had a place for it"):
        await scheduler.await_capacity(timeout_us=150_000)
    assert scheduler.capacity.expired == 1
    await eventually(lambda: site.waiting == 0)
    site.copy.finish()
    await asyncio.gather(*running)


async def test_holds_of_a_scheduler_that_is_gone_end_and_another_one_goes_on(mesh: Mesh) -> None:
    """Its connection breaks as when its process is killed: nothing is withdrawn, nothing released."""
    site, scheduler = await mesh.site(places=2), await mesh.scheduler()
    running = await mesh.fill(site)
    whole = mesh.view
    async with forwarder_to(int(site.worker.address.rpartition(":")[2])) as forwarder:
        mesh.view = whole.with_worker(replace(site.worker, address=forwarder.endpoint))
        async with mesh.scheduling(CapacityRules(hold_ttl_s=0.3)) as dying:
            waits = [asyncio.ensure_future(dying.await_capacity()) for _ in range(2)]
            await eventually(lambda: site.waiting == 2)
            site.copy.finish()  # one place is granted, and its gateway will not come
            await eventually(lambda: dying.capacity.granted == 1)
            await forwarder.cut()
            await eventually(lambda: site.waiting == 0)
    answers = await asyncio.gather(*waits, return_exceptions=True)
    assert sorted(isinstance(answer, BaseException) for answer in answers) == [False, True]
    await eventually(lambda: site.inference.holds.expired == 1)
    assert site.in_flight == 1
    site.copy.finish()
    await asyncio.gather(*running)
    mesh.view = whole
    served = asyncio.ensure_future(through_the_queue(mesh, scheduler, "a"))
    await eventually(lambda: [call.tenant for call in site.copy.began[2:]] == ["a"])
    site.copy.finish()
    await served


async def test_a_worker_that_drains_gives_no_places_and_the_rest_do(mesh: Mesh) -> None:
    leaving, staying, scheduler = await mesh.site(places=1), await mesh.site(places=1), await mesh.scheduler()
    running = [*await mesh.fill(leaving), *await mesh.fill(staying)]
    wait = asyncio.ensure_future(through_the_queue(mesh, scheduler, "a"))
    await eventually(lambda: leaving.waiting == staying.waiting == 1)
    await scheduler.peers.drain(leaving.worker, 30.0)
    assert leaving.execution.draining
    await eventually(lambda: leaving.waiting == 0)
    staying.copy.finish()
    await eventually(lambda: [call.tenant for call in staying.copy.began[1:]] == ["a"])
    staying.copy.finish()
    await wait
    leaving.copy.finish()
    await asyncio.gather(*running)


async def test_a_tenants_part_of_a_worker_holds_for_what_waited_too(mesh: Mesh) -> None:
    site, scheduler = await mesh.site(places=4, share=0.5), await mesh.scheduler()
    flood = [asyncio.ensure_future(site.call("flood")) for _ in range(2)]
    await eventually(lambda: site.in_flight == 2)
    more = [asyncio.ensure_future(through_the_queue(mesh, scheduler, "flood")) for _ in range(3)]
    await eventually(lambda: site.waiting >= 3)
    assert site.in_flight == 2  # two places are free, and not for this tenant
    other = asyncio.ensure_future(through_the_queue(mesh, scheduler, "other"))
    await eventually(lambda: site.in_flight == 3)
    assert [call.tenant for call in site.copy.began].count("flood") == 2
    while not all(task.done() for task in (*flood, *more, other)):
        site.copy.finish()
        await asyncio.sleep(0.005)
    await asyncio.gather(*flood, *more, other)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model": ""}, "model is empty"),
        ({"version": "latest"}, "version 'latest' is no positive decimal number"),
        ({"tenant": "t" * 300}, "tenant has 300 characters; up to 256 are taken"),
    ],
)
async def test_what_makes_no_sense_is_refused_with_what_is_expected(mesh: Mesh, fields: dict[str, Any], says: str) -> None:
    scheduler = await mesh.scheduler()
    with pytest.raises(PenstockError, match=says) as refused:
        await scheduler.await_capacity(**fields)
    assert refused.value.code is Code.INVALID_ARGUMENT


async def test_gateways_alone_may_wait(mesh: Mesh) -> None:
    scheduler = await mesh.scheduler()
    async with inner_channel(scheduler.address, mesh.node("worker-x", Role.WORKER), Role.SCHEDULER) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await scheduler_pb2_grpc.FleetServiceStub(channel).AwaitCapacity(scheduler_pb2.AwaitCapacityRequest(model=MODEL))
    assert error_of(refused.value).code is Code.PERMISSION_DENIED


async def test_so_many_workers_are_called_at_once_and_idle_channels_make_room(mesh: Mesh) -> None:
    sites = [await mesh.site(places=1) for _ in range(3)]
    async with WorkerPeers(mesh.node("a scheduler", Role.SCHEDULER), at_most=2) as peers:
        for site in sites:
            await peers.release(site.worker, "0" * 32)
        assert len(peers) == 2
        running = [*await mesh.fill(sites[0]), *await mesh.fill(sites[1])]
        holds = [
            asyncio.ensure_future(
                peers.hold(
                    site.worker,
                    hold_id=f"{number:032x}",
                    model=MODEL,
                    version=ModelVersion("1"),
                    tenant=TenantId("a"),
                    wait_s=60.0,
                    ttl_s=1.0,
                )
            )
            for number, site in enumerate(sites[:2])
        ]
        await eventually(lambda: sites[0].waiting == sites[1].waiting == 1)
        with pytest.raises(TooManyWorkers, match="2 workers are being called"):
            await peers.release(sites[2].worker, "0" * 32)
        for hold in holds:
            hold.cancel()
        await asyncio.gather(*holds, return_exceptions=True)
        await peers.release(sites[2].worker, "0" * 32)
    for site in sites:
        site.copy.finish()
    await asyncio.gather(*running)
