"""Rows as the rooms of the registry write them, with their rows in the outbox; and a registry that tells of them."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.notices.loop import Teller, TellerTiming
from registry.notices.outbox import NoticeKind, tell
from registry.schema import aliases, keys, models, nodes, signers, versions
from registry.seals import insert_sealed, update_sealed
from runtime.backoff import Backoff
from runtime.clock import SystemClock
from runtime.identity import NodeIdentity
from runtime.ids import Digest
from runtime.keyvalue import KeyValueStore
from tests.registry.harness import Ground

LATER_MS = 4_000_000_000_000
QUICK = TellerTiming(poll_s=0.05, sweep_s=0.05, aside_s=0.05, backoff=Backoff(0.01, 1.0, 0.05))


def digest_of(model: str, number: int) -> Digest:
    return Digest(hashlib.sha256(f"{model}/{number}".encode()).hexdigest())


class World:
    """One database's rooms. Every method is one transaction, as a servicer's is."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground

    async def add_model(self, model: str, tenant: str = "acme", *, numbers: Sequence[int] = (1,), told: bool = True) -> None:
        async with self.ground.database.writing() as connection:
            await self._insert(
                connection,
                models,
                model=model,
                tenant=tenant,
                description="",
                shared_with=[],
                created_at_ms=1,
                generation=1,
            )
            for number in numbers:
                await self._add_version(connection, model, number)
            if told:
                await tell(connection, NoticeKind.MODEL, model)

    async def add_version(self, model: str, number: int) -> None:
        async with self._changing(model) as connection:
            await self._add_version(connection, model, number)

    async def withdraw(self, model: str, number: int) -> None:
        async with self._changing(model) as connection:
            where = (versions.c.model == model, versions.c.number == number)
            await update_sealed(connection, self.ground.seals, versions, {"withdrawn_at_ms": 5}, *where)

    async def share(self, model: str, *tenants: str) -> None:
        async with self._changing(model) as connection:
            await update_sealed(connection, self.ground.seals, models, {"shared_with": list(tenants)}, models.c.model == model)

    async def point(self, model: str, alias: str, number: int, weight: int = 0, **pending: Any) -> None:
        """Make or move an alias."""
        values = {
            "model": model,
            "alias": alias,
            "number": number,
            "weight": weight,
            "generation": 1,
            "pending_number": 0,
            "pending_weight": 0,
            "pending_promotes": "",
            "pending_kind": "",
            "pending_by": "",
            **pending,
        }
        async with self._changing(model) as connection:
            where = (aliases.c.model == model, aliases.c.alias == alias)
            if await update_sealed(connection, self.ground.seals, aliases, values, *where) is None:
                await self._insert(connection, aliases, **values)

    async def revoke_signer(self, signer_id: str, tenant: str, *model_names: str) -> None:
        async with self.ground.database.writing() as connection:
            await self._insert(
                connection,
                signers,
                signer_id=signer_id,
                tenant=tenant,
                name="",
                endorsement=b"",
                revoked_at_ms=5,
                endorsed_by="root",
            )
            for model in model_names:
                await self._bump(connection, model)
                await tell(connection, NoticeKind.MODEL, model)

    async def add_key(self, key_id: str, tenant: str = "acme") -> None:
        async with self.ground.database.writing() as connection:
            await self._insert(
                connection,
                keys,
                key_id=key_id,
                tenant=tenant,
                name="",
                role="caller",
                scopes=["infer"],
                secret_sha256=hashlib.sha256(key_id.encode()).digest(),
                allowed_models=[],
                requests_per_s=0.0,
                burst=0,
                rotated_to="",
            )

    async def revoke_key(self, key_id: str) -> None:
        async with self.ground.database.writing() as connection:
            await update_sealed(connection, self.ground.seals, keys, {"revoked_at_ms": 5}, keys.c.key_id == key_id)
            await tell(connection, NoticeKind.KEY, key_id)

    async def add_node(self, node_id: str, *, certificate_expires_at_ms: int = LATER_MS, revoked_at_ms: int = 0) -> None:
        async with self.ground.database.writing() as connection:
            await self._insert(
                connection,
                nodes,
                node_id=node_id,
                role="worker",
                tenants=[],
                hosts=[],
                ed25519_public_key=b"k" * 32,
                hardware_fingerprint="",
                certificate_expires_at_ms=certificate_expires_at_ms,
                revoked_at_ms=revoked_at_ms,
                revoked_because="",
            )

    async def revoke_node(self, node_id: str) -> None:
        async with self.ground.database.writing() as connection:
            await update_sealed(connection, self.ground.seals, nodes, {"revoked_at_ms": 5}, nodes.c.node_id == node_id)
            await tell(connection, NoticeKind.NODE, node_id)

    async def outbox(self) -> int:
        return await self.ground.count("outbox")

    @asynccontextmanager
    async def _changing(self, model: str) -> AsyncIterator[AsyncConnection]:
        async with self.ground.database.writing() as connection:
            await self._bump(connection, model)
            yield connection
            await tell(connection, NoticeKind.MODEL, model)

    async def _bump(self, connection: AsyncConnection, model: str) -> None:
        await connection.execute(update(models).where(models.c.model == model).values(generation=models.c.generation + 1))

    async def _add_version(self, connection: AsyncConnection, model: str, number: int) -> None:
        await self._insert(
            connection,
            versions,
            digest=digest_of(model, number),
            model=model,
            number=number,
            engine="onnx",
            task="tensor",
            size_bytes=1,
            signer_id="signer",
            manifest=b"manifest",
            signature=b"signature",
            ed25519_public_key=b"k" * 32,
            withdrawn_because="",
        )

    async def _insert(self, connection: AsyncConnection, table: Any, **values: Any) -> None:
        defaults = {column.name: 0 for column in table.columns if column.name.endswith("_ms")}
        await insert_sealed(connection, self.ground.seals, table, {**defaults, **values})


@asynccontextmanager
async def telling(
    ground: Ground, store: KeyValueStore, identity: NodeIdentity, timing: TellerTiming = QUICK
) -> AsyncIterator[None]:
    teller = Teller(ground.database, ground.seals, ground.trail, store, identity, SystemClock(), timing)
    async with teller.running():
        yield
