"""A front door to be harmed: the real services of a gateway on a port of their own and behind a real Envoy, workers made up.

Everything that reaches a servicer is written down, and innocent callers go on calling while harm is done.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import resource
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import psutil
from inference import grpc_service_pb2 as kserve
from inference import grpc_service_pb2_grpc
from xds import discovery_pb2_grpc

from gateway.exchange import Exchange
from gateway.jobs.servicer import SERVICE as JOBS
from gateway.jobs.servicer import JobServicer
from gateway.kserve.servicer import SERVICE as KSERVE
from gateway.links.types import CallContext, Method
from gateway.openai.peers import BatchesClient, FilesClient
from gateway.openai.servicer import SERVICE as OPENAI
from gateway.openai.servicer import OpenAIServicer
from gateway.rest.servicer import SERVICE as REST
from gateway.xds.servicer import SERVICE as DISCOVERY
from gateway.xds.types import EdgeLimits, Endpoint
from placement.types import Request
from runtime.serving import Listen, Register, ServerLimits, serving
from tests.gateway.edge import CALLER, GatewayUnderTest, gateway_under_test
from tests.gateway.fakes import copy_of, worker_of
from tests.gateway.jobs.scheduler import MemoryScheduler, kept_by
from tests.gateway.openai.mesh import SECRET, ScriptedRouter, SmallMesh, piece, small_mesh
from tests.support.edge import EdgeUnderTest, edge_under_test
from tests.support.envoy import LOOPBACK, RunningEnvoy
from tests.support.raw_http import RawConnection, exchanged

CHAT = "/v1/chat/completions"
CHAT_BODY = json.dumps({"model": "sums", "messages": [{"role": "user", "content": "2 + 2?"}]}).encode()
BODY_BYTES = 1024 * 1024
LIMITS = EdgeLimits(body_bytes=BODY_BYTES, header_kib=16, request_headers_timeout_s=3.0, stream_idle_timeout_s=3.0)
"""Small, so that nobody has to wait until they are reached."""

ENDLESS = "able"
PIECE_BYTES = 8 * 1024
_EVERY_S = 0.05
_ANSWERED_S = 60.0


@dataclass(slots=True)
class Seen(grpc.aio.ServerInterceptor):
    """Every call that reached a servicer: its method, and what came with it."""

    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        if DISCOVERY not in details.method:
            self.calls.append((details.method.rpartition("/")[2], dict(details.invocation_metadata or ())))
        return await continuation(details)

    def take(self) -> list[tuple[str, dict[str, Any]]]:
        """What was not taken before."""
        found, self.calls = self.calls, []
        return found


@dataclass(slots=True)
class LongWinded(ScriptedRouter):
    """Goes on and on for one of the models, as fast as it is read."""

    talking: int = 0
    begun_talking: int = 0
    pieces: int = 0

    async def stream(
        self, method: Method, request: Request, payload: bytes, call: CallContext, exchange: Exchange
    ) -> AsyncGenerator[bytes, None]:
        if request.model != ENDLESS:
            async with aclosing(ScriptedRouter.stream(self, method, request, payload, call, exchange)) as answers:
                async for answer in answers:
                    yield answer
            return
        self.talking += 1
        self.begun_talking += 1
        try:
            while True:
                self.pieces += 1
                yield piece("x" * PIECE_BYTES)
                await asyncio.sleep(0)
        finally:
            self.talking -= 1


@dataclass(slots=True)
class Tally:
    """How innocent callers fared."""

    answered: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Front:
    edge: EdgeUnderTest
    envoy: RunningEnvoy
    mesh: SmallMesh
    """Of the OpenAI service and jobs."""
    kserve: GatewayUnderTest
    seen: Seen
    http: Endpoint
    """Envoy's."""
    grpc: Endpoint
    """The gateway's own."""
    client: httpx.AsyncClient
    stub: grpc_service_pb2_grpc.GRPCInferenceServiceStub

    async def raw(self, *sent: bytes) -> RawConnection:
        """What Envoy answers to these bytes."""
        return await exchanged(self.http, *sent)

    async def chat(self, **headers: str) -> httpx.Response:
        """One chat, as anybody asks it."""
        told = {"authorization": f"Bearer {SECRET}", "content-type": "application/json", **headers}
        return await self.client.post(CHAT, content=CHAT_BODY, headers=told)

    async def infer(self) -> bytes:
        """One inference over the gateway's own port."""
        request = kserve.ModelInferRequest(model_name="m")
        metadata = (("authorization", f"Bearer {CALLER}"),)
        return (await self.stub.ModelInfer(request, metadata=metadata, timeout=_ANSWERED_S)).SerializeToString()

    async def is_well(self) -> None:
        """Both doors answer, and both processes live."""
        assert self.envoy.process.returncode is None, self.envoy.log.read_text()
        answer = await self.chat()
        assert answer.status_code == 200, answer.text
        await self.infer()

    def rss_bytes(self) -> tuple[int, int]:
        """What the gateway's process, which is this one, and Envoy's hold. What only the allocator keeps does not count."""
        gc.collect()
        with suppress(AttributeError, OSError):  # of glibc alone
            ctypes.CDLL(None).malloc_trim(0)
        return psutil.Process().memory_info().rss, psutil.Process(self.envoy.process.pid).memory_info().rss

    @asynccontextmanager
    async def innocents(self, every_s: float = _EVERY_S) -> AsyncIterator[Tally]:
        """Others call at both doors meanwhile; each of their calls has to be answered."""
        tally = Tally()

        async def call() -> None:
            try:
                answer = await self.chat()
                if answer.status_code != 200:
                    tally.failures.append(f"{answer.status_code} {answer.text[:200]}")
                await self.infer()
                tally.answered += 1
            except (httpx.HTTPError, grpc.aio.AioRpcError) as error:
                tally.failures.append(repr(error))

        async def go_on() -> None:
            while True:
                await call()
                await asyncio.sleep(every_s)

        async with asyncio.TaskGroup() as tasks:
            going = tasks.create_task(go_on())
            try:
                await call()
                yield tally
                await call()
            finally:
                going.cancel()
        assert tally.failures == [], tally.failures[:5]
        assert tally.answered >= 2

    @asynccontextmanager
    async def holding_no_more_than(self, mib: int) -> AsyncIterator[None]:
        """Neither process grows by more than this while the context lasts. What grew is printed: see it with pytest -s."""
        before = self.rss_bytes()
        yield
        grown = [(now - then) / 2**20 for now, then in zip(self.rss_bytes(), before, strict=True)]
        print(f"\ngateway {grown[0]:+.1f} MiB, Envoy {grown[1]:+.1f} MiB")  # noqa: T201
        assert max(grown) <= mib, f"gateway {grown[0]:+.1f} MiB, Envoy {grown[1]:+.1f} MiB"


def raise_file_limit() -> int:
    """As many files as this process and its children may have; how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


@asynccontextmanager
async def front_door(folder: Path, limits: EdgeLimits = LIMITS) -> AsyncIterator[Front]:
    """All of it, until left."""
    raise_file_limit()
    mesh, seen = small_mesh(), Seen()
    mesh.router = LongWinded()
    async with AsyncExitStack() as stack:
        schedulers = await stack.enter_async_context(kept_by(MemoryScheduler()))
        under_test = await stack.enter_async_context(gateway_under_test(worker_of("w1", copy_of("m"))))
        made = await stack.enter_async_context(edge_under_test(folder))
        registers: list[Register] = [
            OpenAIServicer(mesh, FilesClient(schedulers), BatchesClient(schedulers)).register,
            JobServicer(mesh, schedulers).register,
            *under_test.registers,
            partial(discovery_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server, made.discovery),
        ]
        listens = [Listen(LOOPBACK, 0, made.identity), Listen(LOOPBACK, 0)]
        server_limits = ServerLimits(message_bytes=limits.body_bytes + 64 * 1024)
        services = (OPENAI, JOBS, KSERVE, REST, DISCOVERY)
        running = await stack.enter_async_context(
            serving(listens, registers, services, interceptors=[seen], limits=server_limits, drain_grace_s=0.2)
        )
        inner, outer = (Endpoint(LOOPBACK, port) for port in running.ports)
        made.publish(inner, limits=limits)
        envoy = await made.envoy(inner)
        await envoy.until_listening(made.edge.listen)
        await made.settled()
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=made.url, timeout=_ANSWERED_S))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"{outer.host}:{outer.port}"))
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        yield Front(made, envoy, mesh, under_test, seen, made.edge.listen, outer, client, stub)
