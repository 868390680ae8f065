"""The gateway as it runs: real mTLS to a scheduler, a registry and workers, as thin as their contracts allow; a real etcd."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import prometheus_client
import pytest
from inference import grpc_service_pb2 as pb
from penstock.registry.v1 import accounts_pb2, accounts_pb2_grpc, models_pb2, models_pb2_grpc
from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from penstock.worker.v1 import presence_pb2, worker_pb2

from gateway.__main__ import serve
from gateway.config import GatewaySettings
from runtime.errors import NotFound, ResourceExhausted, Unavailable
from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.identity import Authority, NodeIdentity, Role, load_identity
from runtime.ids import ModelName, TenantId, WorkerId, model_notice_key
from runtime.notices import ModelNotice, model_payload
from runtime.records import sign_record
from runtime.serving import Listen, serving
from tests.support.etcd import EtcdServer, running_etcd
from worker.execute.execution import SERVICE as WORKER_SERVICE
from worker.execute.execution import Execution
from worker.types import CallContext, Load

KEY = "sk-pn-test"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
READY = worker_pb2.MODEL_STATE_READY


class Registry(accounts_pb2_grpc.AccountServiceServicer, models_pb2_grpc.ModelServiceServicer):
    """Knows one key. That there is a model m it tells through etcd."""

    def __init__(self) -> None:
        self.asked = 0

    async def ResolveKey(self, request: accounts_pb2.ResolveKeyRequest, context: Any) -> accounts_pb2.ResolveKeyResponse:
        self.asked += 1
        if request.secret_sha256 != hashlib.sha256(KEY.encode()).digest():
            raise NotFound("no live key has this hash")
        return accounts_pb2.ResolveKeyResponse(key=accounts_pb2.ApiKey(key_id="k", tenant="t", role="caller"))

    async def ListModels(self, request: Any, context: Any) -> models_pb2.ListModelsResponse:
        return models_pb2.ListModelsResponse()


Registry.__abstractmethods__ = frozenset()


class Scheduler(scheduler_pb2_grpc.FleetServiceServicer):
    """Tells the fleet it is given."""

    def __init__(self) -> None:
        self.fleet: dict[str, presence_pb2.Presence] = {}
        self.changed = asyncio.Condition()

    async def tell(self, *workers: presence_pb2.Presence) -> None:
        async with self.changed:
            self.fleet = {worker.worker_id: worker for worker in workers}
            self.changed.notify_all()

    async def WatchFleet(self, request: Any, context: Any) -> None:  # type: ignore[override]
        async with self.changed:
            while True:
                everything = scheduler_pb2.PlacementList()
                await context.write(
                    scheduler_pb2.WatchFleetResponse(snapshot=True, workers=self.fleet.values(), placements=everything)
                )
                await self.changed.wait()


Scheduler.__abstractmethods__ = frozenset()


@dataclass
class Engine:
    """Echoes, waits at its gate, or fails."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    fails: Exception | None = None
    calls: int = 0
    running: int = 0

    async def infer(self, model: str, version: str, payload: bytes, call: CallContext) -> bytes:
        self.calls += 1
        self.running += 1
        try:
            if self.fails is not None:
                raise self.fails
            await self.gate.wait()
            return payload
        finally:
            self.running -= 1

    async def stream_infer(self, model: str, version: str, payload: bytes, call: CallContext) -> AsyncIterator[bytes]:
        yield await self.infer(model, version, payload, call)

    async def generate(self, model: str, version: str, payload: bytes, call: CallContext) -> AsyncIterator[bytes]:
        yield await self.infer(model, version, payload, call)

    @property
    def load(self) -> Load:
        return Load(self.running, 0)


@dataclass
class Member:
    engine: Engine
    identity: NodeIdentity
    port: int
    server: grpc.aio.Server
    execution: Execution

    def presence(self, *models: str) -> presence_pb2.Presence:
        copies = [worker_pb2.ModelCopy(model=each, version="1", digest="d" * 64, state=READY, task="tensor") for each in models]
        return presence_pb2.Presence(
            worker_id=self.identity.node_id,
            region="local",
            address=f"127.0.0.1:{self.port}",
            models=copies,
            max_in_flight=64,
        )


@dataclass
class MeshUnderTest:
    authority: Authority
    folder: Path
    stack: AsyncExitStack
    scheduler: Scheduler
    registry: Registry
    ports: dict[str, int] = field(default_factory=dict)
    channel: Any = None

    async def worker(self, name: str) -> Member:
        identity, engine = self.authority.enrol(self.folder / name, Role.WORKER), Engine()
        engine.gate.set()
        execution = Execution(engine, WorkerId(identity.node_id), asyncio.Event())
        listen = Listen("127.0.0.1", 0, identity)
        running = await self.stack.enter_async_context(
            serving([listen], [execution.register], [WORKER_SERVICE], drain_grace_s=0.1)
        )
        return Member(engine, identity, running.ports[0], running.server, execution)

    async def infer(self, model: str = "m", *, key: str = KEY, timeout: float = 10, body: bytes = b"") -> bytes:
        payload = pb.ModelInferRequest(model_name=model, raw_input_contents=[body]).SerializeToString()
        call: Any = self.channel.unary_unary(METHOD, None, None)
        answer: bytes = await call(payload, metadata=(("authorization", f"Bearer {key}"),), timeout=timeout)
        assert answer == payload
        return answer


@asynccontextmanager
async def mesh_under_test(
    folder: Path, etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch, *, tls: bool = False
) -> AsyncIterator[MeshUnderTest]:
    # The process-wide registry of metrics is the process's: each gateway of these tests gets its own.
    monkeypatch.setattr(prometheus_client, "REGISTRY", prometheus_client.CollectorRegistry())
    authority = Authority.open(folder / "ca")
    for role in (Role.GATEWAY, Role.ENVOY):
        authority.enrol(folder / role.value, role)
    scheduler, registry = Scheduler(), Registry()  # type: ignore[abstract]  # made whole above

    def registry_services(server: grpc.aio.Server) -> None:
        accounts_pb2_grpc.add_AccountServiceServicer_to_server(registry, server)
        models_pb2_grpc.add_ModelServiceServicer_to_server(registry, server)

    def scheduler_service(server: grpc.aio.Server) -> None:
        scheduler_pb2_grpc.add_FleetServiceServicer_to_server(scheduler, server)

    async with AsyncExitStack() as stack:
        listens = {
            role: Listen("127.0.0.1", 0, authority.enrol(folder / role.value, role)) for role in (Role.REGISTRY, Role.SCHEDULER)
        }
        served = {}
        for role, register in ((Role.REGISTRY, registry_services), (Role.SCHEDULER, scheduler_service)):
            running = await stack.enter_async_context(serving([listens[role]], [register], [], drain_grace_s=0.1))
            served[role] = f"127.0.0.1:{running.ports[0]}"
        told = ModelNotice(ModelName("m"), TenantId("t"), frozenset())
        async with EtcdStore(EtcdSettings.at(etcd.endpoint)) as store:
            record = sign_record(load_identity(folder / "registry"), model_payload(told))
            await store.put(model_notice_key(told.model), record)
        settings = GatewaySettings(
            identity_dir=folder / "gateway",
            etcd_endpoints=etcd.endpoint,
            registry_address=served[Role.REGISTRY],
            scheduler_address=served[Role.SCHEDULER],
            edge_port=0,
            ready_file=folder / "ready",
            cold_wait_s=2,
            drain_grace_s=0.2,
            edge_certificate=folder / "gateway" / "tls.pem" if tls else None,
            edge_key=folder / "gateway" / "tls.key" if tls else None,
        )
        stop = asyncio.Event()
        gateway = asyncio.create_task(serve(settings, stop))
        try:
            async with asyncio.timeout(10):
                while not (folder / "ready").exists() and not gateway.done():
                    await asyncio.sleep(0.01)
            if gateway.done():
                gateway.result()
            mesh = MeshUnderTest(authority, folder, stack, scheduler, registry, json.loads((folder / "ready").read_text()))
            edge = f"127.0.0.1:{mesh.ports['edge_port']}"
            trusted = grpc.ssl_channel_credentials((folder / "gateway" / "ca.pem").read_bytes())
            mesh.channel = grpc.aio.secure_channel(edge, trusted) if tls else grpc.aio.insecure_channel(edge)
            async with mesh.channel:
                yield mesh
        finally:
            stop.set()
            await gateway


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    with running_etcd() as server:
        yield server


@pytest.fixture
async def mesh(tmp_path: Path, etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MeshUnderTest]:
    async with mesh_under_test(tmp_path, etcd, monkeypatch) as made:
        yield made


async def test_a_request_goes_through_and_the_key_is_asked_for_once(mesh: MeshUnderTest) -> None:
    worker = await mesh.worker("w1")
    await mesh.scheduler.tell(worker.presence("m"))
    for _ in range(20):
        await mesh.infer()
    assert worker.engine.calls == 20
    assert mesh.registry.asked == 1
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await mesh.infer(key="sk-wrong")
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_large_payloads_pass(mesh: MeshUnderTest) -> None:
    worker = await mesh.worker("w1")
    await mesh.scheduler.tell(worker.presence("m"))
    await asyncio.gather(*(mesh.infer(body=bytes([number]) * 3_000_000) for number in range(4)))


async def test_a_worker_that_dies_under_load_fails_nobody(mesh: MeshUnderTest) -> None:
    workers = [await mesh.worker("w1"), await mesh.worker("w2")]
    await mesh.scheduler.tell(*(worker.presence("m") for worker in workers))
    answered = 0

    async def keep_asking(until: asyncio.Event) -> None:
        nonlocal answered
        while not until.is_set():
            await mesh.infer()
            answered += 1

    until = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(16):
            group.create_task(keep_asking(until))
        while answered < 200:
            await asyncio.sleep(0.005)
        workers[0].engine.gate.clear()  # calls are open on it when it goes
        while not workers[0].engine.running:
            await asyncio.sleep(0.001)
        await workers[0].server.stop(None)
        count = answered
        while answered < count + 200:
            await asyncio.sleep(0.005)
        until.set()
    assert workers[1].engine.calls > 200


async def test_a_worker_that_leaves_the_view_finishes_what_it_has(mesh: MeshUnderTest) -> None:
    workers = [await mesh.worker("w1"), await mesh.worker("w2")]
    await mesh.scheduler.tell(workers[0].presence("m"))
    await mesh.infer()
    workers[0].engine.gate.clear()
    open_call = asyncio.create_task(mesh.infer())
    async with asyncio.timeout(5):
        while not workers[0].engine.running:
            await asyncio.sleep(0.005)
        await mesh.scheduler.tell(workers[1].presence("m"))
        while not workers[1].engine.calls:
            await mesh.infer()
        workers[0].engine.gate.set()
        await open_call
    assert workers[0].engine.calls == 2


async def test_one_full_worker_is_passed_over(mesh: MeshUnderTest) -> None:
    workers = [await mesh.worker("w1"), await mesh.worker("w2")]
    workers[0].engine.fails = ResourceExhausted("the queue is full", retry_after_s=0.5)
    await mesh.scheduler.tell(*(worker.presence("m") for worker in workers))
    for _ in range(10):
        await mesh.infer()
    workers[1].engine.fails = ResourceExhausted("the queue is full", retry_after_s=0.5)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await mesh.infer()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_silent_worker_costs_the_deadline_and_no_more(mesh: MeshUnderTest) -> None:
    worker = await mesh.worker("w1")
    worker.engine.gate.clear()
    await mesh.scheduler.tell(worker.presence("m"))
    started_s = asyncio.get_running_loop().time()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await mesh.infer(timeout=0.3)
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert asyncio.get_running_loop().time() - started_s < 2
    async with asyncio.timeout(5):
        while worker.engine.running:
            await asyncio.sleep(0.005)


async def test_a_client_that_goes_away_frees_the_worker(mesh: MeshUnderTest) -> None:
    worker = await mesh.worker("w1")
    worker.engine.gate.clear()
    await mesh.scheduler.tell(worker.presence("m"))
    call = asyncio.create_task(mesh.infer())
    async with asyncio.timeout(5):
        while not worker.engine.running:
            await asyncio.sleep(0.005)
        call.cancel()
        while worker.engine.running:
            await asyncio.sleep(0.005)


async def test_a_draining_worker_hands_over(mesh: MeshUnderTest) -> None:
    workers = [await mesh.worker("w1"), await mesh.worker("w2")]
    await mesh.scheduler.tell(*(worker.presence("m") for worker in workers))
    for _ in range(10):
        await mesh.infer()
    draining = asyncio.create_task(workers[0].execution.drain(1.0))
    for _ in range(40):
        await mesh.infer()
    await draining


async def test_the_inner_port_takes_only_certified_peers(mesh: MeshUnderTest) -> None:
    worker = await mesh.worker("w1")
    await mesh.scheduler.tell(worker.presence("m"))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.ports['port']}") as channel:
        infer: Any = channel.unary_unary(METHOD, None, None)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await infer(b"", timeout=2)
        assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def test_what_a_worker_says_of_a_sick_engine_reaches_the_client(mesh: MeshUnderTest) -> None:
    worker = await mesh.worker("w1")
    worker.engine.fails = Unavailable("the engine is being restarted")
    await mesh.scheduler.tell(worker.presence("m"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await mesh.infer()
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "being restarted" in (refused.value.details() or "")


async def test_the_edge_speaks_tls_where_it_has_a_certificate(
    tmp_path: Path, etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_under_test(tmp_path, etcd, monkeypatch, tls=True) as mesh:
        worker = await mesh.worker("w1")
        await mesh.scheduler.tell(worker.presence("m"))
        await mesh.infer()


async def test_deadlines_that_pass_are_not_taken_for_bugs(mesh: MeshUnderTest, capfd: pytest.CaptureFixture[str]) -> None:
    worker = await mesh.worker("w1")
    worker.engine.gate.clear()
    await mesh.scheduler.tell(worker.presence("m"))
    outcomes = await asyncio.gather(*(mesh.infer(timeout=0.2 + 0.01 * number) for number in range(30)), return_exceptions=True)
    assert all(isinstance(one, grpc.aio.AioRpcError) for one in outcomes)
    worker.engine.gate.set()
    await mesh.infer()
    assert "unmapped_error" not in capfd.readouterr().err
