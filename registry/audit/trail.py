"""Writes the trail: within the transaction that it tells of, or by itself for what was refused."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection

from registry.audit.policy import shown
from registry.audit.types import AuditNote
from registry.schema import audit
from registry.seals import Seals, insert_sealed
from runtime.clock import Clock
from runtime.database import Database


class AuditTrail:
    def __init__(self, database: Database, seals: Seals, clock: Clock) -> None:
        self._database, self._seals, self._clock = database, seals, clock

    async def write(self, connection: AsyncConnection, note: AuditNote) -> None:
        """In the caller's transaction: what was not committed is not told."""
        row = {
            "at_ms": int(self._clock.wall_s() * 1000),
            "actor_kind": note.actor_kind.value,
            "actor_id": shown(note.actor_id, 64),
            "tenant": shown(note.tenant or "", 63),
            "action": shown(note.action, 64),
            "subject": shown(note.subject, 256),
            "outcome": note.outcome.value,
            "detail": shown(note.detail, 500),
            "request_id": shown(note.request_id, 128),
        }
        await insert_sealed(connection, self._seals, audit, row)

    async def note(self, note: AuditNote) -> None:
        """In a transaction of its own."""
        async with self._database.writing() as connection:
            await self.write(connection, note)
