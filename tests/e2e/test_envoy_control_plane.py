"""The real Envoy and the discovery stream: changes without loss, refusals that are seen, life without a control plane."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from gateway.xds.snapshot import ResourceType
from gateway.xds.types import Endpoint
from runtime.identity import Authority, Role
from tests.support.edge import EdgeUnderTest, edge_under_test
from tests.support.envoy import LOOPBACK, free_endpoint

CHAT = "/v1/chat/completions"
PLAIN = {"do": "plain"}


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[EdgeUnderTest]:
    async with edge_under_test(tmp_path) as made:
        yield made


@pytest.fixture
async def client(edge: EdgeUnderTest) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=edge.url, timeout=10) as made:
        yield made


async def asked_until(client: httpx.AsyncClient, reached: Callable[[httpx.Response], bool]) -> None:
    """Ask without a pause until an answer is as wanted; fails after seconds."""
    async with asyncio.timeout(5):
        while not reached(await client.post(CHAT, json=PLAIN)):
            pass


class Traffic:
    """Clients that ask without a pause until told to stop, and count who answered what."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.answers: Counter[str] = Counter()
        self.seen = asyncio.Condition()
        self.running = True

    async def ask(self) -> None:
        while self.running:
            answer = await self._client.post(CHAT, json=PLAIN)
            who = answer.json()["from"] if answer.status_code == 200 else f"{answer.status_code} {answer.text}"
            async with self.seen:
                self.answers[who] += 1
                self.seen.notify_all()

    async def more_from(self, who: str, count: int = 20) -> None:
        """Return once so many more came from there."""
        goal = self.answers[who] + count
        async with asyncio.timeout(10), self.seen:
            await self.seen.wait_for(lambda: self.answers[who] >= goal)


async def test_a_changed_snapshot_moves_traffic_without_losing_any(edge: EdgeUnderTest, client: httpx.AsyncClient) -> None:
    first, first_at, _ = await edge.gateway("first")
    _, second_at, _ = await edge.gateway("second")
    edge.publish(first_at)
    envoy = await edge.envoy(first_at)
    await envoy.until_listening(edge.edge.listen)
    traffic = Traffic(client)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(traffic.ask())
        first.turn.release()
        async with client.stream("POST", CHAT, json={"do": "stream", "chunks": 2}) as begun_before:
            await traffic.more_from("first")
            edge.publish(first_at, second_at)
            await traffic.more_from("second")
            edge.publish(second_at)
            await edge.settled()
            await traffic.more_from("second")
            served = first.served
            await traffic.more_from("second")
            assert first.served == served
            first.turn.release()
            assert [line async for line in begun_before.aiter_lines() if line] == ["data: 0", "data: 1"]
        traffic.running = False
    assert set(traffic.answers) == {"first", "second"}


async def test_a_dead_gateway_costs_no_request(edge: EdgeUnderTest, client: httpx.AsyncClient) -> None:
    _, alive_at, _ = await edge.gateway("alive")
    edge.publish(alive_at, free_endpoint())
    envoy = await edge.envoy(alive_at)
    await envoy.until_listening(edge.edge.listen)
    answers = [(await client.post(CHAT, json=PLAIN)).json()["from"] for _ in range(30)]
    assert answers == ["alive"] * 30


async def test_a_gateway_with_another_role_gets_no_traffic(
    edge: EdgeUnderTest, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    edge.identity, true_identity = Authority.open(tmp_path / "authority").enrol(tmp_path / "worker", Role.WORKER), edge.identity
    _, impostor_at, _ = await edge.gateway("impostor")
    edge.identity = true_identity
    _, gateway_at, _ = await edge.gateway("gateway")
    edge.publish(impostor_at)
    envoy = await edge.envoy(gateway_at)
    await envoy.until_listening(edge.edge.listen)
    assert (await client.post(CHAT, json=PLAIN)).status_code == 503


async def test_a_changed_cluster_does_not_wait_for_unchanged_endpoints(edge: EdgeUnderTest, client: httpx.AsyncClient) -> None:
    _, gateway_at, _ = await edge.gateway("first")
    edge.publish(gateway_at)
    envoy = await edge.envoy(gateway_at)
    await envoy.until_listening(edge.edge.listen)
    await edge.settled()
    edge.publish(gateway_at, gateway_name="somebody.else")
    await edge.settled()
    await asked_until(client, lambda answer: answer.status_code == 503)


async def test_a_refusal_is_recorded_and_the_edge_goes_on(edge: EdgeUnderTest, client: httpx.AsyncClient) -> None:
    _, gateway_at, _ = await edge.gateway("first")
    edge.publish(gateway_at)
    envoy = await edge.envoy(gateway_at)
    await envoy.until_listening(edge.edge.listen)
    await edge.settled()
    good, routes = edge.edge, ResourceType.ROUTES
    edge.publish(gateway_at, passed_through=("no leading slash",), limits=replace(good.limits, connect_timeout_s=0))
    async with asyncio.timeout(5):
        await edge.discovery.until(lambda seen: any(one.kind is ResourceType.CLUSTERS for one in seen.rejections()))
    refusal = edge.discovery.rejections()[-1]
    (status,) = edge.discovery.edges()
    assert (refusal.node, refusal.rejection.version) == ("edge-1", edge.holder.current.versions[refusal.kind])  # type: ignore[union-attr]
    assert refusal.rejection.detail
    assert status.rejected[refusal.kind] == refusal.rejection
    assert status.acknowledged[refusal.kind] != refusal.rejection.version
    assert not status.settled
    assert (await client.post(CHAT, json=PLAIN)).status_code == 200
    edge.edge = good
    edge.publish(gateway_at)
    await edge.settled()
    assert edge.discovery.edges()[0].rejected == {}
    assert routes in edge.discovery.edges()[0].acknowledged


async def test_a_taken_port_is_refused_by_name(edge: EdgeUnderTest) -> None:
    _, gateway_at, _ = await edge.gateway("first")
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        edge.publish(gateway_at, listen=Endpoint(LOOPBACK, port))
        await edge.envoy(gateway_at)
        async with asyncio.timeout(10):
            await edge.discovery.until(lambda seen: bool(seen.rejections()))
    refusal = edge.discovery.rejections()[0]
    assert refusal.kind is ResourceType.LISTENERS
    assert f"127.0.0.1:{port}" in refusal.rejection.detail


async def test_the_configuration_outlives_the_control_plane(edge: EdgeUnderTest, client: httpx.AsyncClient) -> None:
    _, control_at, control = await edge.gateway("control")
    _, first_at, _ = await edge.gateway("first")
    _, second_at, _ = await edge.gateway("second")
    edge.publish(first_at)
    envoy = await edge.envoy(control_at)
    await envoy.until_listening(edge.edge.listen)
    await edge.settled()
    await control.server.stop(0)
    async with asyncio.timeout(5):
        await edge.discovery.until(lambda seen: seen.edges() == ())
    for _ in range(20):
        assert (await client.post(CHAT, json=PLAIN)).json()["from"] == "first"
    edge.publish(second_at)
    await edge.gateway("control", port=control_at.port)
    await edge.settled()
    await asked_until(client, lambda answer: bool(answer.json()["from"] == "second"))


async def test_another_control_plane_takes_over(edge: EdgeUnderTest, client: httpx.AsyncClient) -> None:
    _, first_at, first = await edge.gateway("first")
    _, second_at, _ = await edge.gateway("second")
    edge.publish(first_at, second_at)
    envoy = await edge.envoy(first_at, second_at)
    await envoy.until_listening(edge.edge.listen)
    await edge.settled()
    await first.server.stop(0)
    edge.publish(second_at)
    await edge.settled()
    assert [(await client.post(CHAT, json=PLAIN)).json()["from"] for _ in range(5)] == ["second"] * 5


async def test_envoys_run_side_by_side(edge: EdgeUnderTest) -> None:
    _, gateway_at, _ = await edge.gateway("first")
    edge.publish(gateway_at, share_port=True)
    for name in ("edge-1", "edge-2"):
        envoy = await edge.envoy(gateway_at, name=name)
        await envoy.until_listening(edge.edge.listen)
    await edge.settled(2)
    assert sorted(one.node for one in edge.discovery.edges()) == ["edge-1", "edge-2"]


async def test_an_envoy_starts_before_its_gateway(edge: EdgeUnderTest, client: httpx.AsyncClient) -> None:
    control_at = free_endpoint()
    envoy = await edge.envoy(control_at)
    _, gateway_at, _ = await edge.gateway("late", port=control_at.port)
    edge.publish(gateway_at)
    await envoy.until_listening(edge.edge.listen)
    assert (await client.post(CHAT, json=PLAIN)).json()["from"] == "late"
