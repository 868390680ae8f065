"""A gateway's KServe service on a real port, over a fleet in memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc.aio
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc as rpc
from prometheus_client import CollectorRegistry

from gateway.admission import KeyFacts
from gateway.auto import AutoModels
from gateway.cache.response_cache import ResponseCache
from gateway.cache.types import CacheSettings
from gateway.callers import Callers
from gateway.dispatch import Dispatch
from gateway.exchange import Exchanges
from gateway.fleet import Fleet
from gateway.keys import Keys
from gateway.kserve.copies import CopyInquiry
from gateway.kserve.repository import Repository, RepositorySettings
from gateway.kserve.restrictions import grpc_restrictions, http_restrictions
from gateway.kserve.servicer import SERVICE, KServeServicer
from gateway.limits.limiter import Limiter
from gateway.limits.purse import Purse
from gateway.limits.types import Limit
from gateway.mesh import Mesh
from gateway.metrics import GatewayMetrics
from gateway.regions import Regions
from gateway.rest.servicer import SERVICE as REST
from gateway.rest.servicer import InferenceRestServicer
from gateway.routing import Router, RoutingSettings
from gateway.schedulers import Schedulers
from gateway.targets import Targets
from gateway.types import FleetNews
from placement.types import Strategy, Worker
from runtime.clock import SystemClock
from runtime.errors import NotFound
from runtime.ids import KeyId, TenantId
from runtime.notices import NoticeBoard
from runtime.serving import Listen, Register, ServerLimits, serving
from tests.gateway.fakes import LOCAL, FakeDirectory, FakeLink, FakeRepository, FakeSource, wish_of

ADMIN, CALLER, SLOW, ONLY_M = "sk-pn-admin", "sk-pn-caller", "sk-pn-slow", "sk-pn-only-m"
STRANGER, AUDITOR = "sk-pn-stranger", "sk-pn-auditor"
"""The one is another tenant's, the other may not call."""


_SELDOM = Limit("key/slow", key_id="slow", requests_per_s=0.01, burst=2)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def key_table() -> dict[bytes, KeyFacts]:
    tenant = TenantId("t")
    return {
        _digest(ADMIN): KeyFacts(KeyId("admin"), tenant, admin=True),
        _digest(CALLER): KeyFacts(KeyId("caller"), tenant),
        _digest(SLOW): KeyFacts(KeyId("slow"), tenant, limits=(_SELDOM,)),
        _digest(ONLY_M): KeyFacts(KeyId("only-m"), tenant, allowed_models=frozenset({"m"})),
        _digest(STRANGER): KeyFacts(KeyId("stranger"), TenantId("u"), admin=True),
        _digest(AUDITOR): KeyFacts(KeyId("auditor"), tenant, may_infer=False),
    }


def _no_scheduler(address: str) -> NoReturn:
    raise AssertionError(f"{address} is no scheduler of this test")


class StubWorker(rpc.GRPCInferenceServiceServicer):
    """What a worker says of itself."""

    def __init__(self) -> None:
        self.asked = 0

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Any) -> pb.ModelMetadataResponse:
        self.asked += 1
        if request.name == "absent":
            raise NotFound("unloaded meanwhile")
        return pb.ModelMetadataResponse(name=request.name, versions=[request.version], platform="onnxruntime_onnx")

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Any) -> pb.ModelConfigResponse:
        self.asked += 1
        answer = pb.ModelConfigResponse()
        answer.config.name, answer.config.max_batch_size = request.name, 8
        return answer

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Any) -> pb.ModelStatisticsResponse:
        answer = pb.ModelStatisticsResponse()
        for name in [request.name] if request.name else ["m", "n"]:
            one = answer.model_stats.add(name=name, version="1", inference_count=3, execution_count=2, last_inference=7)
            one.inference_stats.success.count, one.inference_stats.success.ns = 3, 300
            batch = one.batch_stats.add(batch_size=2)
            batch.compute_infer.count, batch.compute_infer.ns = 1, 10
        return answer


StubWorker.__abstractmethods__ = frozenset()  # the others are not asked of a worker here


@dataclass
class GatewayUnderTest:
    channel: grpc.aio.Channel
    stub: Any
    fleet: Fleet
    links: dict[str, FakeLink]
    repository: FakeRepository
    directory: FakeDirectory
    registry: CollectorRegistry
    worker: StubWorker
    port: int
    servicer: KServeServicer
    registers: Sequence[Register]
    """Of all that it serves, for other ports."""

    def tell(self, *workers: Worker, wishes: Sequence[str] = ()) -> None:
        self.fleet.apply(FleetNews(True, workers, placements=tuple(wish_of(model) for model in wishes)))

    def raw(self, method: str = "ModelInfer") -> Any:
        return self.channel.unary_unary(f"/{SERVICE}/{method}", None, None)


@asynccontextmanager
async def gateway_under_test(
    *workers: Worker,
    links: dict[str, FakeLink] | None = None,
    auth: bool = True,
    board: NoticeBoard | None = None,
    cold_wait_s: float = 0.2,
    load_wait_s: float = 5.0,
    stream_in_flight: int = 4,
    message_bytes: int = 1_000_000,
    header_allowed: bool = False,
    cached: bool = False,
    restricted: str = "",
) -> AsyncIterator[GatewayUnderTest]:
    made: dict[str, FakeLink] = {} if links is None else links
    clock, registry, directory, repository = SystemClock(), CollectorRegistry(), FakeDirectory(key_table()), FakeRepository()

    def open_link(worker: Worker) -> FakeLink:
        return made.setdefault(worker.worker_id, FakeLink(worker.address))

    fleet, metrics = Fleet(FakeSource(), open_link, clock, board), GatewayMetrics(registry)
    cache = ResponseCache(fleet, metrics, CacheSettings()) if cached else None
    keys, stub_worker = Keys(directory, clock), StubWorker()  # type: ignore[abstract]
    if board is not None:
        board.on_key.append(lambda key_id: keys.forget([key_id]))
        board.on_resync.append(keys.doubt_all)
    limiter = Limiter(Purse(), clock, metrics)
    limiter.unsure()  # nobody is asked here: this gateway has all of it
    settings = RoutingSettings(Strategy.ROUND_ROBIN, cold_wait_s)
    limits = ServerLimits(message_bytes=message_bytes)

    def on_worker(server: grpc.aio.Server) -> None:
        rpc.add_GRPCInferenceServiceServicer_to_server(stub_worker, server)

    async with serving([Listen("127.0.0.1", 0)], [on_worker], [SERVICE], drain_grace_s=0.1) as inner:
        copies = CopyInquiry(
            fleet,
            lambda worker: grpc.aio.insecure_channel(f"127.0.0.1:{inner.ports[0]}"),
            None if cache is None else cache.counts,
        )
        mesh = Mesh(
            Callers(keys if auth else None, metrics),
            Exchanges(metrics, limiter),
            Dispatch(Router(fleet, metrics, settings), cache=cache),
            AutoModels(),
            Targets(board, fleet, enforced=auth, wait_s=cold_wait_s),
            fleet,
            copies,
            Repository(fleet, repository, repository, RepositorySettings(LOCAL, load_copies=2, load_wait_s=load_wait_s)),
            repository,  # type: ignore[arg-type]
            metrics,
            board or NoticeBoard(),
            Schedulers([], _no_scheduler, LOCAL, clock),
            Regions(LOCAL, fleet.regions, header_allowed=header_allowed),
        )
        servicer = KServeServicer(mesh, stream_in_flight=stream_in_flight, restrictions=grpc_restrictions(restricted))
        rest = InferenceRestServicer(mesh, servicer.questions, restrictions=http_restrictions(restricted))
        registers: list[Register] = [servicer.register, rest.register]
        services = [SERVICE, REST]
        async with serving([Listen("127.0.0.1", 0)], registers, services, limits=limits, drain_grace_s=0.1) as outer:
            port = outer.ports[0]
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub = rpc.GRPCInferenceServiceStub(channel)
                under_test = GatewayUnderTest(
                    channel, stub, fleet, made, repository, directory, registry, stub_worker, port, servicer, registers
                )
                under_test.tell(*workers)
                try:
                    yield under_test
                finally:
                    await copies.close()
                    await keys.close()
                    following = asyncio.create_task(fleet.run())
                    await asyncio.sleep(0)
                    following.cancel()
                    await asyncio.gather(following, return_exceptions=True)
