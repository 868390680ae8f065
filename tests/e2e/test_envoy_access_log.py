"""A line for each request through the real Envoy: what is in it, and what never is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest

from tests.support.edge import EdgeUnderTest, StandIn, started_edge

CHAT = "/v1/chat/completions"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[tuple[EdgeUnderTest, StandIn]]:
    async with started_edge(tmp_path) as started:
        started[0].publish(*started[0].gateways, access_log=str(tmp_path / "access.log"))
        await started[0].settled()
        yield started


async def lines(edge: EdgeUnderTest, count: int) -> list[dict[str, Any]]:
    """Once there are so many: Envoy writes them out every second."""
    file = edge.folder / "access.log"
    async with asyncio.timeout(30):
        while not file.exists() or len(found := file.read_text().splitlines()) < count:
            await asyncio.sleep(0.05)
    return [json.loads(line) for line in found]


@pytest.mark.timeout(120)
async def test_each_request_leaves_a_line_without_secrets(edge: tuple[EdgeUnderTest, StandIn]) -> None:
    secrets = {"authorization": "Bearer sk-very-secret", "cookie": "session=very-secret", "x-api-key": "very-secret"}
    headers = {"x-request-id": 'order-7"\\', "traceparent": TRACE, **secrets}
    async with httpx.AsyncClient(base_url=edge[0].url, headers=headers) as client:
        assert (await client.post(f"{CHAT}?key=very-secret", json={"do": "plain", "pad": "very-secret"})).status_code == 200
        assert (await client.post("/v1/nothing?key=very-secret", json={})).status_code == 404
    async with grpc.aio.insecure_channel(edge[0].address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(INFER)
        await call(b"very-secret", metadata=(("authorization", "Bearer sk-very-secret"),), timeout=30)
    chat, unknown, inference = await lines(edge[0], 3)
    assert (chat["request_id"], chat["traceparent"]) == ('order-7"\\', TRACE)
    assert (chat["listener"], chat["method"], chat["path"], chat["status"]) == ("edge", "POST", CHAT, 200)
    assert chat["route"] == "/penstock.gateway.v1.OpenAIService/"
    gateway = edge[0].gateways[0]
    assert (chat["upstream"], chat["attempts"], chat["flags"]) == (f"{gateway.host}:{gateway.port}", 1, "-")
    assert chat["received_bytes"] > 0 < chat["sent_bytes"]
    assert chat["duration_ms"] >= chat["first_byte_ms"] >= 0
    assert (unknown["status"], unknown["path"], unknown["upstream"]) == (404, "/v1/nothing", None)
    assert "NOT_FOUND" in unknown["details"]
    assert (inference["path"], inference["grpc_status"], inference["protocol"]) == (INFER, "OK", "HTTP/2")
    assert "secret" not in (edge[0].folder / "access.log").read_text()
