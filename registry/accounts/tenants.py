"""Tenants: made and listed."""

from __future__ import annotations

from sqlalchemy.exc import IntegrityError

from registry.access.types import Principal, Scope
from registry.accounts.policy import MAX_TENANTS, tenant_faults
from registry.accounts.sql import AccountSql
from registry.accounts.types import AccountsFull, Tenant, TenantExists
from registry.audit.trail import AuditTrail
from registry.audit.types import note_of
from runtime.clock import Clock
from runtime.database import Database
from runtime.errors import InvalidArgument
from runtime.ids import TenantId


class Tenants:
    def __init__(self, database: Database, sql: AccountSql, trail: AuditTrail, clock: Clock) -> None:
        self._database, self._sql, self._trail, self._clock = database, sql, trail, clock

    async def create(self, principal: Principal, name: TenantId) -> Tenant:
        """Raises TenantExists."""
        principal.require(Scope.TENANTS_WRITE)
        if faults := tenant_faults(name):
            raise InvalidArgument("; ".join(faults))
        tenant = Tenant(name, int(self._clock.wall_s() * 1000))
        try:
            async with self._database.writing() as connection:
                if await self._sql.count_tenants(connection) >= MAX_TENANTS:
                    raise AccountsFull(f"there are {MAX_TENANTS} tenants, which is the most there can be")
                await self._sql.add_tenant(connection, tenant)
                await self._trail.write(connection, note_of(principal, "tenant.create", name, tenant=name))
        except IntegrityError as error:
            raise TenantExists(f"tenant {name} exists already") from error
        return tenant

    async def all(self, principal: Principal) -> tuple[Tenant, ...]:
        """Those that the caller may see."""
        principal.require(Scope.ACCOUNTS_READ)
        async with self._database.reading() as connection:
            return await self._sql.tenants(connection, principal.tenant)
