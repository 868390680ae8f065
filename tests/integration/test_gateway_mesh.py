"""The gateway as it runs: real mTLS to a scheduler, a registry and workers, as thin as their contracts allow; a real etcd."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
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
from runtime.status import error_of
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
    """Tells the fleet it is given, hears what is reported, and gives the places out that it is told to."""

    def __init__(self) -> None:
        self.fleet: dict[str, presence_pb2.Presence] = {}
        self.policy = scheduler_pb2.RoutingPolicy()
        self.leaders = scheduler_pb2.LeaderList()
        self.changed = asyncio.Condition()
        self.reports: list[scheduler_pb2.ReportDemandRequest] = []
        self.asks: list[scheduler_pb2.AwaitCapacityRequest] = []
        self.place: asyncio.Future[scheduler_pb2.AwaitCapacityResponse] = asyncio.get_running_loop().create_future()
        self.withdrawn = 0
        self.watchers = 0

    async def tell(self, *workers: presence_pb2.Presence) -> None:
        async with self.changed:
            self.fleet = {worker.worker_id: worker for worker in workers}
            self.changed.notify_all()

    async def WatchFleet(self, request: Any, context: Any) -> None:  # type: ignore[override]
        self.watchers += 1
        async with self.changed:
            while True:
                everything = scheduler_pb2.PlacementList()
                await context.write(
                    scheduler_pb2.WatchFleetResponse(
                        snapshot=True,
                        workers=self.fleet.values(),
                        placements=everything,
                        routing_policy=self.policy,
                        leaders=self.leaders,
                    )
                )
                await self.changed.wait()

    async def ReportDemand(self, request: Any, context: Any) -> scheduler_pb2.ReportDemandResponse:
        async for report in request:
            self.reports.append(report)
        return scheduler_pb2.ReportDemandResponse()

    async def AwaitCapacity(
        self, request: scheduler_pb2.AwaitCapacityRequest, context: Any
    ) -> scheduler_pb2.AwaitCapacityResponse:
        self.asks.append(request)
        try:
            return await asyncio.shield(self.place)
        except asyncio.CancelledError:
            self.withdrawn += 1
            raise


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

    def presence(self, *models: str, max_in_flight: int = 64) -> presence_pb2.Presence:
        copies = [worker_pb2.ModelCopy(model=each, version="1", digest="d" * 64, state=READY, task="tensor") for each in models]
        return presence_pb2.Presence(
            worker_id=self.identity.node_id,
            region="local",
            address=f"127.0.0.1:{self.port}",
            models=copies,
            max_in_flight=max_in_flight,
        )


@dataclass
class MeshUnderTest:
    authority: Authority
    folder: Path
    stack: AsyncExitStack
    schedulers: list[Scheduler]
    registry: Registry
    scheduler_servers: list[grpc.aio.Server]
    ports: dict[str, int] = field(default_factory=dict)
    channel: Any = None

    @property
    def scheduler(self) -> Scheduler:
        return self.schedulers[0]

    async def worker(self, name: str) -> Member:
        identity, engine = self.authority.enrol(self.folder / name, Role.WORKER), Engine()
        engine.gate.set()
        execution = Execution(engine, WorkerId(identity.node_id), asyncio.Event())
        listen = Listen("127.0.0.1", 0, identity)
        running = await self.stack.enter_async_context(
            serving([listen], [execution.register], [WORKER_SERVICE], drain_grace_s=0.1)
        )
        return Member(engine, identity, running.ports[0], running.server, execution)

    async def infer(
        self,
        model: str = "m",
        *,
        key: str = KEY,
        timeout: float = 10,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        payload = pb.ModelInferRequest(model_name=model, raw_input_contents=[body]).SerializeToString()
        call: Any = self.channel.unary_unary(METHOD, None, None)
        answer: bytes = await call(
            payload, metadata=(("authorization", f"Bearer {key}"), *(headers or {}).items()), timeout=timeout
        )
        assert answer == payload
        return answer


@asynccontextmanager
async def mesh_under_test(
    folder: Path,
    etcd: EtcdServer,
    monkeypatch: pytest.MonkeyPatch,
    *,
    tls: bool = False,
    schedulers: int = 1,
    more: Mapping[str, Any] | None = None,
) -> AsyncIterator[MeshUnderTest]:
    # The process-wide registry of metrics is the process's: each gateway of these tests gets its own.
    monkeypatch.setattr(prometheus_client, "REGISTRY", prometheus_client.CollectorRegistry())
    authority = Authority.open(folder / "ca")
    for role in (Role.GATEWAY, Role.ENVOY):
        authority.enrol(folder / role.value, role)
    registry = Registry()  # type: ignore[abstract]  # made whole above
    told = [Scheduler() for _ in range(schedulers)]  # type: ignore[abstract]

    def registry_services(server: grpc.aio.Server) -> None:
        accounts_pb2_grpc.add_AccountServiceServicer_to_server(registry, server)
        models_pb2_grpc.add_ModelServiceServicer_to_server(registry, server)

    async with AsyncExitStack() as stack:
        listen = Listen("127.0.0.1", 0, authority.enrol(folder / Role.REGISTRY.value, Role.REGISTRY))
        running = await stack.enter_async_context(serving([listen], [registry_services], [], drain_grace_s=0.1))
        registry_address, addresses, servers = f"127.0.0.1:{running.ports[0]}", [], []
        for number, scheduler in enumerate(told):
            identity = authority.enrol(folder / f"scheduler-{number}", Role.SCHEDULER)
            register = partial(scheduler_pb2_grpc.add_FleetServiceServicer_to_server, scheduler)
            listen = Listen("127.0.0.1", 0, identity)
            running = await stack.enter_async_context(serving([listen], [register], [], drain_grace_s=0.1))
            addresses.append(f"127.0.0.1:{running.ports[0]}")
            servers.append(running.server)
        notice = ModelNotice(ModelName("m"), TenantId("t"), frozenset())
        async with EtcdStore(EtcdSettings.at(etcd.endpoint)) as store:
            record = sign_record(load_identity(folder / "registry"), model_payload(notice))
            await store.put(model_notice_key(notice.model), record)
        settings = GatewaySettings(
            identity_dir=folder / "gateway",
            etcd_endpoints=etcd.endpoint,
            registry_address=registry_address,
            scheduler_address=",".join(addresses),
            edge_port=0,
            ready_file=folder / "ready",
            cold_wait_s=2,
            drain_grace_s=0.2,
            edge_certificate=folder / "gateway" / "tls.pem" if tls else None,
            edge_key=folder / "gateway" / "tls.key" if tls else None,
            **(more or {}),
        )
        stop = asyncio.Event()
        gateway = asyncio.create_task(serve(settings, stop))
        try:
            async with asyncio.timeout(10):
                while not (folder / "ready").exists() and not gateway.done():
                    await asyncio.sleep(0.01)
            if gateway.done():
                gateway.result()
            ports = json.loads((folder / "ready").read_text())
            mesh = MeshUnderTest(authority, folder, stack, told, registry, servers, ports)
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


async def reached(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def heard_of(scheduler: Scheduler, requests: int) -> bool:
    return sum(each.requests for report in scheduler.reports for each in report.models) == requests


async def full_mesh(mesh: MeshUnderTest) -> tuple[Member, asyncio.Task[bytes]]:
    """One worker with one place, and a request that has it."""
    worker = await mesh.worker("w1")
    await mesh.scheduler.tell(worker.presence("m", max_in_flight=1))
    worker.engine.gate.clear()
    first = asyncio.create_task(mesh.infer())
    await reached(lambda: worker.engine.running)
    return worker, first


async def test_a_full_fleet_is_waited_for_at_the_scheduler(mesh: MeshUnderTest) -> None:
    worker, first = await full_mesh(mesh)
    waiting = asyncio.create_task(mesh.infer(timeout=9))
    await reached(lambda: mesh.scheduler.asks)
    ask = mesh.scheduler.asks[0]
    assert (ask.model, ask.region, ask.tenant) == ("m", "local", "t")
    assert 5_000_000 < ask.timeout_us < 9_200_000
    worker.engine.gate.set()
    held = scheduler_pb2.AwaitCapacityResponse(worker_id=worker.identity.node_id, version="1", hold_id="f" * 32)
    mesh.scheduler.place.set_result(held)
    await waiting
    await first
    assert worker.engine.calls == 2


async def test_a_client_that_goes_away_leaves_the_queue(mesh: MeshUnderTest) -> None:
    worker, first = await full_mesh(mesh)
    waiting = asyncio.create_task(mesh.infer())
    await reached(lambda: mesh.scheduler.asks)
    waiting.cancel()
    await reached(lambda: mesh.scheduler.withdrawn)
    worker.engine.gate.set()
    await first


async def test_what_the_queue_says_reaches_the_client_with_its_delay(mesh: MeshUnderTest) -> None:
    worker, first = await full_mesh(mesh)
    mesh.scheduler.place.set_exception(ResourceExhausted("40 wait before you", retry_after_s=4.5))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await mesh.infer()
    error = error_of(refused.value)
    assert (error.code.name, error.message, error.retry_after_s) == ("RESOURCE_EXHAUSTED", "40 wait before you", 4.5)
    worker.engine.gate.set()
    await first


async def test_without_a_scheduler_a_full_fleet_is_said_and_warm_traffic_goes_on(mesh: MeshUnderTest) -> None:
    worker, first = await full_mesh(mesh)
    await mesh.scheduler_servers[0].stop(None)
    for _ in range(3):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await mesh.infer()
        assert error_of(refused.value).reason == "FLEET_FULL"
    worker.engine.gate.set()
    await first
    await mesh.infer()


async def test_demand_is_told_to_every_scheduler_and_another_is_watched_when_one_goes(
    tmp_path: Path, etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_under_test(tmp_path, etcd, monkeypatch, schedulers=2) as mesh:
        workers = [await mesh.worker("w1"), await mesh.worker("w2")]
        for scheduler in mesh.schedulers:
            await scheduler.tell(workers[0].presence("m"))
        for _ in range(5):
            await mesh.infer()
        for scheduler in mesh.schedulers:
            await reached(partial(heard_of, scheduler, 5))
            seen = [each for report in scheduler.reports for each in report.workers]
            assert {each.worker_id for each in seen} == {workers[0].identity.node_id}
            assert seen[0].latency_ms > 0
            assert 0 < seen[0].rtt_ms < 1_000
        assert [scheduler.watchers for scheduler in mesh.schedulers] == [1, 0]
        await mesh.scheduler_servers[0].stop(None)
        await reached(lambda: mesh.schedulers[1].watchers)
        await mesh.infer()
        await mesh.schedulers[1].tell(workers[1].presence("m"))
        async with asyncio.timeout(10):
            while not workers[1].engine.calls:
                await mesh.infer()


async def test_a_silent_worker_that_discovery_removes_gives_its_requests_up(
    mesh: MeshUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dynamo#8182: a frozen worker keeps its connection, so only its absence from the fleet tells that nothing will come."""
    monkeypatch.setattr("gateway.links.roster.LINGER_S", 0.3)
    workers = [await mesh.worker("w1"), await mesh.worker("w2")]
    await mesh.scheduler.tell(workers[0].presence("m"))
    await mesh.infer()
    workers[0].engine.gate.clear()  # its link stays open and says nothing
    orphans = [asyncio.create_task(mesh.infer()) for _ in range(8)]
    await reached(lambda: workers[0].engine.running == 8)
    await mesh.scheduler.tell(workers[1].presence("m"))
    async with asyncio.timeout(5):
        await asyncio.gather(*orphans)
    assert workers[1].engine.calls == 8
    workers[0].engine.gate.set()


async def test_a_rule_of_the_routing_policy_holds_from_the_watch_on(mesh: MeshUnderTest) -> None:
    workers = [await mesh.worker("w1"), await mesh.worker("w2")]
    rule = mesh.scheduler.policy.rules.add(name="not w1")
    rule.deny.add(worker_ids=[workers[0].identity.node_id])
    await mesh.scheduler.tell(*(worker.presence("m") for worker in workers))
    for _ in range(6):
        await mesh.infer()
    assert [worker.engine.calls for worker in workers] == [0, 6]
