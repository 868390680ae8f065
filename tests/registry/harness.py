"""What tests of the registry stand on: a database of each kind, seals, a trail, a server of services, a channel per role."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
from sqlalchemy import func, select, text

from registry.access.types import ActorKind, Principal, Scope
from registry.audit.trail import AuditTrail
from registry.audit.types import AuditNote
from registry.master_keys import MasterKeys
from registry.schema import REGISTRY, audit, tenants
from registry.seals import Seals, insert_sealed
from runtime.channel import inner_channel
from runtime.database import Database, open_database
from runtime.errors import PenstockError
from runtime.identity import Authority, NodeIdentity, Role
from runtime.ids import TenantId
from runtime.serving import Listen, Register, ServerLimits, serving
from runtime.status import error_of

MASTER_KEYS = MasterKeys("k1", {"k1": b"m" * 32})
OPERATOR = Principal(ActorKind.NODE, "op", frozenset(Scope), node_role=Role.OPERATOR)
NOTE = AuditNote(ActorKind.NODE, "op", "test", "nothing")


class ManualClock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        self.now_s += delay_s


@dataclass(slots=True)
class Ground:
    """An open database and what every room of the registry is built on."""

    database: Database
    address: str
    seals: Seals
    trail: AuditTrail
    clock: ManualClock

    async def add_tenants(self, *names: str) -> None:
        async with self.database.writing() as connection:
            for name in names:
                await insert_sealed(connection, self.seals, tenants, {"tenant": name, "created_at_ms": 1})

    async def execute(self, statement: str) -> None:
        """Behind the registry's back."""
        async with self.database.writing() as connection:
            await connection.execute(text(statement))

    async def actions(self) -> list[tuple[str, str, str]]:
        """Action, subject and outcome of the trail, oldest first."""
        async with self.database.reading() as connection:
            rows = await connection.execute(select(audit).order_by(audit.c.entry))
            return [(row.action, row.subject, row.outcome) for row in rows]

    async def count(self, table: str) -> int:
        async with self.database.reading() as connection:
            return int((await connection.execute(select(func.count()).select_from(text(table)))).scalar_one())


@asynccontextmanager
async def ground_on(address: str, keys: MasterKeys = MASTER_KEYS) -> AsyncIterator[Ground]:
    """The tenants `default`, `acme` and `globex` are there."""
    async with open_database(address, REGISTRY) as database:
        seals, clock = Seals(keys), ManualClock()
        ground = Ground(database, address, seals, AuditTrail(database, seals, clock), clock)
        if not await ground.count("tenants"):
            await ground.add_tenants("default", "acme", "globex")
        yield ground


def enrol_all(folder: Path) -> dict[Role, NodeIdentity]:
    authority = Authority.open(folder / "authority")
    return {role: authority.enrol(folder / role.value, role) for role in Role}


@dataclass(slots=True)
class Served:
    """A server of some services, over mTLS, and channels to it."""

    address: str
    identities: dict[Role, NodeIdentity]
    stack: AsyncExitStack
    channels: dict[Role, grpc.aio.Channel] = field(default_factory=dict)

    async def channel(self, role: Role = Role.OPERATOR) -> grpc.aio.Channel:
        if role not in self.channels:
            opened = inner_channel(self.address, self.identities[role], Role.REGISTRY)
            self.channels[role] = await self.stack.enter_async_context(opened)
        return self.channels[role]


@asynccontextmanager
async def served(
    registers: Sequence[Register], identities: dict[Role, NodeIdentity], services: Sequence[str] = ()
) -> AsyncIterator[Served]:
    listen = Listen("127.0.0.1", 0, identities[Role.REGISTRY])
    limits = ServerLimits(message_bytes=16 * 1024 * 1024)
    async with AsyncExitStack() as stack, serving([listen], registers, services, limits=limits, drain_grace_s=1.0) as running:
        server = Served(f"127.0.0.1:{running.ports[0]}", identities, stack)
        try:
            yield server
        finally:
            await stack.aclose()


async def refusal(call: Awaitable[object]) -> PenstockError:
    """The error that a call ends with, as our own class."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as failure:
        return error_of(failure)
    raise AssertionError(f"the call was not refused but answered {answer}")


def tenant(name: str) -> TenantId:
    return TenantId(name)
