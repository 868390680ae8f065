"""The registry, put together on an open database and object store: what a server registers, and what runs beside it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from registry.access.door import MeshDoor
from registry.access.sql import Bearers
from registry.accounts.bootstrap import FirstAccounts
from registry.accounts.last_use import LastUse
from registry.accounts.servicer import SERVICE as ACCOUNTS
from registry.accounts.servicer import AccountServicer
from registry.accounts.sql import AccountSql
from registry.audit.audited import audited
from registry.audit.bounded import BoundedTrail
from registry.audit.servicer import SERVICE as AUDIT
from registry.audit.servicer import AuditServicer
from registry.audit.trail import AuditTrail
from registry.files.composition import Files, compose_files
from registry.files.data_keys import DataKeys
from registry.files.garbage import collecting
from registry.files.rotation import Rotation
from registry.files.servicer import SERVICE as FILES
from registry.ground import Ground
from registry.limits.on_keys import LimitsOnKeys
from registry.limits.servicer import SERVICE as LIMITS
from registry.limits.servicer import LimitServicer
from registry.limits.sql import LimitSql
from registry.models.servicer import SERVICE as MODELS
from registry.models.servicer import ModelServicer
from registry.nodes.enrolment import Enrolment
from registry.nodes.servicer import SERVICE as NODES
from registry.nodes.servicer import NodeServicer
from registry.nodes.sql import SqlNodes
from registry.notices.loop import Teller
from registry.seals import Seals
from runtime.notices import NoticeBoard
from runtime.records import RecordVerifier
from runtime.revocations import Revocations
from runtime.serving import Register

SERVICES = (MODELS, FILES, ACCOUNTS, LIMITS, NODES, AUDIT)


class Registry:
    """All rooms of one process."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        database, clock = ground.database, ground.clock
        self.revocations = Revocations()
        seals, data_keys = Seals(ground.master_keys), DataKeys(ground.master_keys)
        trail = AuditTrail(database, seals, clock)
        bounded, sql = BoundedTrail(trail, clock), AccountSql(seals)
        self.first_accounts = FirstAccounts(database, sql, trail, clock)
        self._last_use = LastUse(database, sql, clock)
        door = MeshDoor(Bearers(database, seals), self.revocations, clock, self._last_use.used)
        self._nodes = SqlNodes(database, seals, trail)
        self._files = self._composed_files(door, seals, data_keys, trail)
        limit_sql = LimitSql(seals)
        enrolment = Enrolment(self._nodes, ground.authority, ground.rules, self.revocations, clock)
        servicers = (
            ModelServicer(
                door=door, database=database, seals=seals, trail=trail, bounded=bounded, roots=ground.roots, clock=clock
            ),
            self._files.servicer,
            AccountServicer(
                door=door,
                database=database,
                sql=sql,
                limits=LimitsOnKeys(limit_sql),
                trail=trail,
                bounded=bounded,
                last_use=self._last_use,
                clock=clock,
            ),
            LimitServicer(door=door, database=database, sql=limit_sql, trail=trail, clock=clock),
            NodeServicer(door=door, enrolment=enrolment, sql=self._nodes, bounded=bounded, clock=clock),
            AuditServicer(door=door, database=database, seals=seals, trail=trail, bounded=bounded, clock=clock),
        )
        self.registers: list[Register] = [audited(servicer.register, bounded) for servicer in servicers]
        self._teller = Teller(database, seals, trail, ground.store, ground.identity, clock)
        self._board = NoticeBoard(self.revocations)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """What runs beside the calls: the mesh is told, garbage collected, uses of keys are written down."""
        ground = self._ground
        for node_id in await self._nodes.revoked_ids():
            self.revocations.add(node_id)
        verifier = RecordVerifier(ground.identity.authority_pem, revocations=self.revocations)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._board.following(ground.store, verifier, ground.clock))
            await stack.enter_async_context(self._teller.running())
            await stack.enter_async_context(self._last_use.running())
            rng = random.SystemRandom()
            collection = asyncio.create_task(
                collecting(self._files.garbage, ground.clock, ground.collect_every_s, rng), name="garbage collection"
            )
            try:
                yield
            finally:
                collection.cancel()
                await asyncio.gather(collection, return_exceptions=True)

    def _composed_files(self, door: MeshDoor, seals: Seals, data_keys: DataKeys, trail: AuditTrail) -> Files:
        ground = self._ground
        return compose_files(
            door=door,
            database=ground.database,
            objects=ground.objects,
            seals=seals,
            data_keys=data_keys,
            trail=trail,
            rotation=Rotation(ground.database, seals, data_keys, trail),
            clock=ground.clock,
            limits=ground.limits,
        )
