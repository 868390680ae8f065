"""A gateway that stands in for the real one behind Envoy: real certificates, real gRPC, answers chosen by the request.

The body of a chat request says what to do: {"do": "plain"}, "stream", "refuse", "raise", "hang", "large", "break".
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.api import httpbody_pb2
from google.protobuf.descriptor import ServiceDescriptor
from penstock.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from xds import discovery_pb2_grpc

from gateway.__main__ import ENVELOPE_BYTES
from gateway.http.paths import Paths
from gateway.http.refusal import refusal
from gateway.http.server import HttpDoor, HttpLimits, http_serving
from gateway.xds.bootstrap import Bootstrap
from gateway.xds.descriptors import annotated_services, load_descriptor_set
from gateway.xds.holder import SnapshotHolder
from gateway.xds.resources import edge_snapshot
from gateway.xds.servicer import SERVICE, DiscoveryServicer
from gateway.xds.types import Edge, Endpoint
from runtime.errors import ResourceExhausted
from runtime.identity import Authority, NodeIdentity, Role
from runtime.serving import Listen, Running, ServerLimits, serving
from tests.support.envoy import LOOPBACK, RunningEnvoy, free_endpoint, running_envoy

OPENAI = "penstock.gateway.v1.OpenAIService"
Context = grpc.aio.ServicerContext[Any, Any]


def _json(content: object) -> httpbody_pb2.HttpBody:
    return httpbody_pb2.HttpBody(content_type="application/json", data=json.dumps(content).encode())


@dataclass(slots=True)
class StandIn(gateway_pb2_grpc.OpenAIServiceServicer):
    """Its answers, and what it saw."""

    name: str
    metadata: dict[str, str] = field(default_factory=dict)
    peer_pem: bytes = b""
    """The certificate that the latest caller showed."""
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    """A streamed answer writes one chunk for each release."""
    served: int = 0

    async def CreateChatCompletion(
        self, request: httpbody_pb2.HttpBody, context: Context
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        self._note(context)
        asked = json.loads(request.data)
        match asked["do"]:
            case "plain":
                yield _json({"from": self.name, "bytes": len(request.data), "type": request.content_type})
            case "stream":
                for index in range(asked["chunks"]):
                    await self.turn.acquire()
                    yield httpbody_pb2.HttpBody(content_type="text/event-stream", data=f"data: {index}\n\n".encode())
            case "refuse":
                await context.send_initial_metadata((("x-penstock-http-status", "429"), ("retry-after", "7")))
                yield _json({"error": {"message": "slower", "type": "rate_limit_error", "param": None, "code": "limit"}})
            case "raise":
                raise ResourceExhausted('say "less"', retry_after_s=1.5)
            case "hang":
                self.begun.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise
            case "large":
                yield _json({"pad": "x" * asked["bytes"]})
            case "break":
                yield httpbody_pb2.HttpBody(content_type="text/event-stream", data=b"data: 0\n\n")
                raise ResourceExhausted("in the middle")

    async def CreateCompletion(self, request: httpbody_pb2.HttpBody, context: Context) -> AsyncIterator[httpbody_pb2.HttpBody]:
        self._note(context)
        yield _json({"from": self.name})

    async def CreateEmbeddings(self, request: httpbody_pb2.HttpBody, context: Context) -> httpbody_pb2.HttpBody:
        self._note(context)
        if json.loads(request.data).get("do") == "refuse":
            await context.send_initial_metadata((("x-penstock-http-status", "404"),))
            return _json(
                {"error": {"message": "no such model", "type": "invalid_request_error", "param": None, "code": "none"}}
            )
        return _json({"from": self.name, "bytes": len(request.data)})

    async def ListModels(self, request: gateway_pb2.ListModelsRequest, context: Context) -> httpbody_pb2.HttpBody:
        self._note(context)
        return _json({"object": "list", "data": [], "from": self.name})

    async def GetModel(self, request: gateway_pb2.GetModelRequest, context: Context) -> httpbody_pb2.HttpBody:
        self._note(context)
        return _json({"id": request.model, "object": "model"})

    def _note(self, context: Context) -> None:
        self.served += 1
        self.peer_pem = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
        self.metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}

    def handlers(self) -> grpc.GenericRpcHandler:
        """Raw-byte methods in the place of the inference service: what an edge must not touch."""

        async def unary(request: bytes, context: Context) -> bytes:
            self._note(context)
            await context.send_initial_metadata((("x-served-by", self.name), ("x-penstock-http-status", "404")))
            return request[::-1]

        async def bidi(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
            self._note(context)
            async for request in requests:
                yield request[::-1]

        return grpc.method_handlers_generic_handler(
            "inference.GRPCInferenceService",
            {
                "ModelInfer": grpc.unary_unary_rpc_method_handler(unary),
                "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(bidi),
            },
        )


@dataclass(slots=True)
class EdgeUnderTest:
    """Everything of one test: certificates, the control plane, and as many stand-ins and Envoys as it starts."""

    folder: Path
    identity: NodeIdentity
    envoy_identity: NodeIdentity
    edge: Edge
    holder: SnapshotHolder
    discovery: DiscoveryServicer
    stack: AsyncExitStack
    authority: Authority
    gateways: tuple[Endpoint, ...] = ()
    http: Mapping[Endpoint, Endpoint] | None = None
    """Where they take HTTP as it comes; None: nowhere."""

    async def gateway(self, name: str, *, port: int = 0) -> tuple[StandIn, Endpoint, Running]:
        """A stand-in that also serves discovery; not yet in the snapshot."""
        stand_in = StandIn(name)  # type: ignore[abstract]  # it answers what the tests ask
        running = await self.stack.enter_async_context(self._serving(stand_in, port))
        return stand_in, Endpoint(LOOPBACK, running.ports[0]), running

    def _serving(self, stand_in: StandIn, port: int) -> Any:
        def discovery(server: grpc.aio.Server) -> None:
            discovery_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(self.discovery, server)

        def openai(server: grpc.aio.Server) -> None:
            gateway_pb2_grpc.add_OpenAIServiceServicer_to_server(stand_in, server)

        def raw(server: grpc.aio.Server) -> None:
            server.add_generic_rpc_handlers((stand_in.handlers(),))

        listen = Listen(LOOPBACK, port, self.identity)
        limits = ServerLimits(message_bytes=self.edge.limits.body_bytes + ENVELOPE_BYTES)
        return serving([listen], [discovery, openai, raw], (OPENAI, SERVICE), limits=limits, drain_grace_s=0.2)

    def publish(self, *gateways: Endpoint, **changes: Any) -> None:
        """Put these gateways in force, with these changes to the edge."""
        self.edge, self.gateways = replace(self.edge, **changes), gateways
        self.holder.publish(edge_snapshot(self.edge, gateways, http=self.http))

    async def door(self, gateway: Endpoint, service: ServiceDescriptor, servicer: object) -> None:
        """A port of this gateway's for HTTP, in force with what is published next."""
        limits = HttpLimits(self.edge.limits.body_bytes, 1024)
        door = HttpDoor(Paths([service]), {service.full_name: servicer}, refusal, limits)
        port = await self.stack.enter_async_context(http_serving(door, LOOPBACK, 0, self.identity, 0.2))
        self.http = {gateway: Endpoint(LOOPBACK, port)}

    async def envoy(self, *control_planes: Endpoint, name: str = "edge-1", **options: Any) -> RunningEnvoy:
        """An Envoy that gets its configuration from these."""
        bootstrap = Bootstrap(name, control_planes, self.envoy_identity.files, **options)
        return await self.stack.enter_async_context(running_envoy(bootstrap, self.folder / name))

    async def settled(self, edges: int = 1) -> None:
        """Return once so many Envoys run with all that is current."""
        async with asyncio.timeout(10):
            await self.discovery.until(lambda seen: [one.settled for one in seen.edges()] == [True] * edges)

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def address(self) -> str:
        return f"{self.edge.listen.host}:{self.edge.listen.port}"


@asynccontextmanager
async def edge_under_test(folder: Path) -> AsyncIterator[EdgeUnderTest]:
    """Certificates and a control plane; nothing serves yet."""
    authority = Authority.open(folder / "authority")
    identity = authority.enrol(folder / "gateway", Role.GATEWAY)
    envoy_identity = authority.enrol(folder / "envoy", Role.ENVOY)
    descriptor_set = load_descriptor_set()
    edge = Edge(free_endpoint(), envoy_identity.files, descriptor_set, annotated_services(descriptor_set))
    holder = SnapshotHolder()
    discovery = DiscoveryServicer(holder, identifier="stand-in")
    async with AsyncExitStack() as stack:
        yield EdgeUnderTest(folder, identity, envoy_identity, edge, holder, discovery, stack, authority)


@asynccontextmanager
async def started_edge(folder: Path) -> AsyncIterator[tuple[EdgeUnderTest, StandIn]]:
    """One stand-in behind one Envoy, answering."""
    async with edge_under_test(folder) as edge:
        stand_in, endpoint, _ = await edge.gateway("first")
        edge.publish(endpoint)
        envoy = await edge.envoy(endpoint)
        await envoy.until_listening(edge.edge.listen)
        await edge.settled()
        yield edge, stand_in
