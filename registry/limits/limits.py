"""Limits set, listed and lifted. A change is stored, told to the mesh and written down in one step.

Operators limit everybody, any tenant and any key; a tenant's owners limit their own tenant and its keys. What both set stands
beside each other, and a request has to fit into all of it: so an owner never lifts what an operator set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncConnection

from registry.access.policy import is_live
from registry.access.types import MoreThanOwn, OtherTenant, Principal, Scope
from registry.audit.trail import AuditTrail
from registry.audit.types import note_of
from registry.limits.policy import described, fullness, id_fault, is_limit_id, limit_faults, limit_id_of, tenant_faults
from registry.limits.rights import model_fault, require_over, require_own, sees
from registry.limits.sql import LimitSql
from registry.limits.types import (
    Limit,
    LimitsFull,
    LimitSubject,
    LimitUnknown,
    LimitWish,
    SubjectUnknown,
)
from registry.notices.outbox import NoticeKind, tell
from runtime.clock import Clock
from runtime.database import Database
from runtime.errors import InvalidArgument
from runtime.ids import TenantId


class Limits:
    def __init__(self, database: Database, sql: LimitSql, trail: AuditTrail, clock: Clock) -> None:
        self._database, self._sql, self._trail, self._clock = database, sql, trail, clock

    async def set(self, principal: Principal, wish: LimitWish) -> Limit:
        """Raises OperatorsAlone, MoreThanOwn, SubjectUnknown, LimitsFull."""
        require_over(principal, wish.subject)
        if faults := limit_faults(wish):
            raise InvalidArgument("; ".join(faults[:10]))
        async with self._database.writing() as connection:
            limit = await self._wished(connection, principal, wish)
            known = await self._sql.limit(connection, limit.limit_id)
            if known is not None and replace(known, generation=0) == limit:
                return known
            return await self._put(connection, principal, limit)

    async def all(self, principal: Principal, wanted: TenantId | None) -> tuple[Limit, ...]:
        """Those on one tenant, or all that the caller may see."""
        principal.require(Scope.ACCOUNTS_READ, wanted)
        if wanted and (faults := tenant_faults(wanted)):
            raise InvalidArgument("; ".join(faults))
        async with self._database.reading() as connection:
            found = await self._sql.limits(connection, wanted or principal.tenant, mesh_wide=wanted is None)
            return await self._visible(connection, principal, found)

    async def remove(self, principal: Principal, limit_id: str) -> None:
        """Raises LimitUnknown, OperatorsAlone, MoreThanOwn."""
        principal.require(Scope.ACCOUNTS_WRITE)
        async with self._database.writing() as connection:
            limit = await self._mine(connection, principal, limit_id)
            await self._sql.begin_change(connection, self._now_ms())
            await self._sql.remove(connection, limit.limit_id)
            await self._told(connection, principal, "limit.delete", limit)

    async def _put(self, connection: AsyncConnection, principal: Principal, limit: Limit) -> Limit:
        now_ms = self._now_ms()
        limit = replace(limit, generation=await self._sql.begin_change(connection, now_ms))
        await self._sql.remove_useless(connection, now_ms)
        if full := fullness(limit.subject, await self._sql.counted(connection, limit.subject, limit.limit_id)):
            raise LimitsFull(full)
        await self._sql.put(connection, limit)
        await self._told(connection, principal, "limit.set", limit)
        return limit

    async def _told(self, connection: AsyncConnection, principal: Principal, action: str, limit: Limit) -> None:
        await tell(connection, NoticeKind.LIMITS, "")
        tenant = limit.subject.tenant or None
        await self._trail.write(
            connection,
            note_of(principal, action, limit.limit_id, tenant=tenant, detail=described(limit.subject, limit.amounts)),
        )

    async def _wished(self, connection: AsyncConnection, principal: Principal, wish: LimitWish) -> Limit:
        """The limit, of generation 0, once it is clear that its subject is there and is the caller's to limit."""
        subject = await self._known(connection, principal, wish.subject)
        if fault := model_fault(principal, subject):
            raise MoreThanOwn(fault)
        limit_id = limit_id_of(subject)
        if fault := id_fault(wish, limit_id):
            raise InvalidArgument(fault)
        return Limit(limit_id, subject, wish.amounts, wish.when_unsure, generation=0)

    async def _known(self, connection: AsyncConnection, principal: Principal, subject: LimitSubject) -> LimitSubject:
        """With the key's tenant. Raises SubjectUnknown."""
        if not subject.key_id:
            if subject.tenant and not await self._sql.has_tenant(connection, subject.tenant):
                raise SubjectUnknown(f"there is no tenant {subject.tenant}; create it first")
            return subject
        unknown = SubjectUnknown(f"there is no live key {subject.key_id!r}; list the keys to see their ids")
        key = await self._sql.key(connection, subject.key_id)
        if key is None:
            raise unknown
        tenant, revoked_at_ms, expires_at_ms = key
        try:
            principal.require(Scope.ACCOUNTS_WRITE, tenant)
        except OtherTenant as error:
            raise unknown from error
        if not is_live(revoked_at_ms, expires_at_ms, self._now_ms()):
            raise unknown
        if subject.tenant not in ("", tenant):
            raise InvalidArgument(f"key {subject.key_id} is tenant {tenant}'s and not {subject.tenant}'s; leave out the tenant")
        return replace(subject, tenant=tenant)

    async def _mine(self, connection: AsyncConnection, principal: Principal, limit_id: str) -> Limit:
        """A limit that the caller may lift. One that it does not see is not there for it."""
        limit = await self._sql.limit(connection, limit_id) if is_limit_id(limit_id) else None
        unknown = LimitUnknown(f"there is no limit {limit_id[:40]!r}; list the limits to see their ids")
        if limit is None:
            raise unknown
        if not await self._visible(connection, principal, (limit,)):
            raise unknown from OtherTenant(f"limit {limit.limit_id} is {described(limit.subject, limit.amounts)}")
        require_own(principal, limit)
        if fault := model_fault(principal, limit.subject):
            raise MoreThanOwn(fault)
        return limit

    async def _visible(self, connection: AsyncConnection, principal: Principal, found: Sequence[Limit]) -> tuple[Limit, ...]:
        named = {limit.subject.model for limit in found if not limit.subject.tenant and limit.subject.model}
        owners = await self._sql.model_owners(connection, named if principal.tenant is not None else ())
        return tuple(limit for limit in found if sees(principal, limit, owners))

    def _now_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)
