"""The HTTP paths of the inference protocol through the real Envoy: what reaches the gateway, and whose shape errors have."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from google.api.httpbody_pb2 import HttpBody
from penstock.gateway.v1 import rest_pb2
from xds import discovery_pb2_grpc

from gateway.rest.documents import TWINS
from gateway.rest.envelope import asked_by_http, asked_of
from gateway.rest.types import RestAsked
from gateway.xds.types import Endpoint
from runtime.errors import ResourceExhausted
from runtime.serving import Listen, serving
from tests.support.edge import EdgeUnderTest, edge_under_test
from tests.support.envoy import LOOPBACK

SERVICE = rest_pb2.DESCRIPTOR.services_by_name["InferenceRestService"]
TENSORS = bytes(range(256)) * 16
"""No UTF-8."""
EVENTS = [HttpBody(content_type="text/event-stream", data=b"data: %d\n\n" % number) for number in range(3)]


class Echo:
    """Tells what came; a model called `limited` is refused by a status, as gRPC itself would."""

    async def take_http(self, method: str, names: Sequence[tuple[str, str]], body: bytes, context: Any) -> HttpBody | None:
        if method != "GenerateStream":
            return await self.told(method, asked_by_http(names, body), context)
        for event in EVENTS:
            await context.write(event)
        return None

    async def told(self, method: str, asked: RestAsked, context: Any) -> HttpBody:
        if asked.model == "limited":
            raise ResourceExhausted('say "less"', retry_after_s=1.5)
        headers = dict(context.invocation_metadata())
        seen = {
            name: headers.get(name, "") for name in ("content-encoding", "inference-header-content-length", "authorization")
        }
        named = {"model": asked.model, "version": asked.version, "region": asked.region, "repository": asked.repository}
        content = json.dumps(
            {"method": method, **named, **seen, "body": bytes(asked.body[:64]).hex(), "bytes": len(asked.body)}
        )
        await context.send_initial_metadata((("inference-header-content-length", str(len(content))),))
        return HttpBody(content_type="application/octet-stream", data=content.encode() + TENSORS)


def _echo(method: str) -> grpc.RpcMethodHandler[Any, Any]:
    """The same over gRPC."""

    async def told(request: bytes, context: Any) -> bytes:
        return bytes((await Echo().told(method, asked_of(request), context)).SerializeToString())

    async def events(request: bytes, context: Any) -> None:
        for event in EVENTS:
            await context.write(event.SerializeToString())

    if method == "GenerateStream":
        return grpc.unary_stream_rpc_method_handler(events)
    return grpc.unary_unary_rpc_method_handler(told)


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[EdgeUnderTest]:
    """As it is in production: the edge brings HTTP to the gateway's HTTP port."""
    async with opened(tmp_path, transcoded=False) as made:
        yield made


@pytest.fixture
async def transcoded(tmp_path: Path) -> AsyncIterator[EdgeUnderTest]:
    """Through gRPC, as where a gateway has no HTTP port."""
    async with opened(tmp_path, transcoded=True) as made:
        yield made


@asynccontextmanager
async def opened(folder: Path, *, transcoded: bool) -> AsyncIterator[EdgeUnderTest]:
    async with edge_under_test(folder) as made:

        def discovery(server: grpc.aio.Server) -> None:
            discovery_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(made.discovery, server)

        def rest(server: grpc.aio.Server) -> None:
            handlers = {method.name: _echo(method.name) for method in SERVICE.methods}
            server.add_registered_method_handlers(SERVICE.full_name, handlers)

        listen = Listen(LOOPBACK, 0, made.identity)
        running = await made.stack.enter_async_context(
            serving([listen], [discovery, rest], (SERVICE.full_name,), drain_grace_s=0.2)
        )
        endpoint = Endpoint(LOOPBACK, running.ports[0])
        if not transcoded:
            await made.door(endpoint, SERVICE, Echo())
        made.publish(endpoint)
        envoy = await made.envoy(endpoint)
        await envoy.until_listening(made.edge.listen)
        await made.settled()
        yield made


@pytest.fixture
async def client(edge: EdgeUnderTest) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=edge.url, timeout=30) as made:
        yield made


def told(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    length = int(answer.headers["inference-header-content-length"])
    assert answer.content[length:] == TENSORS
    found: dict[str, Any] = json.loads(answer.content[:length])
    return found


PATHS: list[tuple[str, str, str, dict[str, str]]] = [
    ("GET", "/v2", "GetServerMetadata", {}),
    ("GET", "/v2/health/live", "GetServerLive", {}),
    ("GET", "/v2/health/ready", "GetServerReady", {}),
    ("GET", "/v2/models/stats", "GetModelStatistics", {"model": ""}),
    ("GET", "/v2/models/m", "GetModelMetadata", {"model": "m"}),
    ("GET", "/v2/models/m/versions/7", "GetModelMetadata", {"model": "m", "version": "7"}),
    ("GET", "/v2/models/m/ready", "GetModelReady", {"model": "m"}),
    ("GET", "/v2/models/m/versions/stable/ready", "GetModelReady", {"model": "m", "version": "stable"}),
    ("GET", "/v2/models/m/config", "GetModelConfig", {"model": "m"}),
    ("GET", "/v2/models/m/versions/7/config", "GetModelConfig", {"model": "m", "version": "7"}),
    ("GET", "/v2/models/m/stats", "GetModelStatistics", {"model": "m"}),
    ("GET", "/v2/models/m/versions/7/stats", "GetModelStatistics", {"model": "m", "version": "7"}),
    ("POST", "/v2/models/m/infer", "Infer", {"model": "m"}),
    ("POST", "/v2/models/m/versions/7/infer", "Infer", {"model": "m", "version": "7"}),
    ("POST", "/v2/models/m/generate", "Generate", {"model": "m"}),
    ("POST", "/v2/models/m/versions/7/generate", "Generate", {"model": "m", "version": "7"}),
    ("POST", "/v2/repository/index", "IndexRepository", {}),
    ("POST", "/v2/repository/r/index", "IndexRepository", {"repository": "r"}),
    ("POST", "/v2/repository/models/m/load", "LoadModel", {"model": "m"}),
    ("POST", "/v2/repository/models/m/unload", "UnloadModel", {"model": "m"}),
    ("GET", "/v2/systemsharedmemory/status", "GetSystemSharedMemory", {"region": ""}),
    ("GET", "/v2/systemsharedmemory/region/r/status", "GetSystemSharedMemory", {"region": "r"}),
    ("POST", "/v2/systemsharedmemory/region/r/register", "RegisterSystemSharedMemory", {"region": "r"}),
    ("POST", "/v2/systemsharedmemory/unregister", "UnregisterSystemSharedMemory", {"region": ""}),
    ("POST", "/v2/systemsharedmemory/region/r/unregister", "UnregisterSystemSharedMemory", {"region": "r"}),
    ("GET", "/v2/cudasharedmemory/status", "GetCudaSharedMemory", {"region": ""}),
    ("GET", "/v2/cudasharedmemory/region/r/status", "GetCudaSharedMemory", {"region": "r"}),
    ("POST", "/v2/cudasharedmemory/region/r/register", "RegisterCudaSharedMemory", {"region": "r"}),
    ("POST", "/v2/cudasharedmemory/unregister", "UnregisterCudaSharedMemory", {"region": ""}),
    ("GET", "/v2/trace/setting", "GetTraceSetting", {"model": ""}),
    ("POST", "/v2/trace/setting", "UpdateTraceSetting", {"model": ""}),
    ("GET", "/v2/models/m/trace/setting", "GetTraceSetting", {"model": "m"}),
    ("POST", "/v2/models/m/trace/setting", "UpdateTraceSetting", {"model": "m"}),
    ("GET", "/v2/logging", "GetLogSettings", {}),
    ("POST", "/v2/logging", "UpdateLogSettings", {}),
]


async def test_every_path_reaches_its_call_with_what_it_names(client: httpx.AsyncClient) -> None:
    for verb, path, method, names in PATHS:
        found = told(await client.request(verb, path, headers={"authorization": "Bearer k"}))
        assert {"method": method, "authorization": "Bearer k", **names}.items() <= found.items(), path


def test_the_table_names_every_call() -> None:
    assert {method for _, _, method, _ in PATHS} | {"GenerateStream"} == {method.name for method in SERVICE.methods}
    assert {"Infer", "Generate", "GenerateStream", *TWINS} == {method.name for method in SERVICE.methods}


@pytest.mark.parametrize("http2", [False, True])
async def test_bodies_of_every_kind_pass_untouched(edge: EdgeUnderTest, http2: bool) -> None:
    sent = {
        "application/json": b'{"a":1}',
        "application/octet-stream": b"\x00\xff{}",
        "application/vnd.sagemaker-triton.binary+json;json-header-size=2": b"{}\x00",
        "": b"x",
    }
    async with httpx.AsyncClient(base_url=edge.url, http1=not http2, http2=http2, timeout=30) as client:
        for kind, body in sent.items():
            headers = {"content-type": kind, "inference-header-content-length": "2"} if kind else {}
            found = told(await client.post("/v2/models/m/infer", content=body, headers=headers))
            assert (found["body"], found["inference-header-content-length"]) == (body.hex(), "2" if kind else "")
        packed = gzip.compress(b"{}")
        found = told(await client.post("/v2/models/m/infer", content=packed, headers={"content-encoding": "gzip"}))
        assert (found["body"], found["content-encoding"]) == (packed.hex(), "gzip")
        assert told(await client.post("/v2/models/m/infer"))["bytes"] == 0
        assert told(await client.post("/v2/models/m/infer", content=b"x" * 8_000_000))["bytes"] == 8_000_000
        events = await client.post("/v2/models/m/generate_stream", content=b"{}")
        assert (events.headers["content-type"], events.content) == ("text/event-stream", b"data: 0\n\ndata: 1\n\ndata: 2\n\n")


async def test_a_query_cannot_say_otherwise_than_the_path(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v2/models/m/infer?model=n", content=b"{}")
    assert (answer.status_code, answer.json()) == (
        400,
        {"error": "the path names a model, and the query another; leave it out of the query"},
    )
    assert told(await client.post("/v2/models/m/infer?other=n", content=b"{}"))["model"] == "m"


async def test_what_the_gateway_refuses_has_tritons_shape(client: httpx.AsyncClient) -> None:
    unknown = await client.get("/v2/nothing?key=secret")
    assert (unknown.status_code, unknown.headers["content-type"]) == (404, "application/json")
    assert unknown.json() == {"error": "Unknown URL: GET /v2/nothing; try GET /v2 or POST /v2/models/{model}/infer."}
    limited = await client.post("/v2/models/limited/infer", content=b"{}")
    assert (limited.status_code, limited.json()) == (503, {"error": 'say "less"'})
    assert limited.headers["retry-after"] == "2"


async def test_what_an_edge_that_transcodes_refuses_has_tritons_shape(transcoded: EdgeUnderTest) -> None:
    async with httpx.AsyncClient(base_url=transcoded.url, timeout=30) as client:
        assert told(await client.post("/v2/models/m/infer", content=b"x"))["method"] == "Infer"
        await refused_by(transcoded, client)


async def refused_by(edge: EdgeUnderTest, client: httpx.AsyncClient) -> None:
    unknown = await client.get("/v2/nothing?key=secret")
    assert (unknown.status_code, unknown.headers["content-type"]) == (404, "application/json")
    assert unknown.json() == {"error": "Unknown URL: GET /v2/nothing; try GET /v2 or POST /v2/models/{model}/infer."}
    limited = await client.post("/v2/models/limited/infer", content=b"{}")
    assert (limited.status_code, limited.json()) == (429, {"error": 'say "less"'})
    assert limited.headers["retry-after"] == "2"
    edge.publish(*edge.gateways, limits=replace(edge.edge.limits, body_bytes=512 * 1024))
    await edge.settled()
    async with httpx.AsyncClient(base_url=edge.url) as anew:  # connections keep the limits that they began with
        large = await anew.post("/v2/models/m/infer", content=b"x" * 700_000)
    assert (large.status_code, large.json()) == (413, {"error": "The request body is larger than the 0.5 MiB allowed."})
    edge.publish()
    await edge.settled()
    nobody = await client.get("/v2")
    assert (nobody.status_code, nobody.json()) == (503, {"error": "No gateway answers at the moment; retry shortly."})
    assert nobody.headers["retry-after"] == "1"
    other = await client.get("/v1/nothing")
    assert other.json()["error"]["code"] == "unknown_url"
