"""The account store in SQL. Keeps the hash of a key's secret and never sees the secret."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from registry.database import Database
from registry.ports import TenantExists, TenantUnknown
from registry.schema import keys, tenants
from registry.types import ApiKey, KeyRole, RateLimit, Tenant
from runtime.errors import Aborted
from runtime.ids import KeyId, ModelName, TenantId


class SqlAccountStore:
    """Implements AccountStore."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_tenant(self, tenant: Tenant) -> None:
        try:
            async with self._database.writing() as connection:
                await connection.execute(insert(tenants).values(_tenant_row(tenant)))
        except IntegrityError as error:
            raise TenantExists(f"tenant {tenant.tenant} exists already") from error

    async def is_empty(self) -> bool:
        async with self._database.reading() as connection:
            return (await connection.execute(select(tenants.c.tenant).limit(1))).first() is None

    async def add_first(self, tenant: Tenant, key: ApiKey | None, secret_sha256: bytes) -> bool:
        try:
            async with self._database.writing() as connection:
                if (await connection.execute(select(tenants.c.tenant).limit(1))).first() is not None:
                    return False
                await connection.execute(insert(tenants).values(_tenant_row(tenant)))
                if key is not None:
                    await connection.execute(insert(keys).values(_key_row(key, secret_sha256)))
        except IntegrityError:
            return False  # another replica was first
        return True

    async def add_key(self, key: ApiKey, secret_sha256: bytes) -> None:
        try:
            async with self._database.writing() as connection:
                known = await connection.execute(select(tenants.c.tenant).where(tenants.c.tenant == key.tenant))
                if known.first() is None:
                    raise TenantUnknown(f"there is no tenant {key.tenant}; create it first")
                await connection.execute(insert(keys).values(_key_row(key, secret_sha256)))
        except IntegrityError as error:
            raise Aborted(f"key {key.key_id} could not be stored; ask for the key again") from error

    async def keys(self, tenant: TenantId | None) -> tuple[ApiKey, ...]:
        wanted = select(keys).order_by(keys.c.created_at_ms, keys.c.key_id)
        if tenant is not None:
            wanted = wanted.where(keys.c.tenant == tenant)
        async with self._database.reading() as connection:
            return tuple(_key(row) for row in await connection.execute(wanted))

    async def key_by_secret(self, secret_sha256: bytes) -> ApiKey | None:
        async with self._database.reading() as connection:
            row = (await connection.execute(select(keys).where(keys.c.secret_sha256 == secret_sha256))).first()
        return None if row is None else _key(row)

    async def revoke_key(self, key_id: KeyId, revoked_at_ms: int) -> ApiKey | None:
        async with self._database.writing() as connection:
            live = (keys.c.key_id == key_id) & (keys.c.revoked_at_ms == 0)
            await connection.execute(update(keys).where(live).values(revoked_at_ms=revoked_at_ms))
            row = (await connection.execute(select(keys).where(keys.c.key_id == key_id))).first()
        return None if row is None else _key(row)


def _tenant_row(tenant: Tenant) -> dict[str, str | int]:
    return {"tenant": tenant.tenant, "created_at_ms": tenant.created_at_ms}


def _key_row(key: ApiKey, secret_sha256: bytes) -> dict[str, object]:
    return {
        "key_id": key.key_id,
        "tenant": key.tenant,
        "name": key.name,
        "role": key.role.value,
        "secret_sha256": secret_sha256,
        "allowed_models": list(key.allowed_models),
        "requests_per_s": key.rate_limit.requests_per_s,
        "burst": key.rate_limit.burst,
        "created_at_ms": key.created_at_ms,
        "expires_at_ms": key.expires_at_ms,
        "revoked_at_ms": key.revoked_at_ms,
    }


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        key_id=KeyId(row.key_id),
        tenant=TenantId(row.tenant),
        name=row.name,
        role=KeyRole(row.role),
        allowed_models=tuple(ModelName(model) for model in row.allowed_models),
        rate_limit=RateLimit(row.requests_per_s, row.burst),
        created_at_ms=row.created_at_ms,
        expires_at_ms=row.expires_at_ms,
        revoked_at_ms=row.revoked_at_ms,
    )
