"""A whole registry to talk to, in this process: all its services on real files and a real database, over mTLS."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import nacl.signing
from penstock.registry.v1 import accounts_pb2_grpc, files_pb2_grpc, models_pb2, models_pb2_grpc

from cli.publish import publish_model
from registry.accounts.bootstrap import bootstrap
from registry.files.stores import open_objects
from registry.ground import Ground
from registry.schema import REGISTRY
from registry.services import SERVICES, Registry
from runtime.channel import inner_channel
from runtime.clock import Clock, SystemClock
from runtime.database import open_database
from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.identity import NodeIdentity, Role
from runtime.model_folder import ModelFolder
from runtime.serving import Listen, ServerLimits, serving
from tests.registry.harness import MASTER_KEYS, enrol_all

__all__ = ["PUBLISHER", "Mesh", "enrol_all", "running_mesh"]

PUBLISHER = nacl.signing.SigningKey(b"p" * 32)
NOWHERE = "127.0.0.1:1"


@dataclass(slots=True)
class Mesh:
    """One running registry and those who call it."""

    address: str
    identities: dict[Role, NodeIdentity]
    trusted: set[bytes]
    stack: AsyncExitStack
    channels: dict[Role, grpc.aio.Channel] = field(default_factory=dict)

    async def channel(self, role: Role = Role.OPERATOR) -> grpc.aio.Channel:
        if role not in self.channels:
            opened = inner_channel(self.address, self.identities[role], Role.REGISTRY)
            self.channels[role] = await self.stack.enter_async_context(opened)
        return self.channels[role]

    async def models(self, role: Role = Role.OPERATOR) -> models_pb2_grpc.ModelServiceStub:
        return models_pb2_grpc.ModelServiceStub(await self.channel(role))

    async def files(self, role: Role = Role.OPERATOR) -> files_pb2_grpc.FileServiceStub:
        return files_pb2_grpc.FileServiceStub(await self.channel(role))

    async def accounts(self, role: Role = Role.OPERATOR) -> accounts_pb2_grpc.AccountServiceStub:
        return accounts_pb2_grpc.AccountServiceStub(await self.channel(role))

    async def publish(self, folder: ModelFolder, version: str = "") -> str:
        """By a publisher whom everybody trusts; the version's digest."""
        return (await publish_model(await self.channel(), PUBLISHER, folder, version)).digest

    async def withdraw(self, model: str, version: str) -> None:
        request = models_pb2.WithdrawVersionRequest(model=model, version=version, reason="a test says so")
        await (await self.models()).WithdrawVersion(request)


@asynccontextmanager
async def running_mesh(
    folder: Path,
    identities: dict[Role, NodeIdentity],
    *,
    etcd: str = NOWHERE,
    clock: Clock | None = None,
    database: str = "",
    objects: str = "",
) -> AsyncIterator[Mesh]:
    """A registry on SQLite and a folder, unless said otherwise; without an etcd it tells nobody of changes."""
    trusted = {bytes(PUBLISHER.verify_key)}
    identity = identities[Role.REGISTRY]
    async with (
        open_database(database or str(folder / "registry.db"), REGISTRY) as opened_database,
        open_objects(objects or str(folder / "objects")) as opened_objects,
        EtcdStore(EtcdSettings.at(etcd)) as store,
    ):
        clock = clock or SystemClock()
        ground = Ground(
            opened_database,
            opened_objects,
            MASTER_KEYS,
            store,
            identity,
            lambda: frozenset(trusted),
            authority=None,
            clock=clock,
        )
        registry = Registry(ground)
        await bootstrap(registry.first_accounts, None)
        limits = ServerLimits(message_bytes=16 * 1024 * 1024)
        server = serving([Listen("127.0.0.1", 0, identity)], registry.registers, SERVICES, limits=limits, drain_grace_s=1.0)
        async with AsyncExitStack() as stack, registry.running(), server as running:
            mesh = Mesh(f"127.0.0.1:{running.ports[0]}", identities, trusted, stack)
            try:
                yield mesh
            finally:
                await stack.aclose()
