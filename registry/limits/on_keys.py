"""What limits mean to keys: those that a key's requests may fall under, and what becomes of them when another key takes over.

For the room of accounts, inside of its own transactions. Decides nothing else about keys.
"""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncConnection

from registry.limits.policy import fullness, limit_id_of
from registry.limits.sql import LimitSql
from registry.limits.types import Limit, LimitsFull
from registry.notices.outbox import NoticeKind, tell
from runtime.ids import KeyId, TenantId


class LimitsOnKeys:
    def __init__(self, sql: LimitSql) -> None:
        self._sql = sql

    async def over(self, connection: AsyncConnection, tenant: TenantId, key_id: KeyId) -> tuple[Limit, ...]:
        """All that this key's requests may fall under: `policy.MAX_OF_ONE_KEYS_REQUESTS` at most. Raises RowAltered."""
        return await self._sql.over_key(connection, tenant, key_id)

    async def hand_on(self, connection: AsyncConnection, tenant: TenantId, old: KeyId, new: KeyId, now_ms: int) -> None:
        """The new key is limited as the old one is, or a rotation would lift what was set. Raises LimitsFull."""
        limits = await self._sql.on_key(connection, tenant, old)
        if not limits:
            return
        generation = await self._sql.begin_change(connection, now_ms)
        await self._sql.remove_useless(connection, now_ms)
        for limit in limits:
            subject = replace(limit.subject, key_id=new)
            handed = replace(limit, limit_id=limit_id_of(subject), subject=subject, generation=generation)
            if full := fullness(subject, await self._sql.counted(connection, subject, handed.limit_id)):
                raise LimitsFull(full)
            await self._sql.put(connection, handed)
        await tell(connection, NoticeKind.LIMITS, "")
