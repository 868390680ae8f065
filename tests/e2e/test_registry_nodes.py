"""A machine joins the mesh, serves, and is put out of it: with the commands that an operator has."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from penstock.worker.v1 import worker_pb2

from cli.profile import read_profile
from runtime.channel import inner_channel
from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.identity import NodeIdentity, Role, load_identity
from runtime.ids import Region, WorkerId, presence_key
from tests.support.adding import adding
from tests.support.commands import done, refused
from tests.support.joined import joined_worker
from tests.support.kserve_calls import Answer, Gateway, gateway_of
from tests.support.mesh import RunningMesh, penstock, running_mesh

WITHIN_S = 1.5
"""A second for the mesh to hear of it, and what asking about it takes."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """One of its own: its fleet changes."""
    with running_mesh(tmp_path_factory.mktemp("nodes") / "data", "--workers", "1", "--no-demo") as running:
        yield running


@pytest.fixture
async def gateway(mesh: RunningMesh) -> AsyncIterator[Gateway]:
    async with gateway_of(mesh) as gateway:
        yield gateway


async def invited(mesh: RunningMesh, role: str = "worker", *words: str) -> str:
    """The line that lets one node join."""
    return (await done(mesh, "nodes", "invite", role, *words)).strip()


async def join(line: str, folder: Path) -> NodeIdentity:
    ended = await asyncio.to_thread(penstock, "join", line, "--identity-dir", str(folder))
    assert ended.returncode == 0, ended.stderr
    return load_identity(folder)


class Fleet:
    """What the scheduler knows of the workers."""

    def __init__(self, scheduler: grpc.aio.Channel) -> None:
        self._stub = scheduler_pb2_grpc.FleetServiceStub(scheduler)

    async def workers(self) -> dict[str, set[str]]:
        """By id: the models that it has READY."""
        answer = await self._stub.ListWorkers(scheduler_pb2.ListWorkersRequest(), timeout=10)
        return {
            worker.worker_id: {copy.model for copy in worker.models if copy.state == worker_pb2.MODEL_STATE_READY}
            for worker in answer.workers
        }

    async def until(self, worker_id: str, *, there: bool, patience_s: float = 20.0) -> float:
        """Seconds until the worker was in the fleet, or was not."""
        started_s = time.monotonic()
        async with asyncio.timeout(patience_s):
            while (worker_id in await self.workers()) is not there:
                await asyncio.sleep(0.02)
        return time.monotonic() - started_s


@pytest.fixture
async def fleet(mesh: RunningMesh) -> AsyncIterator[Fleet]:
    async with read_profile(mesh.data).scheduler_channel() as scheduler:
        yield Fleet(scheduler)


class Asked:
    """Calls of an application, one after the other, all the time; how many were answered, and how others failed."""

    def __init__(self, gateway: Gateway, model: str) -> None:
        self._gateway, self._model = gateway, model
        self.answered = 0
        self.failed: list[str] = []

    async def run(self) -> None:
        while True:
            try:
                await self._gateway.ask(self._model)
                self.answered += 1
            except grpc.aio.AioRpcError as failure:
                self.failed.append(f"{failure.code().name}: {failure.details()}")

    async def more(self, count: int) -> None:
        """Return once so many more were answered."""
        wanted = self.answered + count
        async with asyncio.timeout(20):
            while self.answered < wanted:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def asked_all_the_time(gateway: Gateway, model: str) -> AsyncIterator[Asked]:
    asked = Asked(gateway, model)
    asking = [asyncio.create_task(asked.run()) for _ in range(4)]
    try:
        yield asked
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


class Stream:
    """Held by a node to a service, for as long as it is let."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())

    async def begin(self) -> None:
        async with asyncio.timeout(10):
            assert (await self._call.read()).status == health_pb2.HealthCheckResponse.SERVING

    async def end(self) -> grpc.StatusCode:
        """How it ended."""
        async with asyncio.timeout(WITHIN_S):
            code: grpc.StatusCode = await self._call.code()
            return code


@asynccontextmanager
async def held(mesh: RunningMesh, identity: NodeIdentity) -> AsyncIterator[dict[str, Stream]]:
    """A stream of this node to each kind of service."""
    profile = read_profile(mesh.data)
    ports = {name: json.loads((mesh.data / "run" / f"{name}.json").read_text())["port"] for name in ("gateway", "worker-1")}
    addresses = {
        Role.REGISTRY: profile.registry_address,
        Role.SCHEDULER: profile.scheduler_address,
        Role.WORKER: f"127.0.0.1:{ports['worker-1']}",
    }
    async with AsyncExitStack() as stack:
        streams: dict[str, Stream] = {}
        for role, address in addresses.items():
            channel = await stack.enter_async_context(inner_channel(address, identity, role))
            streams[role.value] = Stream(channel)
            await streams[role.value].begin()
        yield streams


async def until_told(mesh: RunningMesh, node_id: str) -> None:
    """Return once this worker's word of itself is in etcd, believed or not."""
    told = psutil.Process(mesh.pid_of("worker-1")).cmdline()
    endpoints = next(word.partition("=")[2] for word in told if word.startswith("--etcd-endpoints="))
    async with EtcdStore(EtcdSettings.at(endpoints)) as store, asyncio.timeout(20):
        while await store.get(presence_key(Region("local"), WorkerId(node_id))) is None:
            await asyncio.sleep(0.05)


async def test_a_machine_joins_serves_and_is_put_out_for_good(
    mesh: RunningMesh, gateway: Gateway, fleet: Fleet, tmp_path: Path
) -> None:
    third = tmp_path / "third"
    identity = await join(await invited(mesh), third)
    node_id = str(identity.node_id)
    assert re.search(rf"{node_id} +worker +all .* until ", await done(mesh, "nodes", "list"))
    async with joined_worker(mesh, third) as worker:
        await fleet.until(node_id, there=True)
        pushed = await done(mesh, "models", "push", str(adding(tmp_path / "spread", "spread", 1)), "--copies", "2")
        assert "2 of 2 copies are ready" in pushed
        assert (await fleet.workers())[node_id] == {"spread"}
        assert f"127.0.0.1:{worker.port}" in await done(mesh, "fleet")

        async with asked_all_the_time(gateway, "spread") as asked, held(mesh, identity) as streams:
            await asked.more(20)
            told = await done(mesh, "nodes", "revoke", node_id, "--reason", "stolen")
            assert f"revoked worker {node_id}" in told
            assert await fleet.until(node_id, there=False) < WITHIN_S
            for name, stream in streams.items():
                assert await stream.end() is grpc.StatusCode.PERMISSION_DENIED, name
            await asked.more(50)
            assert not asked.failed, "the worker that is left answers what the other one did not"
        assert node_id not in await done(mesh, "fleet")

    assert re.search(rf"{node_id} .*revoked .*: stolen", await done(mesh, "nodes", "list"))
    async with joined_worker(mesh, third):
        await until_told(mesh, node_id)
        await join(await invited(mesh), tmp_path / "fourth")
        async with joined_worker(mesh, tmp_path / "fourth"):
            # What is told later is believed by now, so what was told before is not going to be.
            await fleet.until(str(load_identity(tmp_path / "fourth").node_id), there=True)
            assert node_id not in await fleet.workers()
    assert "was revoked" in await refused(mesh, "nodes", "renew", "--identity-dir", str(third))
    again = await asyncio.to_thread(penstock, "join", await invited(mesh), "--identity-dir", str(third))
    assert (again.returncode, "was revoked" in again.stderr) == (1, True), again.stderr
    audited = await done(mesh, "audit", "--action", "node.", "--subject", node_id)
    for action in ("node.enrol", "node.revoke"):
        assert action in audited


async def test_a_token_lets_one_node_in_once(mesh: RunningMesh, tmp_path: Path) -> None:
    line = await invited(mesh)
    identity = await join(line, tmp_path / "first")
    assert (await join(line, tmp_path / "first")).node_id == identity.node_id, "whoever lost the answer asks again"
    other = await asyncio.to_thread(penstock, "join", line, "--identity-dir", str(tmp_path / "other"))
    assert (other.returncode, "was used by node" in other.stderr) == (1, True), other.stderr
    assert not (tmp_path / "other" / "tls.pem").exists()
    assert re.search(rf"used .* by {identity.node_id}", await done(mesh, "nodes", "list", "--tokens"))
    assert line not in await done(mesh, "nodes", "list", "--tokens")


async def test_a_token_that_was_taken_back_lets_nobody_in(mesh: RunningMesh, tmp_path: Path) -> None:
    line = await invited(mesh)
    token = re.search(r"^ *([0-9a-f]{16}) .* until ", await done(mesh, "nodes", "list", "--tokens"), re.MULTILINE)
    assert token
    await done(mesh, "nodes", "uninvite", token[1])
    late = await asyncio.to_thread(penstock, "join", line, "--identity-dir", str(tmp_path / "late"))
    assert late.returncode == 1
    assert not (tmp_path / "late" / "tls.pem").exists()


async def test_a_worker_of_one_tenant_gets_none_of_anothers_models(
    mesh: RunningMesh, gateway: Gateway, fleet: Fleet, tmp_path: Path
) -> None:
    await done(mesh, "tenants", "create", "acme")
    identity = await join(await invited(mesh, "worker", "--tenant", "acme"), tmp_path / "acmes")
    async with joined_worker(mesh, tmp_path / "acmes"):
        await fleet.until(identity.node_id, there=True)
        own = ("--tenant", "acme", "--copies", "2")
        assert "2 of 2" in await done(mesh, "models", "push", str(adding(tmp_path / "a", "of-acme", 1)), *own)
        others = await done(mesh, "models", "push", str(adding(tmp_path / "d", "of-default", 1)), "--copies", "2")
        assert "1 of 1 copies are ready" in others
        assert (await fleet.workers())[identity.node_id] == {"of-acme"}
        assert await gateway.ask("of-default") == Answer(1.0, "1")
        await done(mesh, "models", "share", "of-default", "--with", "acme")
        assert "2 of 2 copies are ready" in await done(mesh, "models", "load", "of-default", "--copies", "2")
        assert (await fleet.workers())[identity.node_id] == {"of-acme", "of-default"}


async def test_an_operator_who_joined_may_do_what_the_first_may_until_revoked(mesh: RunningMesh, tmp_path: Path) -> None:
    identity = await join(await invited(mesh, "operator"), tmp_path / "second-operator")
    data = tmp_path / "client"
    data.mkdir()
    profile = replace(read_profile(mesh.data), operator_identity=str(tmp_path / "second-operator"))
    profile.write(data)
    second = replace(mesh, data=data)
    assert identity.node_id in await done(second, "nodes", "list")
    await done(mesh, "nodes", "revoke", identity.node_id)
    assert "was revoked" in await refused(second, "nodes", "list")
    assert "was revoked" in await refused(second, "fleet")
