"""Two gateways behind one Envoy, ended and started again one after the other while applications go on asking: nobody notices.

Real processes: etcd, registry, scheduler, worker, gateways, Envoy.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from gateway.xds.bootstrap import Bootstrap
from gateway.xds.types import Endpoint
from runtime.identity import Role
from tests.support.envoy import RunningEnvoy, free_endpoint, running_envoy
from tests.support.hosts import HostedMesh, Service, hosted_mesh
from tests.support.steady_load import SteadyLoad

CHAT = "/v1/chat/completions"
ASKED = {"model": "sums", "messages": [{"role": "user", "content": "12+34"}]}


@dataclass(slots=True)
class Town:
    """The mesh, Envoy before it, and what its gateways are started with."""

    mesh: HostedMesh
    edge: Endpoint
    envoy: RunningEnvoy
    inner: dict[str, Endpoint]

    @property
    def url(self) -> str:
        return f"http://{self.edge.host}:{self.edge.port}"

    def gateway(self, name: str) -> Service:
        at = self.inner[name]
        return self.mesh.start(
            "gateway",
            name,
            port=at.port,
            edge_port=0,
            auth="off",
            registry_address=self.mesh.services["registry"].address(),
            scheduler_address=self.mesh.services["scheduler"].address(),
            http_port=self.edge.port,
            envoy_identity_dir=self.mesh.folder / "envoy",
        )


@asynccontextmanager
async def town(folder: Path, *gateways: str) -> AsyncIterator[Town]:
    """Everything but the gateways, which may be started now."""
    async with hosted_mesh(folder) as mesh:
        envoy = mesh.authority.enrol(folder / "envoy", Role.ENVOY)
        registry = await mesh.registry().started()
        scheduler = mesh.start("scheduler", "scheduler", registry_address=registry.address(), jobs_database=folder / "jobs.db")
        worker = mesh.worker("worker")
        await scheduler.started()
        await worker.started()
        for wish in (await mesh.publish("digits", "sums")).values():
            await mesh.place(scheduler, wish)
        edge, inner = free_endpoint(), {name: free_endpoint() for name in gateways}
        bootstrap = Bootstrap("edge-1", list(inner.values()), envoy.files)
        async with running_envoy(bootstrap, folder / "edge") as running:
            yield Town(mesh, edge, running, inner)


@dataclass(slots=True)
class Chats:
    """Chats through Envoy, half of them token by token."""

    client: httpx.AsyncClient
    answers: Counter[str] = field(default_factory=Counter)
    running: bool = True

    async def ask(self, streamed: bool) -> None:
        while self.running:
            try:
                answer = await self.client.post(CHAT, json={**ASKED, "stream": streamed})
                whole = answer.status_code == 200 and answer.text.rstrip().endswith("[DONE]" if streamed else "}")
                self.answers["ok" if whole else f"{answer.status_code} {answer.text[-300:]}"] += 1
            except httpx.HTTPError as error:
                self.answers[repr(error)] += 1

    async def more(self, count: int = 20) -> None:
        goal = self.answers["ok"] + count
        async with asyncio.timeout(60):
            while self.answers["ok"] < goal:
                await asyncio.sleep(0.05)


@pytest.mark.timeout(240)
async def test_a_rolling_restart_fails_nobody(tmp_path: Path) -> None:
    async with town(tmp_path, "gateway-1", "gateway-2") as made, httpx.AsyncClient(base_url=made.url, timeout=30) as client:
        for name in made.inner:
            made.gateway(name)
        for name in made.inner:
            await made.mesh.services[name].started()
        await made.envoy.until_listening(made.edge)
        chats, tensors = Chats(client), SteadyLoad(f"{made.edge.host}:{made.edge.port}", callers=3)
        await _until_answered(client)
        async with tensors.running(), asyncio.TaskGroup() as tasks:
            for number in range(4):
                tasks.create_task(chats.ask(streamed=bool(number % 2)))
            await chats.more()
            await tensors.goes_on(20)
            for name in (*made.inner, *made.inner):
                gateway = made.mesh.services[name]
                assert await gateway.stop() == 0, gateway.tail()
                assert not gateway.said("drain_not_heard"), gateway.tail()
                await chats.more()
                await made.gateway(name).started()
                await chats.more()
                await tensors.goes_on(20)
            chats.running = False
        assert set(chats.answers) == {"ok"}, chats.answers
        assert set(tensors.outcomes) == {"ok"}, tensors.outcomes


async def _until_answered(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(60):
        while (await client.post(CHAT, json=ASKED)).status_code != 200:
            await asyncio.sleep(0.1)
