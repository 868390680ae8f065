"""A sealed call through a whole mesh in one process: the real worker, scheduler's desk and gateway's door, over real gRPC.

Every message that gateway and scheduler take or give is kept, and every byte on the connections to them; so is the worker's
connection. What was asked and answered is in none of it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import grpc.aio
import numpy as np
import pytest
from inference import grpc_service_pb2
from penstock.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from penstock.scheduler.v1 import scheduler_pb2_grpc
from penstock.worker.v1 import sealed_pb2
from penstock.worker.v1.sealed_pb2_grpc import SealedServiceStub
from prometheus_client import CollectorRegistry

from gateway.callers import Callers
from gateway.exchange import Exchanges
from gateway.links.link import WorkerLink
from gateway.links.types import CallContext as LinkCall
from gateway.metrics import GatewayMetrics
from gateway.regions import Regions
from gateway.reservations import SERVICE as RESERVATIONS
from gateway.reservations import ReservationServicer as GatewayReservations
from gateway.targets import Targets
from placement.rules import Route
from runtime.channel import inner_channel
from runtime.clock import SystemClock
from runtime.errors import Code, PenstockError
from runtime.identity import Authority, NodeIdentity, Role
from runtime.ids import Region, WorkerId, presence_key
from runtime.keyvalue import KeyValue
from runtime.memory_store import MemoryStore
from runtime.notices import NoticeBoard
from runtime.records import RecordVerifier, sign_record
from runtime.sealed_client import SealedClient, worker_channel
from runtime.sealing import SealedCall, reservation_parts, seal_call, token_sha256_of
from runtime.serving import Listen, serving
from runtime.status import error_of
from scheduler.fleet import Fleet
from scheduler.loop import Scheduler
from scheduler.outlook import Outlook
from scheduler.placements import Placements
from scheduler.presence import PresenceReader
from scheduler.reservations.desk import Desk
from scheduler.reservations.servicer import ReservationServicer
from scheduler.servicer import SERVICES, FleetServicer, Rooms
from scheduler.workers import WorkerPeers
from tests.gateway.test_reservations import HeldFleet, OneScheduler
from tests.support.waiting import eventually
from tests.support.wiretap import MessageTap, Wiretap, wiretap_to
from tests.worker.onnx_models import identity as identity_model
from tests.worker.onnx_models import spec
from worker.config import WorkerSettings
from worker.copies import open_model
from worker.execute.execution import Execution
from worker.execute.hold_service import HoldService
from worker.front import Ports, opened_front
from worker.hardware import Hardware
from worker.inference import TableInference
from worker.life.lifecycle import Copy, Holdings, LifeEvent
from worker.models import ModelTable
from worker.presence_codec import Stamp, WorkerFacts, copy_messages, presence_bytes
from worker.quota import QuotaPolicy

HERE = Region("here")
MARKER = np.frombuffer(b"MARKER0123456789", dtype=np.float32).reshape(2, 2)


@dataclass(slots=True)
class Worker:
    identity: NodeIdentity
    inference: TableInference
    execution: Execution
    ports: Ports
    facts: WorkerFacts
    holdings: Holdings

    @property
    def worker_id(self) -> WorkerId:
        return WorkerId(self.identity.node_id)

    def record(self) -> KeyValue:
        clock = SystemClock()
        wall_ms = int(clock.wall_s() * 1000)
        payload = presence_bytes(
            self.facts, copy_messages(self.holdings, draining=False), Stamp(wall_ms, wall_ms), disk_free_bytes=0
        )
        return KeyValue(presence_key(HERE, self.worker_id), sign_record(self.identity, payload), 1, 1, 1)


@dataclass(slots=True)
class SealedMesh:
    authority: Authority
    workers: list[Worker]
    desk: Desk
    gateway_messages: MessageTap
    scheduler_messages: MessageTap
    to_gateway: Wiretap
    to_scheduler: Wiretap
    to_worker: list[Wiretap]
    channel: grpc.aio.Channel
    gateway: NodeIdentity

    @property
    def client(self) -> SealedClient:
        return SealedClient(self.channel, "", self.authority.certificate_pem)

    @property
    def seen_on_the_way(self) -> bytes:
        """By anybody but the worker and its client."""
        taps = (self.to_gateway, self.to_scheduler, *self.to_worker)
        return b"\0".join(
            (self.gateway_messages.everything, self.scheduler_messages.everything, *(bytes(tap.passed) for tap in taps))
        )

    def worker_of(self, reservation_id: str) -> Worker:
        worker_id, _ = reservation_parts(reservation_id)
        return next(worker for worker in self.workers if worker.worker_id == worker_id)

    async def ordinary(self, worker: Worker) -> bytes:
        """A request of a gateway that knows of no reservation."""
        async with WorkerLink(f"127.0.0.1:{worker.ports.inner}", self.gateway, worker.worker_id) as link:
            assert await link.wait_connected(10)
            return await link.call("echo", "", request().SerializeToString(), LinkCall())


async def started_worker(stack: AsyncExitStack, folder: Path, authority: Authority, name: str) -> tuple[Worker, Wiretap]:
    """With one place and the model; its sealed port is reached over a wiretap."""
    node, table, holdings = authority.enrol(folder / name, Role.WORKER), ModelTable(), Holdings()
    table.add(await open_model(spec("echo"), identity_model(folder / f"{name}-echo", "FP32")))
    described = spec("echo")
    copy = holdings.add(Copy(described.model, described.version, described.digest, 1))
    for event in (LifeEvent.LOAD_BEGUN, LifeEvent.LOADED):
        holdings.move(copy, event)
    inference = TableInference(table, quota=QuotaPolicy(1))
    execution = Execution(inference, WorkerId(node.node_id), asyncio.Event(), holds=HoldService(inference, table))
    settings = WorkerSettings(identity_dir=node.folder, sealed_port=0, leave_grace_s=0.0, drain_grace_s=2.0)
    ports = await stack.enter_async_context(opened_front(settings, node, table, inference, execution, ()))
    assert ports.sealed is not None
    wiretap = await stack.enter_async_context(wiretap_to(ports.sealed))
    facts = WorkerFacts(
        worker_id=WorkerId(node.node_id),
        region=HERE,
        address=f"127.0.0.1:{ports.inner}",
        tiers=(),
        hardware=Hardware("cpu", 1, 1, 1, ()),
        x25519_public_key=node.x25519_public_key,
        max_in_flight=1,
        software_version="0",
        sealed_address=wiretap.endpoint,
    )
    return Worker(node, inference, execution, ports, facts, holdings), wiretap


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[SealedMesh]:
    authority, clock = Authority.open(tmp_path / "ca"), SystemClock()
    nodes = {role: authority.enrol(tmp_path / role.value, role) for role in (Role.SCHEDULER, Role.GATEWAY)}
    async with AsyncExitStack() as stack:
        started = [await started_worker(stack, tmp_path, authority, f"worker-{number}") for number in (1, 2)]
        workers = [worker for worker, _ in started]
        reader, board = PresenceReader(RecordVerifier(authority.certificate_pem)), NoticeBoard()
        fleet = Fleet(reader)
        outlook = Outlook(fleet, board, clock, dict)
        outlook.follow(
            fleet.replace([worker.record() for worker in workers], now_s=clock.monotonic_s(), now_wall_s=clock.wall_s())
        )
        peers = await stack.enter_async_context(WorkerPeers(nodes[Role.SCHEDULER]))
        desk = Desk(outlook, lambda: fleet.members, peers, lambda *_: Route(), clock)
        store = await stack.enter_async_context(MemoryStore())
        scheduler = Scheduler(store, reader, clock, Random(1))
        servicer = FleetServicer(
            scheduler, Placements(store, scheduler.control, HERE), Rooms(reservations=ReservationServicer(desk, HERE))
        )
        register = partial(scheduler_pb2_grpc.add_FleetServiceServicer_to_server, servicer)
        scheduler_tap, gateway_tap = MessageTap(), MessageTap()
        listen = Listen("127.0.0.1", 0, nodes[Role.SCHEDULER])
        opening = serving([listen], [register], SERVICES, interceptors=[scheduler_tap], drain_grace_s=0.1)
        to_scheduler = await stack.enter_async_context(wiretap_to((await stack.enter_async_context(opening)).ports[0]))
        inner = await stack.enter_async_context(inner_channel(to_scheduler.endpoint, nodes[Role.GATEWAY], Role.SCHEDULER))
        metrics = GatewayMetrics(CollectorRegistry())
        door = GatewayReservations(
            Callers(None, metrics),
            Exchanges(metrics),
            Targets(None, HeldFleet(), enforced=False),
            OneScheduler(inner),
            Regions(HERE, tuple),
            authority.certificate_pem,
        )
        opening = serving(
            [Listen("127.0.0.1", 0)], [door.register], [RESERVATIONS], interceptors=[gateway_tap], drain_grace_s=0.1
        )
        to_gateway = await stack.enter_async_context(wiretap_to((await stack.enter_async_context(opening)).ports[0]))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(to_gateway.endpoint))
        taps = [tap for _, tap in started]
        yield SealedMesh(
            authority, workers, desk, gateway_tap, scheduler_tap, to_gateway, to_scheduler, taps, channel, nodes[Role.GATEWAY]
        )


def request(content: Any = MARKER) -> grpc_service_pb2.ModelInferRequest:
    message = grpc_service_pb2.ModelInferRequest(model_name="echo", raw_input_contents=[content.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=content.shape)
    return message


async def test_what_is_asked_and_answered_is_seen_by_the_worker_alone(
    mesh: SealedMesh, capsys: pytest.CaptureFixture[str]
) -> None:
    async with mesh.client.reserved("echo") as worker:
        for _ in range(3):
            answer = await worker.infer(request())
            assert answer.raw_output_contents == [MARKER.tobytes()], "the worker saw it, and said so"
        name = worker.reservation_id
    seen = mesh.seen_on_the_way
    for known in (b"echo", name.encode(), worker.place.address.encode()):
        assert known in mesh.gateway_messages.everything, "what passes is kept"
        assert known in mesh.scheduler_messages.everything
    assert b"echo" in mesh.to_gateway.passed, "this connection speaks plaintext"
    assert sum(len(tap.passed) for tap in mesh.to_worker) > 3 * len(MARKER.tobytes())
    assert b"MARKER" not in seen
    assert MARKER.tobytes()[3:13] not in seen
    assert "MARKER" not in "".join(capsys.readouterr())


async def test_the_secret_never_leaves_the_client_but_in_a_box(mesh: SealedMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[bytes] = []
    draw = secrets.token_bytes

    def noted(size: int | None = None) -> bytes:
        drawn.append(draw(size))
        return drawn[-1]

    monkeypatch.setattr("runtime.sealed_client.secrets.token_bytes", noted)
    async with mesh.client.reserved("echo") as worker:
        await worker.infer(request())
    known = [token_sha256_of(each) in mesh.scheduler_messages.everything for each in drawn]
    assert known.count(True) == 1, "the secret's digest is what is reserved with"
    assert [each for each in drawn if len(each) == 32 and each in mesh.seen_on_the_way] == []
    assert len([each for each in drawn if len(each) == 32]) == 2, "a secret, and a reply key"


async def test_the_place_is_really_kept_while_it_is_idle(mesh: SealedMesh) -> None:
    async with mesh.client.reserved("echo") as worker:
        there = mesh.worker_of(worker.reservation_id)
        assert there.inference.guard.in_flight == 1
        with pytest.raises(PenstockError) as caught:
            await mesh.ordinary(there)
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        (other,) = [each for each in mesh.workers if each is not there]
        await mesh.ordinary(other)
        await worker.infer(request())
    await eventually(lambda: there.inference.guard.in_flight == 0)
    await mesh.ordinary(there)


async def test_when_all_places_are_kept_the_next_is_told_when_to_come_back(mesh: SealedMesh) -> None:
    async with mesh.client.reserved("echo") as one, mesh.client.reserved("echo") as two:
        assert one.place.worker_id != two.place.worker_id
        with pytest.raises(PenstockError) as caught:
            async with mesh.client.reserved("echo"):
                pass
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert caught.value.retry_after_s is not None
    async with mesh.client.reserved("echo"):
        pass


async def test_what_was_given_back_or_ended_opens_no_door(mesh: SealedMesh) -> None:
    async with mesh.client.reserved("echo") as worker:
        await worker.infer(request())
        await mesh.desk.release(worker.reservation_id)
        with pytest.raises(PenstockError) as released:
            await worker.infer(request())
    async with mesh.client.reserved("echo", ttl_s=0.05) as worker:
        there = mesh.worker_of(worker.reservation_id)
        await eventually(lambda: there.inference.holds.kept == 0)
        with pytest.raises(PenstockError) as ended:
            await worker.infer(request())
    assert released.value.reason == ended.value.reason == "SEALED_REFUSED"
    assert released.value.message == ended.value.message


async def test_a_reservation_at_one_worker_is_none_at_another(mesh: SealedMesh) -> None:
    async with mesh.client.reserved("echo") as worker:
        there = mesh.worker_of(worker.reservation_id)
        (other,) = [each for each in mesh.workers if each is not there]
        place = replace(worker.place, worker_id=other.worker_id, address=other.facts.sealed_address)
        async with worker_channel(place, mesh.authority.certificate_pem) as channel:
            for key in (other.identity.x25519_public_key, there.identity.x25519_public_key):
                call = SealedCall(worker.reservation_id, there.worker_id, 1, request().SerializeToString(), b"t", b"k" * 32)
                with pytest.raises(PenstockError) as caught:
                    await _sent(SealedServiceStub(channel), worker.reservation_id, seal_call(call, key))
                assert caught.value.reason == "SEALED_REFUSED"
        await worker.infer(request())


async def test_a_gateway_cannot_use_what_it_helped_to_reserve(mesh: SealedMesh) -> None:
    """It knows the reservation's name and the digest of its secret, and can seal boxes like anybody."""
    async with mesh.client.reserved("echo") as worker:
        there = mesh.worker_of(worker.reservation_id)
        _, hold_id = reservation_parts(worker.reservation_id)
        async with WorkerLink(f"127.0.0.1:{there.ports.inner}", mesh.gateway, there.worker_id) as link:
            assert await link.wait_connected(10)
            with pytest.raises(PenstockError) as by_hold:
                await link.call("echo", "", request().SerializeToString(), LinkCall(hold_id=hold_id))
        assert by_hold.value.code is Code.RESOURCE_EXHAUSTED, "a hold for a client is no place of a gateway's"
        digest = gateway_pb2.CreateReservationRequest.FromString(mesh.gateway_messages.messages[0]).token_sha256
        call = SealedCall(worker.reservation_id, there.worker_id, 1, request().SerializeToString(), digest, b"k" * 32)
        box = seal_call(call, there.identity.x25519_public_key)
        async with worker_channel(worker.place, mesh.authority.certificate_pem) as channel:
            with pytest.raises(PenstockError) as by_box:
                await _sent(SealedServiceStub(channel), worker.reservation_id, box)
        assert by_box.value.reason == "SEALED_REFUSED"
        assert not there.execution.open_calls


async def _sent(stub: Any, reservation_id: str, box: bytes) -> None:
    try:
        async for _ in stub.CallSealed(sealed_pb2.CallSealedRequest(reservation_id=reservation_id, box=box), timeout=20):
            pass
    except grpc.aio.AioRpcError as failure:
        raise error_of(failure) from failure


async def test_a_client_that_dies_leaves_its_place_to_its_end_and_no_longer(mesh: SealedMesh) -> None:
    stub: Any = gateway_pb2_grpc.ReservationServiceStub(mesh.channel)
    asked = gateway_pb2.CreateReservationRequest(model="echo", ttl_ms=100, token_sha256=b"d" * 32)
    kept = await stub.CreateReservation(asked, timeout=20)
    there = mesh.worker_of(kept.reservation_id)
    assert there.inference.holds.kept == 1
    await eventually(lambda: there.inference.guard.in_flight == 0)
    await mesh.ordinary(there)
