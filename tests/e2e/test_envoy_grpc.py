"""gRPC and gRPC-Web through the real Envoy, untouched."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.edge import EdgeUnderTest, StandIn, started_edge

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


def unary(channel: grpc.aio.Channel, method: str = INFER) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
    return channel.unary_unary(method)


def bidi(channel: grpc.aio.Channel) -> grpc.aio.StreamStreamMultiCallable[bytes, bytes]:
    return channel.stream_stream(STREAM)


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[tuple[EdgeUnderTest, StandIn]]:
    async with started_edge(tmp_path) as started:
        yield started


@pytest.fixture
async def channel(edge: tuple[EdgeUnderTest, StandIn]) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(edge[0].address, options=[("grpc.max_receive_message_length", -1)]) as made:
        yield made


@pytest.mark.parametrize("size", [0, 1, 3_000_000, 32_000_000])
async def test_unary_bytes_are_untouched(channel: grpc.aio.Channel, edge: tuple[EdgeUnderTest, StandIn], size: int) -> None:
    sent = os.urandom(size)
    call = unary(channel)(sent, metadata=(("authorization", "Bearer k"), ("triton_grpc_error", "true")), timeout=30)
    assert await call == sent[::-1]
    answered = dict(await call.initial_metadata())
    assert answered["x-served-by"] == "first"
    assert "x-penstock-http-status" not in answered
    assert edge[1].metadata["authorization"] == "Bearer k"
    assert edge[1].metadata["triton_grpc_error"] == "true"


async def test_bidi_messages_pass_one_by_one(channel: grpc.aio.Channel) -> None:
    call = bidi(channel)()
    for index in range(10):
        await call.write(f"message {index}".encode())
        assert await asyncio.wait_for(call.read(), 5) == f"message {index}".encode()[::-1]
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_health_answers(channel: grpc.aio.Channel) -> None:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    "method",
    [
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
        "/penstock.worker.v1.WorkerService/Drain",
        "/nothing/Here",
        "/v1/models",
    ],
)
async def test_inner_and_unknown_services_are_not_offered(channel: grpc.aio.Channel, method: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await unary(channel, method)(b"")
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_an_unknown_method_of_an_offered_service_is_the_gateways_to_refuse(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await unary(channel, "/inference.GRPCInferenceService/Nothing")(b"")
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_nobody_behind_the_edge_is_unavailable(channel: grpc.aio.Channel, edge: tuple[EdgeUnderTest, StandIn]) -> None:
    edge[0].publish()
    await edge[0].settled()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await unary(channel)(b"")
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "{" not in (refused.value.details() or "")


@pytest.mark.parametrize("text", [False, True])
async def test_grpc_web(edge: tuple[EdgeUnderTest, StandIn], text: bool) -> None:
    frame = b"\x00" + (3).to_bytes(4, "big") + b"abc"
    kind = "application/grpc-web-text+proto" if text else "application/grpc-web+proto"
    async with httpx.AsyncClient(base_url=edge[0].url, headers={"content-type": kind, "accept": kind}) as made:
        answer = await made.post(INFER, content=base64.b64encode(frame) if text else frame)
    body = _unpadded(answer.content) if text else answer.content
    assert answer.status_code == 200
    assert answer.headers["content-type"] == kind
    assert body[:8] == b"\x00" + (3).to_bytes(4, "big") + b"cba"
    assert body[8] == 0x80
    assert b"grpc-status:0" in body


def _unpadded(text: bytes) -> bytes:
    """Base64 with padding in the middle: gRPC-Web text frames are encoded one by one."""
    return b"".join(base64.b64decode(text[start : start + 4]) for start in range(0, len(text), 4))
