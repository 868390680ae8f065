"""A mesh of one process for the OpenAI service: real admission and fleet view, workers whose answers the test chooses."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc.aio
import numpy as np
from google.api.httpbody_pb2 import HttpBody
from inference import grpc_service_pb2 as kserve
from penstock.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from penstock.worker.v1 import worker_pb2
from prometheus_client import CollectorRegistry

from gateway.admission import KeyFacts, RateLimited
from gateway.auto import AutoModels
from gateway.callers import Callers
from gateway.exchange import Exchange, Exchanges
from gateway.keys import Keys
from gateway.limits.types import Limit
from gateway.links.types import CallContext, Method
from gateway.metrics import GatewayMetrics
from gateway.openai.peers import BatchesClient, FilesClient
from gateway.openai.servicer import SERVICE, OpenAIServicer
from gateway.regions import Regions
from gateway.targets import Targets
from gateway.types import PublishedVersion
from placement.copies.wishes import Placement
from placement.types import Copy, CopyState, Request, Worker
from placement.view import FleetView
from runtime.clock import SystemClock
from runtime.errors import NotFound, PenstockError
from runtime.ids import Digest, KeyId, ModelName, ModelVersion, Region, TenantId, WorkerId
from runtime.notices import NoticeBoard
from runtime.serving import Listen, serving
from tests.gateway.jobs.scheduler import MemoryScheduler, kept_by

SECRET, LIMITED, NARROW = "sk-good", "sk-limited", "sk-narrow"
STRANGER, AUDITOR = "sk-stranger", "sk-auditor"
"""The one is another tenant's, the other may look and not call."""
PUBLISHED_AT_S = 1_700_000_000
LOCAL = Region("local")


def piece(text: str, finish: int = 0, prompt_tokens: int = 0, completion_tokens: int = 0) -> bytes:
    message = worker_pb2.GenerateResponse(text=text, finish_reason=finish)  # type: ignore[arg-type]
    if finish:
        message.usage.prompt_tokens, message.usage.completion_tokens = prompt_tokens, completion_tokens
    return message.SerializeToString()


def called(place: int, call_id: str = "", name: str = "", arguments: str = "") -> bytes:
    """A part of a tool call."""
    part = worker_pb2.ToolCallDelta(index=place, id=call_id, name=name, arguments=arguments)
    return worker_pb2.GenerateResponse(tool_calls=[part]).SerializeToString()


ANSWER = (piece("Hel"), piece('lo "wörld"\n'), piece("", worker_pb2.FINISH_REASON_STOP, 7, 3))


@dataclass(slots=True)
class ScriptedRouter:
    """Answers what it was told, and remembers what it was asked."""

    answers: Sequence[bytes | PenstockError] = ANSWER
    answering: str = ""
    """The model that answers; empty: the one that is asked."""
    asked: list[worker_pb2.GenerateRequest] = field(default_factory=list)
    inferred: list[kserve.ModelInferRequest] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    calls: list[CallContext] = field(default_factory=list)
    hang: bool = False
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    embed: Callable[[kserve.ModelInferRequest], np.ndarray[Any, Any]] = field(default=lambda request: _embedded(request))

    async def infer(self, request: Request, payload: bytes, call: CallContext, exchange: Exchange) -> bytes:
        exchange.granted("w1", request.model, request.version or ModelVersion("1"))
        asked = kserve.ModelInferRequest.FromString(payload)
        self.inferred.append(asked)
        self.requests.append(request)
        self.calls.append(call)
        vectors = self.embed(asked)
        answer = kserve.ModelInferResponse(model_name=asked.model_name, raw_output_contents=[vectors.tobytes()])
        answer.outputs.add(name=asked.outputs[0].name, datatype="FP32", shape=vectors.shape)
        return answer.SerializeToString()

    async def warm(self, request: Request, call: CallContext) -> None:
        """A copy is ready."""
        self.requests.append(request)

    async def stream(
        self,
        method: Method,
        request: Request,
        payload: bytes,
        call: CallContext,
        exchange: Exchange,
    ) -> AsyncGenerator[bytes, None]:
        assert method is Method.GENERATE
        if self.answering:
            exchange.fell_back = request.model
        exchange.granted("w1", self.answering or request.model, request.version or ModelVersion("1"))
        self.asked.append(worker_pb2.GenerateRequest.FromString(payload))
        self.requests.append(request)
        self.calls.append(call)
        try:
            for answer in self.answers:
                if isinstance(answer, PenstockError):
                    raise answer
                yield answer
            if self.hang:
                self.begun.set()
                await asyncio.Event().wait()
        finally:
            self.left.set()


def _embedded(request: kserve.ModelInferRequest) -> np.ndarray[Any, Any]:
    rows = request.inputs[0].shape[0]
    return np.arange(rows * 3, dtype="<f4").reshape(rows, 3) + len(request.raw_input_contents[0])


@dataclass(slots=True)
class FixedFleet:
    view: FleetView
    synced: bool = True
    known: frozenset[str] = frozenset()
    on_demand: tuple[Placement, ...] = ()

    def copies(self, model: str, version: str = "") -> tuple[tuple[Worker, Copy], ...]:
        return tuple(pair for pair in self.view.copies_of(ModelName(model)) if version in ("", pair[1].version))

    def placed(self, model: str, version: str = "") -> bool:
        return model in self.known

    def regions_with(self, model: str) -> list[Region]:
        return []

    def wanted(self) -> Iterator[Placement]:
        return iter(self.on_demand)


@dataclass(slots=True)
class FixedRegistry:
    failure: PenstockError | None = None
    asked: int = 0

    async def published(self) -> Sequence[PublishedVersion]:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return [PublishedVersion(ModelName("sums"), ModelVersion("1"), Digest("d-sums"), "chat", PUBLISHED_AT_S)]


@dataclass(slots=True)
class FixedCopies:
    """Every embedding model takes this."""

    datatype: str = "BYTES"
    shape: tuple[int, ...] = (-1, 1)

    async def metadata(self, name: str, version: str) -> kserve.ModelMetadataResponse:
        answer = kserve.ModelMetadataResponse(name=name)
        answer.inputs.add(name="text", datatype=self.datatype, shape=self.shape)
        answer.outputs.add(name="ignored", datatype="INT64", shape=[-1])
        answer.outputs.add(name="vector", datatype="FP32", shape=[-1, 3])
        return answer

    def chosen(self, model: str, version: str) -> ModelVersion:
        return ModelVersion(version or "1")


@dataclass(slots=True)
class FixedKeys:
    revoked: set[str] = field(default_factory=set)

    async def resolve(self, secret_sha256: bytes) -> KeyFacts:
        for secret, facts in _KEYS.items():
            if secret not in self.revoked and hashlib.sha256(secret.encode()).digest() == secret_sha256:
                return facts
        raise NotFound("no such key")


@dataclass(slots=True)
class OneByOne:
    """A `gateway.exchange.Limiter` of requests/s, one at a time; remembers what requests were thought to take, and took."""

    free_at_s: dict[KeyId, float] = field(default_factory=dict)
    thought: list[int] = field(default_factory=list)
    came_to: list[tuple[int, int]] = field(default_factory=list)

    async def admit(self, key: KeyFacts, model: str, tokens: int, deadline_s: float | None = None) -> OneTicket | None:
        now_s = asyncio.get_running_loop().time()
        wait_s = self.free_at_s.get(key.key_id, 0.0) - now_s
        if wait_s > 0:
            raise RateLimited("this key asks too often", retry_after_s=wait_s)
        self.free_at_s[key.key_id] = now_s + 1 / key.limits[0].requests_per_s
        self.thought.append(tokens)
        return OneTicket(self)


@dataclass(slots=True)
class OneTicket:
    limiter: OneByOne

    def used(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.limiter.came_to.append((prompt_tokens, completion_tokens))

    def close(self) -> None:
        """Nothing is held."""

    def headers(self) -> tuple[tuple[str, str], ...]:
        return (("x-ratelimit-remaining-requests", "0"),)


_KEYS = {
    SECRET: KeyFacts(KeyId("k1"), TenantId("acme")),
    LIMITED: KeyFacts(KeyId("k2"), TenantId("acme"), limits=(Limit("slow", key_id="k2", requests_per_s=0.5, burst=1),)),
    NARROW: KeyFacts(KeyId("k3"), TenantId("acme"), allowed_models=frozenset({"words"})),
    STRANGER: KeyFacts(KeyId("k4"), TenantId("other")),
    AUDITOR: KeyFacts(KeyId("k5"), TenantId("acme"), may_infer=False),
}


ABLE = frozenset({"tools", "json", "json_schema", "logprobs", "penalties", "logit_bias"})


def _copy(model: str, task: str, state: CopyState = CopyState.READY, max_batch_size: int = 0, able: bool = False) -> Copy:
    copy = Copy(ModelName(model), ModelVersion("1"), Digest(f"d-{model}"), state, task=task, max_batch_size=max_batch_size)
    return replace(copy, capabilities=ABLE) if able else copy


def small_fleet() -> FixedFleet:
    copies = (
        _copy("sums", "chat"),
        _copy("words", "completion"),
        _copy("able", "chat", able=True),
        _copy("digits", "tensor"),
        _copy("vectors", "embedding", max_batch_size=4),
        _copy("late", "chat", CopyState.LOADING),
    )
    worker = Worker(WorkerId("w1"), Region("local"), "127.0.0.1:1", copies=copies, max_in_flight=8)
    return FixedFleet(FleetView().with_worker(worker), known=frozenset({"coming"}))


@dataclass(slots=True)
class SmallMesh:
    """What a gateway.mesh.Mesh is to the service."""

    callers: Callers
    exchanges: Exchanges
    auto: AutoModels
    counted: CollectorRegistry
    fleet: FixedFleet
    targets: Targets
    router: ScriptedRouter = field(default_factory=ScriptedRouter)
    copies: FixedCopies = field(default_factory=FixedCopies)
    registry: FixedRegistry = field(default_factory=FixedRegistry)
    regions: Regions = field(default_factory=lambda: Regions(LOCAL, lambda: (LOCAL,), header_allowed=True))
    directory: FixedKeys = field(default_factory=FixedKeys)
    keys: Keys | None = None
    limiter: OneByOne = field(default_factory=lambda: OneByOne())

    @property
    def dispatch(self) -> ScriptedRouter:
        return self.router

    def revoke(self, secret: str) -> None:
        """As the registry would, and tell of it."""
        self.directory.revoked.add(secret)
        if self.keys is not None:
            self.keys.forget([_KEYS[secret].key_id])

    def count(self, method: str, model: str, code: str) -> float:
        labels = {"method": method, "model": model, "code": code}
        return self.counted.get_sample_value("penstock_gateway_requests_total", labels) or 0.0


def small_mesh(*, keys: bool = True, board: NoticeBoard | None = None) -> SmallMesh:
    counted, fleet, directory = CollectorRegistry(), small_fleet(), FixedKeys()
    known = Keys(directory, SystemClock()) if keys else None
    callers, targets = Callers(known, GatewayMetrics(CollectorRegistry())), Targets(board, fleet, enforced=keys, wait_s=0.2)
    limiter = OneByOne()
    exchanges = Exchanges(GatewayMetrics(counted), limiter)
    return SmallMesh(
        callers, exchanges, AutoModels(), counted, fleet, targets, directory=directory, keys=known, limiter=limiter
    )


@dataclass(slots=True)
class Served:
    """The service on a port of its own, asked over gRPC as Envoy asks it."""

    mesh: SmallMesh
    channel: grpc.aio.Channel
    scheduler: MemoryScheduler

    async def ask(self, method: str, request: Any = None, secret: str = SECRET, **fields: Any) -> Answered:
        """One of the methods that answer once."""
        call = getattr(self._stub, method)(request or _requests()[method](**fields), metadata=_key(secret))
        answer = await call
        return Answered(dict(await call.initial_metadata() or ()), [answer])

    async def read(self, method: str, secret: str = SECRET, **fields: Any) -> Answered:
        """One of the methods that answer in parts."""
        call = getattr(self._stub, method)(_requests()[method](**fields), metadata=_key(secret))
        messages = [message async for message in call]
        return Answered(dict(await call.initial_metadata() or ()), messages)

    @property
    def _stub(self) -> Any:
        return gateway_pb2_grpc.OpenAIServiceStub(self.channel)

    async def post(self, method: str, body: bytes, *headers: tuple[str, str], secret: str = SECRET) -> Answered:
        call = self.begin(method, body, *headers, secret=secret)
        messages = [message async for message in call]
        return Answered(dict(await call.initial_metadata() or ()), messages)

    def begin(self, method: str, body: bytes, *headers: tuple[str, str], secret: str = SECRET, **options: Any) -> Any:
        metadata = (*headers, *_key(secret))
        ask = self.channel.unary_stream(
            f"/{SERVICE}/{method}", request_serializer=HttpBody.SerializeToString, response_deserializer=HttpBody.FromString
        )
        return ask(HttpBody(content_type="application/json", data=body), metadata=metadata, **options)


def _key(secret: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {secret}"),) if secret else ()


def _requests() -> dict[str, Any]:
    methods = gateway_pb2.DESCRIPTOR.services_by_name["OpenAIService"].methods
    return {method.name: getattr(gateway_pb2, method.input_type.name, HttpBody) for method in methods}


@dataclass(slots=True)
class Answered:
    metadata: dict[str, Any]
    messages: list[HttpBody]

    @property
    def status(self) -> int:
        return int(self.metadata.get("x-penstock-http-status", 200))

    @property
    def text(self) -> str:
        return b"".join(message.data for message in self.messages).decode()


@asynccontextmanager
async def served(mesh: SmallMesh | None = None, scheduler: MemoryScheduler | None = None) -> AsyncIterator[Served]:
    mesh, scheduler = mesh or small_mesh(), scheduler or MemoryScheduler()
    async with kept_by(scheduler) as schedulers:
        servicer = OpenAIServicer(mesh, FilesClient(schedulers), BatchesClient(schedulers))
        async with serving([Listen("127.0.0.1", 0)], [servicer.register], [SERVICE], drain_grace_s=0.2) as running:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel:
                yield Served(mesh, channel, scheduler)
