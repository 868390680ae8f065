"""HTTP/JSON and server-sent events through the real Envoy, over HTTP/1.1 and HTTP/2 in the clear."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest

from gateway.xds.types import ServerFiles
from runtime.identity import Authority, Role
from tests.support.edge import EdgeUnderTest, StandIn, started_edge

CHAT = "/v1/chat/completions"


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[tuple[EdgeUnderTest, StandIn]]:
    async with started_edge(tmp_path) as started:
        yield started


@pytest.fixture(params=["http/1.1", "h2c"])
async def client(request: pytest.FixtureRequest, edge: tuple[EdgeUnderTest, StandIn]) -> AsyncIterator[httpx.AsyncClient]:
    h2c = request.param == "h2c"
    async with httpx.AsyncClient(base_url=edge[0].url, http1=not h2c, http2=h2c, timeout=30) as made:
        yield made


def assert_openai_error(answer: httpx.Response, status: int, kind: str, code: str) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == (kind, None, code)
    assert answer.headers["x-request-id"]
    assert not [name for name in answer.headers if name.startswith(("grpc-", "x-penstock-", "x-envoy-"))]
    return str(error["message"])


async def test_one_message_is_plain_json(client: httpx.AsyncClient) -> None:
    answer = await client.post(CHAT, json={"do": "plain"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"from": "first", "bytes": 14, "type": "application/json"}
    assert not [name for name in answer.headers if name.startswith(("grpc-", "x-penstock-", "x-envoy-"))]


async def test_get_with_a_path_variable(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models/digits")).json() == {"id": "digits", "object": "model"}
    assert (await client.get("/v1/models?unknown=1")).json()["object"] == "list"


async def test_events_arrive_one_by_one(client: httpx.AsyncClient, edge: tuple[EdgeUnderTest, StandIn]) -> None:
    stand_in = edge[1]
    stand_in.turn.release()
    async with client.stream("POST", CHAT, json={"do": "stream", "chunks": 5}) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        chunks = answer.aiter_raw()
        for index in range(5):
            # The next chunk is written only after this one was read: nothing on the way waits for more.
            assert await asyncio.wait_for(anext(chunks), 5) == f"data: {index}\n\n".encode()
            stand_in.turn.release()
        assert [chunk async for chunk in chunks if chunk] == []


async def test_a_handlers_own_error_keeps_its_body_and_gets_its_status(client: httpx.AsyncClient) -> None:
    streamed = await client.post(CHAT, json={"do": "refuse"})
    assert assert_openai_error(streamed, 429, "rate_limit_error", "limit") == "slower"
    assert streamed.headers["retry-after"] == "7"
    unary = await client.post("/v1/embeddings", json={"do": "refuse"})
    assert assert_openai_error(unary, 404, "invalid_request_error", "none") == "no such model"


async def test_a_grpc_status_becomes_an_openai_error(client: httpx.AsyncClient) -> None:
    answer = await client.post(CHAT, json={"do": "raise"})
    assert assert_openai_error(answer, 429, "rate_limit_error", "resource_exhausted") == 'say "less"'
    assert answer.headers["retry-after"] == "2"
    assert answer.json()["error"]["details"][0]["domain"] == "penstock"


async def test_an_error_after_the_first_event_ends_the_stream(client: httpx.AsyncClient) -> None:
    answer = await client.post(CHAT, json={"do": "break"})
    assert (answer.status_code, answer.content) == (200, b"data: 0\n\n")


async def test_the_official_client_reads_the_errors(edge: tuple[EdgeUnderTest, StandIn]) -> None:
    async with openai.AsyncOpenAI(base_url=f"{edge[0].url}/v1", api_key="key", max_retries=0) as made:
        with pytest.raises(openai.RateLimitError) as limited:
            await made.chat.completions.create(model="m", messages=[], extra_body={"do": "raise"})
        assert limited.value.code == "resource_exhausted"
        with pytest.raises(openai.NotFoundError) as unknown:
            await made.fine_tuning.jobs.list()
        assert unknown.value.code == "unknown_url"
    assert edge[1].metadata["authorization"] == "Bearer key"


@pytest.mark.parametrize("path", ["/v1/nothing?key=secret", "/", "/inference.GRPCInferenceService/ModelInfer"])
async def test_an_unknown_path_is_named_without_its_query(client: httpx.AsyncClient, path: str) -> None:
    message = assert_openai_error(await client.post(path, json={}), 404, "invalid_request_error", "unknown_url")
    assert path.partition("?")[0] in message
    assert "secret" not in message


async def test_a_wrong_method_is_unknown(client: httpx.AsyncClient) -> None:
    assert_openai_error(await client.delete("/v1/models"), 404, "invalid_request_error", "unknown_url")


async def test_large_bodies_pass_both_ways(client: httpx.AsyncClient) -> None:
    sent = await client.post(CHAT, json={"do": "plain", "pad": "x" * 3_000_000})
    assert sent.json()["bytes"] > 3_000_000
    received = await client.post(CHAT, json={"do": "large", "bytes": 3_000_000})
    assert len(received.json()["pad"]) == 3_000_000


async def test_a_body_over_the_bound_is_refused(client: httpx.AsyncClient, edge: tuple[EdgeUnderTest, StandIn]) -> None:
    small = replace(edge[0].edge.limits, body_bytes=512 * 1024)
    edge[0].publish(*edge[0].gateways, limits=small)
    await edge[0].settled()
    answer = await client.post(CHAT, content=json.dumps({"do": "plain", "pad": "x" * 700_000}))
    message = assert_openai_error(answer, 413, "invalid_request_error", "request_too_large")
    assert "0.5 MiB" in message
    assert edge[1].served == 0


async def test_nobody_behind_the_edge(client: httpx.AsyncClient, edge: tuple[EdgeUnderTest, StandIn]) -> None:
    edge[0].publish()
    await edge[0].settled()
    answer = await client.post(CHAT, json={"do": "plain"})
    assert "retry" in assert_openai_error(answer, 503, "server_error", "unavailable")
    assert answer.headers["retry-after"] == "1"


async def test_the_request_id_is_kept_or_made(client: httpx.AsyncClient, edge: tuple[EdgeUnderTest, StandIn]) -> None:
    kept = await client.get("/v1/models", headers={"x-request-id": "order-7/a", "authorization": "Bearer k"})
    assert kept.headers["x-request-id"] == "order-7/a" == edge[1].metadata["x-request-id"]
    assert edge[1].metadata["authorization"] == "Bearer k"
    made = await client.get("/v1/models")
    assert len(made.headers["x-request-id"]) == 36
    assert made.headers["x-request-id"] == edge[1].metadata["x-request-id"]


async def test_a_client_that_leaves_cancels_the_handler(client: httpx.AsyncClient, edge: tuple[EdgeUnderTest, StandIn]) -> None:
    asked = asyncio.ensure_future(client.post(CHAT, json={"do": "hang"}))
    await asyncio.wait_for(edge[1].begun.wait(), 5)
    await client.aclose()
    await asyncio.wait_for(edge[1].cancelled.wait(), 5)
    asked.cancel()
    await asyncio.wait([asked])


async def test_garbage_gets_a_refusal_and_the_edge_lives_on(
    client: httpx.AsyncClient, edge: tuple[EdgeUnderTest, StandIn]
) -> None:
    listen = edge[0].edge.listen
    reader, writer = await asyncio.open_connection(listen.host, listen.port)
    writer.write(b"\x00\x01garbage\r\n\r\n")
    assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 400 ")
    writer.close()
    assert (await client.get("/v1/models")).status_code == 200


async def test_pages_of_configured_origins_may_call(edge: tuple[EdgeUnderTest, StandIn]) -> None:
    edge[0].publish(*edge[0].gateways, cors_origins=("https://app.example",))
    await edge[0].settled()
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    async with httpx.AsyncClient(base_url=edge[0].url) as made:
        allowed = await made.options(CHAT, headers={"origin": "https://app.example", **asks})
        refused = await made.options(CHAT, headers={"origin": "https://other.example", **asks})
        read = await made.post(CHAT, json={"do": "plain"}, headers={"origin": "https://app.example"})
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    assert "access-control-allow-origin" not in refused.headers
    assert read.headers["access-control-allow-origin"] == "https://app.example"
    assert "x-request-id" in read.headers["access-control-expose-headers"]


async def test_tls_towards_clients(edge: tuple[EdgeUnderTest, StandIn], tmp_path: Path) -> None:
    files = Authority.open(tmp_path / "authority").enrol(tmp_path / "public", Role.ENVOY).files
    edge[0].publish(*edge[0].gateways, server_files=ServerFiles(files.certificate, files.key))
    await edge[0].settled()
    url = edge[0].url.replace("http:", "https:")
    async with httpx.AsyncClient(base_url=url, http2=True, verify=ssl.create_default_context(cafile=files.authority)) as made:
        async with asyncio.timeout(20):
            while (answer := await _answer(made)) is None:  # until Envoy's other thread listens anew
                pass
    assert (answer.status_code, answer.http_version) == (200, "HTTP/2")


async def _answer(client: httpx.AsyncClient) -> httpx.Response | None:
    """None while the edge still speaks plaintext."""
    try:
        return await client.get("/v1/models")
    except httpx.ConnectError:
        return None
