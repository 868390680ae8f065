"""FleetService over real gRPC with mTLS, and a store in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from random import Random

import grpc.aio
import pytest
from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc

from runtime.channel import inner_channel
from runtime.clock import SystemClock
from runtime.errors import PenstockError
from runtime.identity import Role
from runtime.memory_store import MemoryStore
from runtime.serving import Listen, serving
from runtime.status import error_of
from scheduler.loop import Scheduler
from scheduler.placements import Placements
from scheduler.servicer import SERVICES, FleetServicer
from tests.scheduler.mesh import DIGEST, HERE, LOADING, Mesh, assigned, model
from tests.support.waiting import eventually


class Service:
    """A scheduler that answers on loopback."""

    def __init__(self, mesh: Mesh, store: MemoryStore, scheduler: Scheduler, port: int) -> None:
        self.mesh, self.store, self.scheduler, self.port = mesh, store, scheduler, port

    def stub(self, role: Role = Role.GATEWAY) -> scheduler_pb2_grpc.FleetServiceStub:
        self.channel = inner_channel(f"127.0.0.1:{self.port}", self.mesh.node(f"the {role.value}", role), Role.SCHEDULER)
        return scheduler_pb2_grpc.FleetServiceStub(self.channel)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    mesh = Mesh(tmp_path, SystemClock())
    async with MemoryStore() as store:
        scheduler = Scheduler(store, mesh.reader(), SystemClock(), Random(1))
        servicer = FleetServicer(scheduler, Placements(store, scheduler.control, HERE))
        listen = Listen("127.0.0.1", 0, mesh.node("scheduler", Role.SCHEDULER))
        register = partial(scheduler_pb2_grpc.add_FleetServiceServicer_to_server, servicer)
        async with serving([listen], [register], SERVICES) as running:
            service = Service(mesh, store, scheduler, running.ports[0])
            async with scheduler.running():
                yield service
                await service.channel.close()


async def test_a_gateway_follows_the_fleet(service: Service) -> None:
    mesh, stub = service.mesh, service.stub()
    await mesh.announce(service.store, "a", model(LOADING))
    watch = stub.WatchFleet(scheduler_pb2.WatchFleetRequest())
    async with asyncio.timeout(10):
        first = await _read(watch)
        assert first.snapshot
        assert first.HasField("placements")
        seen = [worker.worker_id for worker in first.workers]
        while mesh.worker_id("a") not in seen:
            seen += [worker.worker_id for worker in (await _read(watch)).workers]
        await mesh.announce(service.store, "a", model())
        states: list[int] = []
        while 3 not in states:
            states += [copy.state for worker in (await _read(watch)).workers for copy in worker.models]
        await service.store.delete(mesh.key("a"))
        removed: list[str] = []
        while mesh.worker_id("a") not in removed:
            removed += (await _read(watch)).removed_worker_ids
    watch.cancel()
    await eventually(lambda: len(service.scheduler.audience) == 0)


async def test_place_list_and_watch_placements(service: Service) -> None:
    stub = service.stub(Role.OPERATOR)
    await service.mesh.announce(service.store, "a")
    await eventually(lambda: bool(service.scheduler.fleet.members))
    wish = scheduler_pb2.Placement(model="digits", version="1", digest=DIGEST, copies=1)
    placed = (await stub.PlaceModel(scheduler_pb2.PlaceModelRequest(placement=wish))).placement
    assert (placed.region, placed.generation) == (HERE, 1)
    await eventually(lambda: len(service.scheduler.control) == 1)
    listed = (await stub.ListPlacements(scheduler_pb2.ListPlacementsRequest())).placements
    assert list(listed) == [placed]
    workers = (await stub.ListWorkers(scheduler_pb2.ListWorkersRequest(region=HERE))).workers
    assert [worker.worker_id for worker in workers] == [service.mesh.worker_id("a")]
    assert not (await stub.ListWorkers(scheduler_pb2.ListWorkersRequest(region="there"))).workers
    await eventually(lambda: service.scheduler.reconciler.writes == 1)
    assert await assigned(service.store, service.mesh, "a") == [("digits", 1)]


@pytest.mark.parametrize("role", [Role.WORKER, Role.REGISTRY, Role.ENVOY])
async def test_others_may_not(service: Service, role: Role) -> None:
    stub = service.stub(role)
    calls = [
        stub.ListWorkers(scheduler_pb2.ListWorkersRequest()),
        stub.PlaceModel(scheduler_pb2.PlaceModelRequest()),
        stub.ListPlacements(scheduler_pb2.ListPlacementsRequest()),
        stub.WatchFleet(scheduler_pb2.WatchFleetRequest()).read(),
    ]
    for call in calls:
        assert (await _error(call)).reason == "ROLE_REQUIRED"


async def test_a_wrong_wish_is_told_what_is_wrong(service: Service) -> None:
    error = await _error(service.stub().PlaceModel(scheduler_pb2.PlaceModelRequest()))
    assert error.reason == "INVALID_ARGUMENT"
    assert "model name" in error.message


async def test_without_etcd_it_says_so(service: Service) -> None:
    stub = service.stub()
    await eventually(service.scheduler.connected)
    service.store.go_away()
    await eventually(lambda: not service.scheduler.connected())
    wish = scheduler_pb2.Placement(model="digits", version="1", digest=DIGEST, copies=1)
    assert (await _error(stub.PlaceModel(scheduler_pb2.PlaceModelRequest(placement=wish)))).code == 14
    assert not (await stub.ListWorkers(scheduler_pb2.ListWorkersRequest())).workers, "the last view still answers"
    watch = stub.WatchFleet(scheduler_pb2.WatchFleetRequest())
    assert (await _read(watch)).stale


async def test_leaving_ends_the_watches(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, SystemClock())
    async with MemoryStore() as store:
        scheduler = Scheduler(store, mesh.reader(), SystemClock(), Random(1))
        servicer = FleetServicer(scheduler, Placements(store, scheduler.control, HERE))
        listen = Listen("127.0.0.1", 0, mesh.node("scheduler", Role.SCHEDULER))
        register = partial(scheduler_pb2_grpc.add_FleetServiceServicer_to_server, servicer)
        began_s = asyncio.get_running_loop().time()
        async with serving([listen], [register], SERVICES, drain_grace_s=20.0) as running, scheduler.running():
            service = Service(mesh, store, scheduler, running.ports[0])
            watch = service.stub().WatchFleet(scheduler_pb2.WatchFleetRequest())
            await watch.read()
        assert await watch.read() is grpc.aio.EOF
        assert asyncio.get_running_loop().time() - began_s < 10.0, "no watch held up the drain"
        await service.channel.close()


async def _read(
    watch: grpc.aio.UnaryStreamCall[scheduler_pb2.WatchFleetRequest, scheduler_pb2.WatchFleetResponse],
) -> scheduler_pb2.WatchFleetResponse:
    message = await watch.read()
    assert isinstance(message, scheduler_pb2.WatchFleetResponse)
    return message


async def _error(call: object) -> PenstockError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return error_of(caught.value)
