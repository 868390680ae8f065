"""Whom the real Envoy sends nothing for a while: gateways that are not reached, never for what they answer, never all."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import httpx
import pytest

from gateway.xds.resources import edge_snapshot
from gateway.xds.types import Endpoint
from tests.support.edge import EdgeUnderTest, edge_under_test
from tests.support.envoy import free_endpoint

CHAT = "/v1/chat/completions"


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[EdgeUnderTest]:
    async with edge_under_test(tmp_path) as made:
        yield made


async def opened(edge: EdgeUnderTest, *gateways: Endpoint) -> Endpoint:
    """Envoy before these gateways; its administration page."""
    admin = free_endpoint()
    edge.publish(*gateways)
    await (await edge.envoy(gateways[0], admin=admin)).until_listening(edge.edge.listen)
    await edge.settled()
    return admin


async def health(admin: Endpoint) -> dict[int, str]:
    """Of the gateways by port, as Envoy sees it."""
    async with httpx.AsyncClient(base_url=f"http://{admin.host}:{admin.port}") as client:
        page = (await client.get("/clusters")).text
    return {int(port): flags for port, flags in re.findall(r"^gateways::[^:]+:(\d+)::health_flags::(\S+)$", page, re.MULTILINE)}


async def test_who_is_not_reached_gets_nothing_for_a_while(edge: EdgeUnderTest) -> None:
    _, alive_at, _ = await edge.gateway("alive")
    dead_at = free_endpoint()
    admin = await opened(edge, alive_at, dead_at)
    async with httpx.AsyncClient(base_url=edge.url, timeout=30) as client, asyncio.timeout(60):
        while (found := await health(admin))[dead_at.port] == "healthy":
            assert (await client.post(CHAT, json={"do": "plain"})).json()["from"] == "alive"
    assert found == {alive_at.port: "healthy", dead_at.port: "/failed_outlier_check"}


async def test_at_most_half_are_left_out(edge: EdgeUnderTest) -> None:
    _, alive_at, _ = await edge.gateway("alive")
    dead = [free_endpoint() for _ in range(3)]
    admin = await opened(edge, alive_at, *dead)
    edge.publish(*dead)
    await edge.settled()
    async with httpx.AsyncClient(base_url=edge.url, timeout=30) as client, asyncio.timeout(60):
        for _ in range(60):
            assert (await client.post(CHAT, json={"do": "plain"})).status_code == 503
        assert sorted((await health(admin)).values()).count("/failed_outlier_check") <= 1
        edge.publish(alive_at, *dead)
        await edge.settled()
        for _ in range(20):
            assert (await client.post(CHAT, json={"do": "plain"})).json()["from"] == "alive"


async def test_what_a_gateway_answers_to_one_caller_costs_the_others_nothing(edge: EdgeUnderTest) -> None:
    _, first_at, _ = await edge.gateway("first")
    _, second_at, _ = await edge.gateway("second")
    admin = await opened(edge, first_at, second_at)
    async with grpc.aio.insecure_channel(edge.address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/inference.GRPCInferenceService/Nothing")
        for _ in range(100):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(b"", timeout=30)
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert set((await health(admin)).values()) == {"healthy"}


async def test_who_drains_gets_nothing_new_while_others_are_there_and_all_when_nobody_is(edge: EdgeUnderTest) -> None:
    first, first_at, _ = await edge.gateway("first")
    _, second_at, _ = await edge.gateway("second")
    await opened(edge, first_at, second_at)
    first.turn.release()
    async with httpx.AsyncClient(base_url=edge.url, timeout=30) as client:
        edge.publish(first_at)
        await edge.settled()
        async with client.stream("POST", CHAT, json={"do": "stream", "chunks": 2}) as begun_before:
            edge.holder.publish(edge_snapshot(edge.edge, [first_at, second_at], frozenset({first_at})))
            await edge.settled()
            async with asyncio.timeout(20):  # until Envoy's other thread knows
                while (await client.post(CHAT, json={"do": "plain"})).json()["from"] != "second":
                    pass
            for _ in range(20):
                assert (await client.post(CHAT, json={"do": "plain"})).json()["from"] == "second"
            first.turn.release()
            assert [line async for line in begun_before.aiter_lines() if line] == ["data: 0", "data: 1"]
        edge.holder.publish(edge_snapshot(edge.edge, [first_at, second_at], frozenset({first_at, second_at})))
        await edge.settled()
        for _ in range(10):
            assert (await client.post(CHAT, json={"do": "plain"})).status_code == 200
