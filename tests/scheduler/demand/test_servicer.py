"""ReportDemand over real gRPC with mTLS, into copies that come because somebody asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import grpc
import grpc.aio
import pytest
from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc

from runtime.channel import inner_channel
from runtime.clock import SystemClock
from runtime.errors import PenstockError
from runtime.identity import Role
from runtime.ids import assignment_key
from runtime.memory_store import MemoryStore
from runtime.serving import Listen, serving
from runtime.status import error_of
from scheduler.codec import assignment_from
from scheduler.demand.intake import DemandIntake
from scheduler.demand.servicer import DemandServicer
from scheduler.loop import Scheduler
from scheduler.placements import Placements
from scheduler.servicer import SERVICES, FleetServicer, Rooms
from tests.scheduler.mesh import DIGEST, HERE, Mesh
from tests.support.waiting import eventually

pb = scheduler_pb2


@dataclass
class Service:
    mesh: Mesh
    store: MemoryStore
    intake: DemandIntake
    port: int

    @asynccontextmanager
    async def stub(self, role: Role = Role.GATEWAY) -> AsyncIterator[scheduler_pb2_grpc.FleetServiceStub]:
        async with inner_channel(
            f"127.0.0.1:{self.port}", self.mesh.node(f"the {role.value}", role), Role.SCHEDULER
        ) as channel:
            yield scheduler_pb2_grpc.FleetServiceStub(channel)

    async def told(self, name: str) -> list[str]:
        item = await self.store.get(assignment_key(HERE, self.mesh.worker_id(name)))
        return [] if item is None else [each.model for each in assignment_from(item.value)]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    clock = SystemClock()
    mesh = Mesh(tmp_path, clock)
    async with MemoryStore() as store:
        scheduler, intake = Scheduler(store, mesh.reader(), clock, Random(1)), DemandIntake(clock)
        scheduler.reconciler.follow(intake)
        rooms = Rooms(demand=DemandServicer(intake))
        servicer = FleetServicer(scheduler, Placements(store, scheduler.control, HERE), rooms)
        listen = Listen("127.0.0.1", 0, mesh.node("scheduler", Role.SCHEDULER))
        register = partial(scheduler_pb2_grpc.add_FleetServiceServicer_to_server, servicer)
        async with serving([listen], [register], SERVICES) as running, scheduler.running():
            yield Service(mesh, store, intake, running.ports[0])


async def asking(*messages: pb.ReportDemandRequest) -> AsyncIterator[pb.ReportDemandRequest]:
    for message in messages:
        yield message


def asked_for(model: str, version: str = "1") -> pb.ReportDemandRequest:
    demand = pb.ModelDemand(model=model, version=version, requests=1, missed=1)
    return pb.ReportDemandRequest(interval_ms=1_000, region=HERE, models=[demand])


@pytest.mark.parametrize("version", ["1", ""])
async def test_what_was_placed_on_demand_is_loaded_when_somebody_asks(service: Service, version: str) -> None:
    await service.mesh.announce(service.store, "a")
    async with service.stub(Role.OPERATOR) as operator:
        wish = pb.Placement(model="digits", version="1", digest=DIGEST, max_copies=2)
        placed = (await operator.PlaceModel(pb.PlaceModelRequest(placement=wish))).placement
        assert (placed.copies, placed.max_copies) == (0, 2)
    async with service.stub() as gateway:
        await gateway.ReportDemand(asking(asked_for("others")))
        assert await service.told("a") == []
        await gateway.ReportDemand(asking(asked_for("digits", version)))
        async with asyncio.timeout(10):
            while await service.told("a") != ["digits"]:
                await asyncio.sleep(0.02)
    assert len(service.intake) == 0


async def test_a_gateway_that_goes_away_is_forgotten(service: Service) -> None:
    async with service.stub() as gateway:
        call = gateway.ReportDemand()
        await call.write(asked_for("digits"))
        await eventually(lambda: len(service.intake) == 1 and service.intake.reports == 1)
        call.cancel()
    await eventually(lambda: len(service.intake) == 0)


async def test_what_is_malformed_ends_the_stream_with_a_sentence(service: Service) -> None:
    async with service.stub() as gateway:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await gateway.ReportDemand(asking(pb.ReportDemandRequest(region=HERE)))
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "interval_ms is 0" in (failed.value.details() or "")
    await eventually(lambda: len(service.intake) == 0)


@pytest.mark.parametrize("role", [Role.WORKER, Role.OPERATOR])
async def test_only_gateways_tell_of_demand(service: Service, role: Role) -> None:
    async with service.stub(role) as stranger:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stranger.ReportDemand(asking(asked_for("digits")))
    refusal: PenstockError = error_of(failed.value)
    assert failed.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "gateway" in refusal.message
    assert service.intake.reports == 0
