"""How much each tenant has stored, and how much it may."""

from __future__ import annotations

from registry.access.types import Principal, Scope
from registry.audit.types import note_of
from registry.files.policy import fault_of_tenant
from registry.files.sql import FileStore, no_tenant
from registry.files.types import Usage
from runtime.errors import InvalidArgument
from runtime.ids import TenantId

_MOST_BYTES = 2**63 - 1


class Storage:
    def __init__(self, store: FileStore) -> None:
        self._store = store

    async def usages(self, principal: Principal, tenant: str) -> tuple[Usage, ...]:
        """Of one tenant; of all where none is named and the caller is nobody's."""
        asked = TenantId(tenant) or principal.tenant
        # A node that is no operator has no business with what tenants store.
        principal.require(Scope.FILES_ADMIN if principal.tenant is None else Scope.MODELS_READ, asked)
        if asked is not None and (fault := fault_of_tenant(asked)):
            raise fault
        found = await self._store.usages(asked)
        if asked is not None and not found:
            raise no_tenant(asked)
        return found

    async def set_quota(self, principal: Principal, tenant: str, quota_bytes: int) -> Usage:
        """0 ends the limit. A tenant that has more already keeps it, and adds nothing."""
        principal.require(Scope.FILES_ADMIN)
        if fault := fault_of_tenant(tenant):
            raise fault
        if quota_bytes > _MOST_BYTES:
            raise InvalidArgument(f"a quota of {quota_bytes} bytes; up to {_MOST_BYTES} are taken, 0 for no limit")
        note = note_of(principal, "quota.set", tenant, tenant=TenantId(tenant), detail=f"{quota_bytes} bytes")
        return await self._store.set_quota(TenantId(tenant), quota_bytes, note)
