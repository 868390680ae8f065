"""HTTP of a whole mesh, from Envoy straight to the gateway: unknown paths, large and packed bodies, who goes, traces."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from gateway.xds.types import endpoint_of
from tests.support.fleet_calls import metric
from tests.support.mesh import RunningMesh, running_mesh
from tests.support.raw_http import raw_connection
from tests.support.slow_model import settings_for, slow_model, trust_operator
from tests.support.waiting import eventually

MIB = 1024 * 1024
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TALK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "12+34"}]
CHAT = {"model": "sums", "messages": TALK, "temperature": 0}
INFER = {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.0] * 64}]}
PATIENCE_S = 30.0


@dataclass(slots=True)
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """What an OTLP collector is for exporters: who made spans, by trace."""

    spans: set[tuple[str, str, str]] = field(default_factory=set)
    """Trace id in hex, service, span."""

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            service = next(each.value.string_value for each in resource.resource.attributes if each.key == "service.name")
            for scope in resource.scope_spans:
                self.spans |= {(span.trace_id.hex(), service, span.name) for span in scope.spans}
        return trace_service_pb2.ExportTraceServiceResponse()

    def of_trace(self) -> set[tuple[str, str]]:
        return {(service, span) for trace, service, span in list(self.spans) if trace == TRACE_ID}


@contextmanager
def collecting() -> Iterator[tuple[Collector, int]]:
    collector, server = Collector(), grpc.server(futures.ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, port
    finally:
        server.stop(None).wait()


@dataclass(frozen=True, slots=True)
class Traced:
    mesh: RunningMesh
    collector: Collector


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    folder = tmp_path_factory.mktemp("http")
    with collecting() as (collector, port):
        settings = {**settings_for(folder), "PENSTOCK_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
        with running_mesh(folder / "data", "--workers", "1", settings=settings) as mesh:
            trust_operator(mesh, folder)
            pushed = mesh.penstock("models", "push", str(slow_model(folder / "slow")), "--copies", "1")
            assert pushed.returncode == 0, pushed.stderr
            yield Traced(mesh, collector)


@pytest.fixture(params=["http/1.1", "h2c"])
async def client(request: pytest.FixtureRequest, traced: Traced) -> AsyncIterator[httpx.AsyncClient]:
    h2c, mesh = request.param == "h2c", traced.mesh
    headers = {"authorization": f"Bearer {mesh.api_key}"}
    async with httpx.AsyncClient(base_url=mesh.http_url, headers=headers, http1=not h2c, http2=h2c, timeout=60) as made:
        yield made


UNKNOWN = [
    *(("GET", path) for path in ("/", "/v1", "/v1/", "/v1/nothing", "/v1/models/", "/v1/models/a/b", "/v1/chat/completions")),
    *(("POST", path) for path in ("/v1/models", "/v1/chat/completions/", "/v1/chat")),
    *(("HEAD", path) for path in ("/v1/models", "/v2/health/live")),
    *(("OPTIONS", path) for path in ("/v1/models", "/v2")),
    *(("GET", path) for path in ("/v2/", "/v2/models", "/v2/nothing", "/v2/models/digits/", "/v2/models/digits/infer")),
    *(("PATCH", path) for path in ("/v2", "/v1/files/a")),
]


@pytest.mark.parametrize(("verb", "path"), UNKNOWN)
async def test_what_is_no_path_is_said_in_the_words_of_its_api(client: httpx.AsyncClient, verb: str, path: str) -> None:
    answer = await client.request(verb, path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert not [name for name in answer.headers if name.startswith(("x-penstock-http", "x-envoy", "grpc-"))]
    if verb == "HEAD":
        assert not answer.content
        return
    error = answer.json()["error"]
    if path.startswith("/v2"):
        assert error == f"Unknown URL: {verb} {path}; try GET /v2 or POST /v2/models/{{model}}/infer."
    else:
        assert error["message"].startswith(f"Unknown URL: {verb} {path}; try GET /v1/models or ")
        assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "unknown_url", None)


async def test_one_connection_carries_one_request_after_the_other(traced: Traced) -> None:
    address = traced.mesh.http_url.partition("://")[2]
    head = f"Host: {address}\r\nAuthorization: Bearer {traced.mesh.api_key}\r\n\r\n"
    wanted = {"/v1/models": 200, "/v2": 200, "/v1/nothing": 404, "/v2/nothing": 404, "/v2/health/live": 200}
    async with raw_connection(endpoint_of(address)) as connection:
        for number, path in enumerate(wanted, 1):
            await connection.send(f"GET {path} HTTP/1.1\r\n{head}".encode())
            assert len(await connection.answered()) == number
        assert connection.statuses == list(wanted.values())
        assert not connection.closed


async def test_packed_bodies_are_for_tensors(client: httpx.AsyncClient) -> None:
    headers = {"content-encoding": "gzip"}
    plain = await client.post("/v2/models/digits/infer", json=INFER)
    packed = await client.post("/v2/models/digits/infer", content=gzip.compress(json.dumps(INFER).encode()), headers=headers)
    assert (packed.status_code, packed.json()) == (200, plain.json())
    broken = await client.post("/v2/models/digits/infer", content=b"no gzip", headers=headers)
    assert broken.status_code == 400
    chat = await client.post("/v1/chat/completions", content=gzip.compress(json.dumps(CHAT).encode()), headers=headers)
    assert (chat.status_code, chat.json()["error"]["code"]) == (400, "invalid_json")


async def test_more_than_is_taken_is_refused_in_the_words_of_its_api(traced: Traced) -> None:
    headers = {"authorization": f"Bearer {traced.mesh.api_key}"}

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(65):
            yield bytes(MIB)

    async with httpx.AsyncClient(base_url=traced.mesh.http_url, headers=headers, timeout=60) as client:
        for body in (bytes(65 * MIB), pieces()):
            chat = await client.post("/v1/chat/completions", content=body)
            assert (chat.status_code, chat.json()["error"]["code"]) == (413, "request_too_large")
        infer = await client.post("/v2/models/digits/infer", content=bytes(65 * MIB))
        assert (infer.status_code, isinstance(infer.json()["error"], str)) == (413, True)
        assert (await client.get("/v1/models")).status_code == 200


async def test_a_file_and_errors_by_the_official_client(traced: Traced) -> None:
    base_url = f"{traced.mesh.http_url}/v1"
    lines = b'{"custom_id":"a"}\n' * 200_000
    async with openai.AsyncOpenAI(api_key=traced.mesh.api_key, base_url=base_url, max_retries=0, timeout=60) as client:
        made = await client.files.create(file=("in.jsonl", lines), purpose="batch")
        assert made.bytes == len(lines)
        assert (await client.files.content(made.id)).content == lines
        read: dict[int, str] = {}
        async for chunk in await client.chat.completions.create(model="sums", messages=TALK, temperature=0, n=3, stream=True):
            for choice in chunk.choices:
                read[choice.index] = read.get(choice.index, "") + (choice.delta.content or "")
        assert read == dict.fromkeys(range(3), "12 + 34 = 46")
        told = await client.chat.completions.create(model="sums", messages=TALK, temperature=0, logprobs=True, top_logprobs=1)
        assert told.choices[0].logprobs is not None
        assert told.choices[0].logprobs.content
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model="sums", messages=TALK, response_format={"type": "json_object"})
        assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "response_format")


async def test_who_goes_gives_up_the_place(client: httpx.AsyncClient, traced: Traced) -> None:
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [5.0]}]}
    asked = asyncio.create_task(client.post("/v2/models/slow/infer", json=body))
    await until_in_flight(traced.mesh, 1)
    asked.cancel()
    await until_in_flight(traced.mesh, 0)


async def until_in_flight(mesh: RunningMesh, number: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await metric(mesh, "gateway", "penstock_gateway_in_flight") != number:
            await asyncio.sleep(0.02)


async def test_one_trace_from_http_to_the_engine(traced: Traced) -> None:
    headers = {"authorization": f"Bearer {traced.mesh.api_key}", "traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}
    async with httpx.AsyncClient(base_url=traced.mesh.http_url, headers=headers, timeout=60) as client:
        assert (await client.post("/v2/models/digits/infer", json=INFER)).status_code == 200
        assert (await client.post("/v1/chat/completions", json={**CHAT, "stream": True})).status_code == 200
    wanted = {
        ("penstock-gateway", "penstock.gateway.v1.InferenceRestService/Infer"),
        ("penstock-gateway", "penstock.gateway.v1.OpenAIService/CreateChatCompletion"),
        ("penstock-worker", "infer"),
        ("penstock-worker", "generate"),
    }
    try:
        await eventually(lambda: wanted <= traced.collector.of_trace(), patience_s=PATIENCE_S)
    except TimeoutError:
        raise AssertionError(f"spans of the trace: {sorted(traced.collector.of_trace())}") from None
