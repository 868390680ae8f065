"""Reserve, ReleaseReservation and Drain over real gRPC with mTLS: who may, what is wrong with a request, what is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import grpc.aio
import pytest
from penstock.scheduler.v1 import scheduler_pb2 as pb
from penstock.scheduler.v1 import scheduler_pb2_grpc

from runtime.channel import inner_channel
from runtime.errors import Code, PenstockError
from runtime.identity import Role
from runtime.memory_store import MemoryStore
from runtime.sealing import verified_place
from runtime.serving import Listen, serving
from runtime.status import error_of
from scheduler.loop import Scheduler
from scheduler.placements import Placements
from scheduler.reservations.servicer import ReservationServicer
from scheduler.servicer import SERVICES, FleetServicer, Rooms
from tests.scheduler.mesh import HERE, Mesh
from tests.scheduler.reservations.world import World
from tests.support.manual_clock import ManualClock


@dataclass(slots=True)
class Service:
    world: World
    port: int

    async def call(self, method: str, request: Any, role: Role = Role.GATEWAY) -> Any:
        node = self.world.mesh.node(f"the {role.value}", role)
        async with inner_channel(f"127.0.0.1:{self.port}", node, Role.SCHEDULER) as channel:
            return await getattr(scheduler_pb2_grpc.FleetServiceStub(channel), method)(request, timeout=20)

    async def refusal(self, method: str, request: Any, role: Role = Role.GATEWAY) -> PenstockError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(method, request, role)
        return error_of(caught.value)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    clock = ManualClock()
    mesh = Mesh(tmp_path, clock)
    world = World(mesh, clock)
    async with MemoryStore(clock=clock) as store:
        scheduler = Scheduler(store, mesh.reader(), clock, Random(1))
        rooms = Rooms(reservations=ReservationServicer(world.desk, HERE))
        servicer = FleetServicer(scheduler, Placements(store, scheduler.control, HERE), rooms)
        register = partial(scheduler_pb2_grpc.add_FleetServiceServicer_to_server, servicer)
        listen = Listen("127.0.0.1", 0, mesh.node("scheduler", Role.SCHEDULER))
        async with serving([listen], [register], SERVICES, drain_grace_s=0.1) as running:
            yield Service(world, running.ports[0])


def request(**changes: Any) -> pb.ReserveRequest:
    return pb.ReserveRequest(**{"model": "digits", "tenant": "acme", "token_sha256": b"d" * 32, **changes})


async def test_a_gateway_reserves_for_a_tenant_and_gives_back(service: Service) -> None:
    world = service.world
    world.show(a={})
    kept: pb.ReserveResponse = await service.call("Reserve", request(ttl_ms=5_000))
    assert [kept.worker_id, kept.model, kept.version, kept.address] == [world.id("a"), "digits", "1", "a:7"]
    assert kept.expires_at_ms == int((world.clock.wall_s() + 5) * 1000)
    node = world.mesh.node("a")
    now_wall_s = node.certificate.begins_wall_s + 1_000
    record = kept.presence.SerializeToString()
    place = verified_place(record, node.authority_pem, worker_id=kept.worker_id, now_wall_s=now_wall_s)
    assert place.x25519_public_key == node.x25519_public_key
    assert world.workers.tenants == ["acme"]
    released = pb.ReleaseReservationRequest(reservation_id=kept.reservation_id, tenant="acme")
    await service.call("ReleaseReservation", released)
    assert not world.workers.kept


async def test_a_minute_where_nothing_was_said(service: Service) -> None:
    service.world.show(a={})
    kept: pb.ReserveResponse = await service.call("Reserve", request(), Role.OPERATOR)
    assert kept.expires_at_ms == int((service.world.clock.wall_s() + 60) * 1000)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": ""}, "names no model"),
        ({"version": "stable"}, "version 'stable' is no number"),
        ({"token_sha256": b""}, "token_sha256 has 0 bytes"),
        ({"token_sha256": b"d" * 33}, "token_sha256 has 33 bytes"),
        ({"ttl_ms": 600_001}, "at most 600 s"),
        ({"ttl_ms": 2**64 - 1}, "at most 600 s"),
    ],
)
async def test_a_wrong_request_is_told_what_is_wrong(service: Service, changes: dict[str, Any], sentence: str) -> None:
    error = await service.refusal("Reserve", request(**changes))
    assert error.code is Code.INVALID_ARGUMENT
    assert sentence in error.message


async def test_operators_drain_and_gateways_do_not(service: Service) -> None:
    world = service.world
    world.show(a={})
    drain = pb.DrainRequest(worker_id=world.id("a"))
    assert (await service.refusal("Drain", drain)).reason == "ROLE_REQUIRED"
    await service.call("Drain", drain, Role.OPERATOR)
    await service.call("Drain", pb.DrainRequest(worker_id=world.id("a"), grace_ms=1_500), Role.OPERATOR)
    assert [grace_s for _, grace_s in world.workers.drained] == [30.0, 1.5]
    unknown = await service.refusal("Drain", pb.DrainRequest(worker_id="w"), Role.OPERATOR)
    assert (unknown.code, unknown.reason) == (Code.NOT_FOUND, "WORKER_UNKNOWN")
    long = await service.refusal("Drain", pb.DrainRequest(worker_id="w", grace_ms=86_400_001), Role.OPERATOR)
    assert long.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("role", [Role.WORKER, Role.REGISTRY, Role.ENVOY])
async def test_others_may_not(service: Service, role: Role) -> None:
    for method, message in (("Reserve", request()), ("ReleaseReservation", pb.ReleaseReservationRequest())):
        assert (await service.refusal(method, message, role)).reason == "ROLE_REQUIRED"


async def test_what_names_no_reservation_is_told_so(service: Service) -> None:
    error = await service.refusal("ReleaseReservation", pb.ReleaseReservationRequest(reservation_id="x"))
    assert (error.code, "names no reservation" in error.message) == (Code.INVALID_ARGUMENT, True)
