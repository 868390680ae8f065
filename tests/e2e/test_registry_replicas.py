"""Two registries on one PostgreSQL and one bucket, behind Envoy: either is killed under load, and no call fails."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import httpx
import pytest
from penstock.registry.v1 import accounts_pb2, accounts_pb2_grpc, models_pb2, models_pb2_grpc

from cli.publish import publish_folder
from gateway.xds.descriptors import annotated_services
from gateway.xds.types import Endpoint, RegistryFront
from registry.master_keys import new_master_keys, write_master_keys
from runtime.channel import inner_channel
from runtime.identity import NodeIdentity, Role
from tests.support.edge import EdgeUnderTest, edge_under_test
from tests.support.envoy import LOOPBACK, free_endpoint
from tests.support.etcd import EtcdServer
from tests.support.postgres import Postgres, running_postgres
from tests.support.registry import Ground, RegistryProcess, registry_process
from tests.support.s3 import S3Server, running_s3

_MODEL_TOML = 'name = "{name}"\nengine = "python"\ntask = "tensor"\n'


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with running_s3() as server:
        yield server


@dataclass(slots=True)
class Replicas:
    edge: EdgeUnderTest
    ground: Ground
    operator: NodeIdentity
    gateway: NodeIdentity
    listen: Endpoint
    admin: Endpoint
    stack: AsyncExitStack
    running: dict[str, RegistryProcess] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"{self.listen.host}:{self.listen.port}"

    async def start(self, name: str, port: int = 0) -> RegistryProcess:
        identity = self.edge.authority.enrol(self.edge.folder / name, Role.REGISTRY)
        entering = registry_process(self.edge.folder, name, identity.folder, self.ground, port=port)
        self.running[name] = await self.stack.enter_async_context(entering)
        return self.running[name]

    async def until_taken_back(self, port: int) -> None:
        """Return once Envoy calls the replica healthy."""
        wanted = f"registries::{LOOPBACK}:{port}::health_flags::healthy"
        async with httpx.AsyncClient() as client, asyncio.timeout(30):
            while wanted not in (await client.get(f"http://{self.admin.host}:{self.admin.port}/clusters")).text:
                await asyncio.sleep(0.05)


@pytest.fixture
async def replicas(tmp_path: Path, postgres: Postgres, s3: S3Server) -> AsyncIterator[Replicas]:
    shared = f"replicas-{secrets.token_hex(3)}"
    etcd = EtcdServer(tmp_path)
    etcd.start()
    write_master_keys(tmp_path / "master.keys", new_master_keys())
    async with AsyncExitStack() as stack, edge_under_test(tmp_path) as edge:
        stack.callback(etcd.stop)
        operator = edge.authority.enrol(tmp_path / "operator", Role.OPERATOR)
        (tmp_path / "trusted").write_text(operator.ed25519_public_key.hex() + "\n")
        ground = Ground(
            database=postgres.new_database(shared),
            objects=s3.new_bucket(shared),
            etcd=etcd.endpoint,
            master_keys=tmp_path / "master.keys",
            trusted_signers=tmp_path / "trusted",
            environment=s3.environment(),
        )
        made = Replicas(edge, ground, operator, edge.identity, free_endpoint(), free_endpoint(), stack)
        for name in ("one", "two"):
            await made.start(name)
        members = tuple(Endpoint(LOOPBACK, process.port) for process in made.running.values())
        _, gateway, _ = await edge.gateway("gateway")
        services = annotated_services(edge.edge.descriptor_set, ("penstock.registry.",))
        edge.publish(gateway, registry=RegistryFront(members, made.listen, services))
        envoy = await edge.envoy(gateway, admin=made.admin)
        await envoy.until_listening(made.listen)
        await edge.settled()
        for process in made.running.values():
            await made.until_taken_back(process.port)
        yield made


def model_folder(folder: Path, name: str, size_bytes: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(_MODEL_TOML.format(name=name))
    (folder / "model.py").write_bytes(b"# " + secrets.token_hex(size_bytes // 2).encode())
    return folder


@dataclass(slots=True)
class Load:
    """What runs while replicas die. Any call that fails, after what its own client does about it, ends the test."""

    done: Counter[str] = field(default_factory=Counter)
    ending: asyncio.Event = field(default_factory=asyncio.Event)

    async def repeat(self, what: str, call: Callable[[], Awaitable[object]]) -> None:
        while not self.ending.is_set():
            await call()
            self.done[what] += 1

    async def more(self, count: int, kinds: tuple[str, ...] = ("resolve", "list", "get", "publish", "move")) -> None:
        """Return once each of these kinds of call was done so many times from now on."""
        before = Counter(self.done)
        async with asyncio.timeout(60):
            while any(self.done[what] - before[what] < count for what in kinds):
                await asyncio.sleep(0.02)


async def test_either_replica_is_killed_under_load_and_no_call_fails(replicas: Replicas, tmp_path: Path) -> None:
    load = Load()
    async with (
        inner_channel(replicas.address, replicas.operator, Role.REGISTRY) as operator,
        inner_channel(replicas.address, replicas.gateway, Role.REGISTRY) as gateway,
    ):
        await operator.channel_ready()
        key = await accounts_pb2_grpc.AccountServiceStub(operator).CreateKey(
            accounts_pb2.CreateKeyRequest(tenant="default", name="load", role="caller")
        )
        await publish_folder(operator, replicas.operator.signing_key, model_folder(tmp_path / "m-0", "first", 10_000))
        await publish_folder(operator, replicas.operator.signing_key, model_folder(tmp_path / "m-1", "first", 10_000))
        calls = Calls(operator, gateway, replicas.operator, tmp_path, key.secret)
        async with asyncio.TaskGroup() as group:
            for what, call in calls.all().items():
                group.create_task(load.repeat(what, call))
            await load.more(3)
            for name in ("one", "two"):
                port = replicas.running[name].port
                await replicas.running[name].kill()
                await load.more(5)
                await replicas.start(name, port)
                await replicas.until_taken_back(port)
            load.ending.set()
        published = {model.model: model async for model in _models(operator)}
        assert len(published["load"].versions) == load.done["publish"]
        moves = await models_pb2_grpc.ModelServiceStub(operator).ListAliasMoves(
            models_pb2.ListAliasMovesRequest(model="first", limit=1000)
        )
        generations = [move.generation for move in moves.moves]
        assert generations == list(range(len(generations), 0, -1)), "the history has every move once"


async def _models(channel: grpc.aio.Channel) -> AsyncIterator[models_pb2.Model]:
    for model in (await models_pb2_grpc.ModelServiceStub(channel).ListModels(models_pb2.ListModelsRequest())).models:
        yield model


class Calls:
    """One of each kind."""

    def __init__(
        self, operator: grpc.aio.Channel, gateway: grpc.aio.Channel, identity: NodeIdentity, folder: Path, secret: str
    ) -> None:
        import hashlib

        self._operator, self._identity, self._folder = operator, identity, folder
        self._models = models_pb2_grpc.ModelServiceStub(operator)
        self._accounts = accounts_pb2_grpc.AccountServiceStub(gateway)
        self._sha256 = hashlib.sha256(secret.encode()).digest()
        self._count, self._target = 0, 1

    def all(self) -> dict[str, Callable[[], Awaitable[object]]]:
        return {
            "resolve": self.resolve,
            "list": lambda: self._models.ListModels(models_pb2.ListModelsRequest(), timeout=20),
            "get": lambda: self._models.GetVersion(models_pb2.GetVersionRequest(model="first"), timeout=20),
            "publish": self.publish,
            "move": self.move,
        }

    async def resolve(self) -> None:
        request = accounts_pb2.ResolveKeyRequest(secret_sha256=self._sha256)
        assert (await self._accounts.ResolveKey(request, timeout=20)).key.name == "load"

    async def publish(self) -> None:
        self._count += 1
        folder = model_folder(self._folder / f"load-{self._count}", "load", 300_000)
        published = await publish_folder(self._operator, self._identity.signing_key, folder)
        assert published.version == str(self._count)

    async def move(self) -> None:
        """Compare and set; who does not know whether it was done looks, and does it again if it was not."""
        wanted, before = str(self._target % 2 + 1), str((self._target - 1) % 2 + 1)
        expected = before if self._target > 1 else ""
        request = models_pb2.MoveAliasRequest(
            model="first", alias="stable", version=wanted, expected_version=expected, immediate=True
        )
        try:
            await self._models.MoveAlias(request, timeout=20)
        except grpc.aio.AioRpcError as failure:
            if failure.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED):
                raise
            if await self._stable() != wanted:
                return
        self._target += 1

    async def _stable(self) -> str:
        async for model in _models(self._operator):
            if model.model == "first":
                return next((alias.version for alias in model.aliases if alias.alias == "stable"), "")
        return ""


async def test_a_replica_that_stands_still_costs_nobody_a_call_that_may_be_made_twice(
    replicas: Replicas, tmp_path: Path
) -> None:
    load = Load()
    async with (
        inner_channel(replicas.address, replicas.operator, Role.REGISTRY) as operator,
        inner_channel(replicas.address, replicas.gateway, Role.REGISTRY) as gateway,
    ):
        key = await accounts_pb2_grpc.AccountServiceStub(operator).CreateKey(
            accounts_pb2.CreateKeyRequest(tenant="default", name="load", role="caller")
        )
        await publish_folder(operator, replicas.operator.signing_key, model_folder(tmp_path / "m-0", "first", 10_000))
        calls = Calls(operator, gateway, replicas.operator, tmp_path, key.secret).all()
        kinds = ("resolve", "list", "get")
        async with asyncio.TaskGroup() as group:
            for what in kinds:
                group.create_task(load.repeat(what, calls[what]))
            await load.more(3, kinds)
            stopped = replicas.running["one"]
            stopped.process.send_signal(signal.SIGSTOP)
            try:
                await load.more(20, kinds)
            finally:
                stopped.process.send_signal(signal.SIGCONT)
            await replicas.until_taken_back(stopped.port)
            await load.more(5, kinds)
            load.ending.set()
