"""Accounts, limits and the trail served for real: over mTLS, over TLS without a client's certificate, and over nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import grpc.aio
from argon2.profiles import CHEAPEST
from penstock.registry.v1 import accounts_pb2, accounts_pb2_grpc, audit_pb2_grpc, limits_pb2_grpc

from registry.access.door import MeshDoor
from registry.access.sql import Bearers
from registry.accounts.last_use import LastUse
from registry.accounts.passwords import Passwords
from registry.accounts.servicer import AccountServicer
from registry.accounts.sql import AccountSql
from registry.audit.audited import audited
from registry.audit.bounded import BoundedTrail
from registry.audit.servicer import AuditServicer
from registry.limits.on_keys import LimitsOnKeys
from registry.limits.servicer import LimitServicer
from registry.limits.sql import LimitSql
from runtime.channel import inner_channel
from runtime.identity import NodeIdentity, Role
from runtime.revocations import Revocations
from runtime.serving import Listen, PublicTls, serving
from tests.registry.harness import Ground

PASSWORD = "correct horse battery"
Metadata = tuple[tuple[str, str], ...]


def bearing(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


@dataclass(slots=True)
class Office:
    """One registry's accounts, and those who call them."""

    ground: Ground
    identities: dict[Role, NodeIdentity]
    stack: AsyncExitStack
    ports: tuple[int, ...]
    last_use: LastUse
    revocations: Revocations
    bounded: BoundedTrail
    channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)

    async def accounts(self, role: Role = Role.OPERATOR) -> accounts_pb2_grpc.AccountServiceStub:
        return accounts_pb2_grpc.AccountServiceStub(await self._node(role))

    async def audit(self, role: Role = Role.OPERATOR) -> audit_pb2_grpc.AuditServiceStub:
        return audit_pb2_grpc.AuditServiceStub(await self._node(role))

    async def limits(self, role: Role = Role.OPERATOR) -> limits_pb2_grpc.LimitServiceStub:
        return limits_pb2_grpc.LimitServiceStub(await self._node(role))

    async def public_limits(self) -> limits_pb2_grpc.LimitServiceStub:
        """Without a certificate."""
        return limits_pb2_grpc.LimitServiceStub(await self.public_channel())

    async def public(self) -> accounts_pb2_grpc.AccountServiceStub:
        """Without a certificate."""
        return accounts_pb2_grpc.AccountServiceStub(await self.public_channel())

    async def public_audit(self) -> audit_pb2_grpc.AuditServiceStub:
        return audit_pb2_grpc.AuditServiceStub(await self.public_channel())

    async def plaintext(self) -> accounts_pb2_grpc.AccountServiceStub:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.ports[2]}")
        return accounts_pb2_grpc.AccountServiceStub(await self._kept("plaintext", channel))

    async def public_channel(self) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(self.identities[Role.REGISTRY].authority_pem)
        return await self._kept("public", grpc.aio.secure_channel(f"localhost:{self.ports[1]}", credentials))

    async def key(self, **fields: object) -> accounts_pb2.CreateKeyResponse:
        wanted = {"tenant": "acme", "name": "app", "role": "caller", **fields}
        return await (await self.accounts()).CreateKey(accounts_pb2.CreateKeyRequest(**wanted))  # type: ignore[arg-type]

    async def user(self, name: str = "ann", role: str = "owner", tenant: str = "acme") -> accounts_pb2.User:
        request = accounts_pb2.CreateUserRequest(tenant=tenant, name=name, role=role, password=PASSWORD)
        return (await (await self.accounts()).CreateUser(request)).user

    async def session(self, name: str = "ann", password: str = PASSWORD) -> str:
        request = accounts_pb2.LogInRequest(name=name, password=password)
        return (await (await self.public()).LogIn(request)).session

    async def _node(self, role: Role) -> grpc.aio.Channel:
        opened = inner_channel(f"127.0.0.1:{self.ports[0]}", self.identities[role], Role.REGISTRY)
        return await self._kept(role.value, opened)

    async def _kept(self, name: str, opened: grpc.aio.Channel) -> grpc.aio.Channel:
        if name not in self.channels:
            self.channels[name] = await self.stack.enter_async_context(opened)
        return self.channels[name]


@asynccontextmanager
async def office_on(ground: Ground, identities: dict[Role, NodeIdentity]) -> AsyncIterator[Office]:
    database, seals, trail, clock = ground.database, ground.seals, ground.trail, ground.clock
    sql, revocations, bounded = AccountSql(seals), Revocations(), BoundedTrail(trail, clock)
    last_use = LastUse(database, sql, clock)
    door = MeshDoor(Bearers(database, seals), revocations, clock, last_use.used)
    passwords = Passwords(CHEAPEST)
    limit_sql = LimitSql(seals)
    accounts = AccountServicer(
        door=door,
        database=database,
        sql=sql,
        limits=LimitsOnKeys(limit_sql),
        trail=trail,
        bounded=bounded,
        last_use=last_use,
        clock=clock,
        passwords=passwords,
    )
    limits = LimitServicer(door=door, database=database, sql=limit_sql, trail=trail, clock=clock)
    audit = AuditServicer(door=door, database=database, seals=seals, trail=trail, bounded=bounded, clock=clock)
    registers = [audited(servicer.register, bounded) for servicer in (accounts, limits, audit)]
    identity = identities[Role.REGISTRY]
    public = PublicTls(identity.certificate_pem, identity.tls_key_pem)
    listens = [Listen("127.0.0.1", 0, identity), Listen("127.0.0.1", 0, public_tls=public), Listen("127.0.0.1", 0)]
    async with AsyncExitStack() as stack, serving(listens, registers, (), drain_grace_s=1.0) as running:
        office = Office(ground, identities, stack, running.ports, last_use, revocations, bounded)
        try:
            yield office
        finally:
            await stack.aclose()
