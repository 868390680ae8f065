"""What the real Envoy lets through and what it does not: large bodies whole, ambiguous and hostile requests not at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import grpc.aio
import h2.config
import h2.connection
import h2.events
import httpx
import pytest

from gateway.xds.types import EdgeLimits
from tests.support.edge import EdgeUnderTest, StandIn, started_edge

CHAT = "/v1/chat/completions"
INFER = "/inference.GRPCInferenceService/ModelInfer"
LIMIT_BYTES = EdgeLimits().body_bytes
SIZES = [1_000_000, 64_000_000]


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[tuple[EdgeUnderTest, StandIn]]:
    async with started_edge(tmp_path) as started:
        yield started


@pytest.fixture(params=["http/1.1", "h2c"])
async def client(request: pytest.FixtureRequest, edge: tuple[EdgeUnderTest, StandIn]) -> AsyncIterator[httpx.AsyncClient]:
    h2c = request.param == "h2c"
    async with httpx.AsyncClient(base_url=edge[0].url, http1=not h2c, http2=h2c, timeout=60) as made:
        yield made


async def in_parts(body: bytes) -> AsyncIterator[bytes]:
    """As it is, the client copies all that is left of a body for each frame of HTTP/2."""
    for start in range(0, len(body), 1_000_000):
        yield body[start : start + 1_000_000]


@pytest.mark.parametrize("size", SIZES)
async def test_bodies_pass_whole_both_ways(client: httpx.AsyncClient, size: int) -> None:
    sent = json.dumps({"do": "plain", "pad": "x" * size}).encode()
    assert (await client.post(CHAT, content=in_parts(sent))).json()["bytes"] == len(sent)
    received = await client.post(CHAT, json={"do": "large", "bytes": size})
    assert len(received.json()["pad"]) == size


@pytest.mark.parametrize("size", SIZES)
async def test_messages_pass_whole_both_ways(edge: tuple[EdgeUnderTest, StandIn], size: int) -> None:
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(edge[0].address, options=unlimited) as channel:
        sent = bytes(size - 1) + b"!"
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(INFER)
        assert await call(sent, timeout=60) == sent[::-1]


async def test_a_body_of_the_very_limit_passes_and_a_larger_one_does_not(
    client: httpx.AsyncClient, edge: tuple[EdgeUnderTest, StandIn]
) -> None:
    body = b'{"do": "plain", "pad": "' + b"x" * (LIMIT_BYTES - 26) + b'"}'
    assert len(body) == LIMIT_BYTES
    passed = await client.post(CHAT, content=in_parts(body))
    assert passed.status_code == 200, passed.text
    assert passed.json()["bytes"] == LIMIT_BYTES
    refused = await client.post(CHAT, content=in_parts(body + bytes(2_000)))
    assert refused.status_code == 413, refused.text
    assert refused.json()["error"]["code"] == "request_too_large"
    assert "64 MiB" in refused.json()["error"]["message"]
    assert edge[1].served == 1


async def test_a_body_without_a_length_is_bounded_as_well(
    client: httpx.AsyncClient, edge: tuple[EdgeUnderTest, StandIn]
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'{"do": "plain", "pad": "'
        while True:
            yield b"x" * 1_000_000

    try:
        answer = await client.post(CHAT, content=endless())
        assert answer.status_code == 413
    except httpx.HTTPError:
        pass  # it was cut off while it was still sending
    assert edge[1].served == 0
    assert (await client.get("/v1/models")).status_code == 200


_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: edge\r\ncontent-type: application/json\r\n"
_BODY = b'{"do": "plain"}'
_CHUNKED = b"f\r\n" + _BODY + b"\r\n0\r\n\r\n"
_SMUGGLED = b"GET /v1/models/smuggled HTTP/1.1\r\nhost: edge\r\n\r\n"

AMBIGUOUS = {
    "length and chunks": _HEAD + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + _SMUGGLED,
    "chunks and length": _HEAD + b"transfer-encoding: chunked\r\ncontent-length: 60\r\n\r\n" + _CHUNKED + _SMUGGLED,
    "two lengths": _HEAD + b"content-length: 15\r\ncontent-length: 0\r\n\r\n" + _BODY + _SMUGGLED,
    "a list of lengths": _HEAD + b"content-length: 15, 0\r\n\r\n" + _BODY,
    "a negative length": _HEAD + b"content-length: -1\r\n\r\n" + _BODY,
    "a length with a sign": _HEAD + b"content-length: +15\r\n\r\n" + _BODY,
    "an encoding nobody knows": _HEAD + b"transfer-encoding: xchunked\r\n\r\n" + _CHUNKED,
    "chunks twice": _HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n" + _CHUNKED,
    "a space before the colon": _HEAD + b"content-length : 15\r\n\r\n" + _BODY,
    "a NUL in a value": _HEAD + b"x-a: b\x00c\r\ncontent-length: 15\r\n\r\n" + _BODY,
    "a header without a name": _HEAD + b": 1\r\ncontent-length: 15\r\n\r\n" + _BODY,
    "a bad chunk size": _HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n" + _BODY,
}


@pytest.mark.parametrize("name", AMBIGUOUS)
async def test_a_request_that_two_could_read_differently_reaches_nobody(edge: tuple[EdgeUnderTest, StandIn], name: str) -> None:
    answers = await _raw(edge[0], AMBIGUOUS[name])
    assert answers.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501 ")), answers
    assert answers.count(b"HTTP/1.1 ") == 1
    assert edge[1].served == 0
    async with httpx.AsyncClient(base_url=edge[0].url) as client:
        assert (await client.post(CHAT, json={"do": "plain"})).status_code == 200
    assert "x-injected" not in edge[1].metadata


async def test_a_bare_carriage_return_begins_no_header(edge: tuple[EdgeUnderTest, StandIn]) -> None:
    await _raw(edge[0], _HEAD + b"x-a: b\rx-injected: 1\r\ncontent-length: 15\r\n\r\n" + _BODY)
    assert "x-injected" not in edge[1].metadata, edge[1].metadata
    assert "\r" not in edge[1].metadata.get("x-a", ""), edge[1].metadata


@pytest.mark.parametrize("headers", [{"x-pad": "x" * 70_000}, {f"x-{number}": "1" for number in range(150)}])
async def test_too_many_headers_are_refused(
    client: httpx.AsyncClient, edge: tuple[EdgeUnderTest, StandIn], headers: dict[str, str]
) -> None:
    with suppress(httpx.HTTPError):  # over HTTP/2 the stream may be reset instead
        assert (await client.get("/v1/models", headers=headers)).status_code == 431
    assert edge[1].served == 0
    assert (await client.get("/v1/models")).status_code == 200


@pytest.mark.parametrize(
    "extra", [(b"x-a", b"b\r\nx-injected: 1"), (b"transfer-encoding", b"chunked"), (b"x-a\r\nx-injected", b"1")]
)
async def test_headers_of_http2_cannot_smuggle_others(edge: tuple[EdgeUnderTest, StandIn], extra: tuple[bytes, bytes]) -> None:
    listen = edge[0].edge.listen
    reader, writer = await asyncio.open_connection(listen.host, listen.port)
    connection = _connection()
    head = [(b":method", b"GET"), (b":path", b"/v1/models"), (b":scheme", b"http"), (b":authority", b"edge"), extra]
    connection.send_headers(1, head, end_stream=True)
    writer.write(connection.data_to_send())
    async with asyncio.timeout(20):
        while not (answered := _statuses(connection, await reader.read(65_536))):
            pass
    assert answered == ["refused"]
    writer.close()
    assert edge[1].served == 0


async def test_a_flood_of_resets_ends_its_connection_and_nobody_elses(
    client: httpx.AsyncClient, edge: tuple[EdgeUnderTest, StandIn]
) -> None:
    listen = edge[0].edge.listen
    reader, writer = await asyncio.open_connection(listen.host, listen.port)
    connection = _connection()
    head = [(":method", "GET"), (":path", "/v1/models"), (":scheme", "http"), (":authority", "edge")]
    try:
        async with asyncio.timeout(60):
            for stream in range(1, 20_001, 2):
                connection.send_headers(stream, head)
                connection.reset_stream(stream)
                writer.write(connection.data_to_send())
                if stream % 200 == 1:
                    await writer.drain()
            while await reader.read(65_536):
                pass
    except OSError:
        pass
    writer.close()
    assert (await client.get("/v1/models")).status_code == 200


async def _raw(edge: EdgeUnderTest, request: bytes) -> bytes:
    """What comes back until Envoy closes, or says nothing more."""
    reader, writer = await asyncio.open_connection(edge.edge.listen.host, edge.edge.listen.port)
    writer.write(request)
    found = b""
    try:
        async with asyncio.timeout(2):
            while part := await reader.read(65_536):
                found += part
    except TimeoutError:
        pass
    writer.close()
    return found


def _connection() -> h2.connection.H2Connection:
    """One that sends whatever it is told to."""
    settings = h2.config.H2Configuration(
        client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False, header_encoding=None
    )
    connection = h2.connection.H2Connection(settings)
    connection.initiate_connection()
    return connection


def _statuses(connection: h2.connection.H2Connection, received: bytes) -> list[str]:
    """Answers: "refused" for an error of HTTP, a reset, or the end of the connection."""
    if not received:
        return ["refused"]
    found = []
    for event in connection.receive_data(received):
        match event:
            case h2.events.ResponseReceived(headers=headers):
                status = dict(headers or ())[b":status"]
                found.append("refused" if status.startswith(b"4") else status.decode())
            case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                found.append("refused")
            case _:
                pass
    return found
