"""Tenants, users, sessions and keys in SQL. The one file with SQL of this room.

Each method is one statement or two inside the caller's transaction; rows are sealed when written and checked when read. Keeps
hashes of passwords and tokens, and never sees the things themselves. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.access.policy import scopes_of_key
from registry.access.types import AccountRole
from registry.accounts.policy import MAX_KEYS, MAX_TENANTS, MAX_USERS
from registry.accounts.types import ApiKey, RateLimit, Tenant, User
from registry.schema import keys, sessions, tenants, users
from registry.seals import Seals, insert_sealed, select_checked, update_sealed
from runtime.ids import KeyId, ModelName, TenantId, UserId


class AccountSql:
    def __init__(self, seals: Seals) -> None:
        self._seals = seals

    async def has_tenants(self, connection: AsyncConnection) -> bool:
        return (await connection.execute(select(tenants.c.tenant).limit(1))).first() is not None

    async def count_tenants(self, connection: AsyncConnection) -> int:
        return int((await connection.execute(select(func.count()).select_from(tenants))).scalar_one())

    async def tenant(self, connection: AsyncConnection, tenant: TenantId) -> Tenant | None:
        row = await select_checked(connection, self._seals, tenants, tenants.c.tenant == tenant)
        return None if row is None else _tenant(row)

    async def tenants(self, connection: AsyncConnection, tenant: TenantId | None) -> tuple[Tenant, ...]:
        wanted = select(tenants).order_by(tenants.c.tenant).limit(MAX_TENANTS)
        if tenant is not None:
            wanted = wanted.where(tenants.c.tenant == tenant)
        return tuple(_tenant(self._seals.check(tenants, row)) for row in await connection.execute(wanted))

    async def add_tenant(self, connection: AsyncConnection, tenant: Tenant) -> None:
        """Raises IntegrityError where it is there."""
        await insert_sealed(connection, self._seals, tenants, {"tenant": tenant.tenant, "created_at_ms": tenant.created_at_ms})

    async def count_users(self, connection: AsyncConnection, tenant: TenantId) -> int:
        counted = select(func.count()).select_from(users).where(users.c.tenant == tenant)
        return int((await connection.execute(counted)).scalar_one())

    async def add_user(self, connection: AsyncConnection, user: User, password_hash: str) -> None:
        """Raises IntegrityError where the name is taken."""
        await insert_sealed(connection, self._seals, users, {**_user_row(user), "password_hash": password_hash})

    async def user(self, connection: AsyncConnection, user_id: UserId) -> User | None:
        row = await select_checked(connection, self._seals, users, users.c.user_id == user_id)
        return None if row is None else _user(row)

    async def user_by_name(self, connection: AsyncConnection, name: str) -> tuple[User, str] | None:
        """And the hash of the password."""
        row = await select_checked(connection, self._seals, users, users.c.name == name)
        return None if row is None else (_user(row), row.password_hash)

    async def locked_user(self, connection: AsyncConnection, user_id: UserId) -> tuple[User, str] | None:
        """As it is until this transaction ends."""
        row = (await connection.execute(select(users).where(users.c.user_id == user_id).with_for_update())).first()
        return None if row is None else (_user(self._seals.check(users, row)), row.password_hash)

    async def users(self, connection: AsyncConnection, tenant: TenantId | None) -> tuple[User, ...]:
        wanted = select(users).order_by(users.c.name).limit(MAX_USERS)
        if tenant is not None:
            wanted = wanted.where(users.c.tenant == tenant)
        return tuple(_user(self._seals.check(users, row)) for row in await connection.execute(wanted))

    async def change_user(self, connection: AsyncConnection, user_id: UserId, changes: Mapping[str, Any]) -> User:
        """Who is there, as the caller has seen in this transaction."""
        row = await update_sealed(connection, self._seals, users, changes, users.c.user_id == user_id)
        if row is None:
            raise LookupError(user_id)
        return _user(row)

    async def add_session(
        self, connection: AsyncConnection, token_sha256: bytes, user_id: UserId, created_at_ms: int, expires_at_ms: int
    ) -> None:
        row = {
            "session_sha256": token_sha256,
            "user_id": user_id,
            "created_at_ms": created_at_ms,
            "expires_at_ms": expires_at_ms,
        }
        await insert_sealed(connection, self._seals, sessions, row)

    async def trim_sessions(self, connection: AsyncConnection, user_id: UserId, now_ms: int, keep: int) -> None:
        """Those that have ended go, and of the others the oldest, until no more than these are left."""
        mine = sessions.c.user_id == user_id
        await connection.execute(delete(sessions).where(mine, sessions.c.expires_at_ms <= now_ms))
        newest_first = select(sessions.c.session_sha256).where(mine).order_by(sessions.c.created_at_ms.desc())
        found = list((await connection.execute(newest_first)).scalars())
        if too_old := found[keep:]:
            await connection.execute(delete(sessions).where(sessions.c.session_sha256.in_(too_old)))

    async def end_sessions(self, connection: AsyncConnection, user_id: UserId) -> None:
        await connection.execute(delete(sessions).where(sessions.c.user_id == user_id))

    async def end_session(self, connection: AsyncConnection, user_id: UserId, token_sha256: bytes) -> None:
        await connection.execute(
            delete(sessions).where(sessions.c.session_sha256 == token_sha256, sessions.c.user_id == user_id)
        )

    async def count_live_keys(self, connection: AsyncConnection, tenant: TenantId, now_ms: int) -> int:
        lives = (keys.c.revoked_at_ms == 0) & ((keys.c.expires_at_ms == 0) | (keys.c.expires_at_ms > now_ms))
        counted = select(func.count()).select_from(keys).where(keys.c.tenant == tenant, lives)
        return int((await connection.execute(counted)).scalar_one())

    async def add_key(self, connection: AsyncConnection, key: ApiKey, secret_sha256: bytes) -> None:
        await insert_sealed(connection, self._seals, keys, {**_key_row(key), "secret_sha256": secret_sha256})

    async def keys(self, connection: AsyncConnection, tenant: TenantId | None) -> tuple[ApiKey, ...]:
        """Oldest first; of too many the newest."""
        wanted = select(keys).order_by(keys.c.created_at_ms.desc(), keys.c.key_id.desc()).limit(MAX_KEYS)
        if tenant is not None:
            wanted = wanted.where(keys.c.tenant == tenant)
        found = [_key(self._seals.check(keys, row)) for row in await connection.execute(wanted)]
        return tuple(reversed(found))

    async def key_by_secret(self, connection: AsyncConnection, secret_sha256: bytes) -> ApiKey | None:
        row = await select_checked(connection, self._seals, keys, keys.c.secret_sha256 == secret_sha256)
        return None if row is None else _key(row)

    async def locked_key(self, connection: AsyncConnection, key_id: KeyId) -> ApiKey | None:
        """As it is until this transaction ends."""
        row = (await connection.execute(select(keys).where(keys.c.key_id == key_id).with_for_update())).first()
        return None if row is None else _key(self._seals.check(keys, row))

    async def end_key(self, connection: AsyncConnection, key: ApiKey) -> None:
        """Write down when this key ends, or ended, and which one took over."""
        changes = {
            "expires_at_ms": key.expires_at_ms,
            "revoked_at_ms": key.revoked_at_ms,
            "rotated_to": key.rotated_to,
        }
        await update_sealed(connection, self._seals, keys, changes, keys.c.key_id == key.key_id)

    async def note_uses(self, connection: AsyncConnection, used_at_ms: Sequence[tuple[KeyId, int]]) -> None:
        """Outside of the seal: it grants nothing. In the order of the keys, so that two replicas cannot wait for each other."""
        for key_id, at_ms in sorted(used_at_ms):
            older = (keys.c.key_id == key_id) & (keys.c.last_used_at_ms < at_ms)
            await connection.execute(update(keys).where(older).values(last_used_at_ms=at_ms))


def _tenant(row: Row[Any]) -> Tenant:
    return Tenant(TenantId(row.tenant), row.created_at_ms)


def _user_row(user: User) -> dict[str, Any]:
    return {
        "user_id": user.user_id,
        "tenant": user.tenant,
        "name": user.name,
        "role": user.role.value,
        "created_at_ms": user.created_at_ms,
        "disabled_at_ms": user.disabled_at_ms,
        "last_login_at_ms": user.last_login_at_ms,
    }


def _user(row: Row[Any]) -> User:
    return User(
        UserId(row.user_id),
        TenantId(row.tenant),
        row.name,
        AccountRole(row.role),
        row.created_at_ms,
        row.disabled_at_ms,
        row.last_login_at_ms,
    )


def _key_row(key: ApiKey) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "tenant": key.tenant,
        "name": key.name,
        "role": key.role.value,
        "scopes": sorted(scope.value for scope in key.scopes),
        "allowed_models": list(key.allowed_models),
        "requests_per_s": key.rate_limit.requests_per_s,
        "burst": key.rate_limit.burst,
        "created_at_ms": key.created_at_ms,
        "expires_at_ms": key.expires_at_ms,
        "revoked_at_ms": key.revoked_at_ms,
        "rotated_to": key.rotated_to,
        "last_used_at_ms": key.last_used_at_ms,
    }


def _key(row: Row[Any]) -> ApiKey:
    role = AccountRole(row.role)
    return ApiKey(
        key_id=KeyId(row.key_id),
        tenant=TenantId(row.tenant),
        name=row.name,
        role=role,
        scopes=scopes_of_key(role, row.scopes),
        allowed_models=tuple(ModelName(model) for model in row.allowed_models),
        rate_limit=RateLimit(row.requests_per_s, row.burst),
        created_at_ms=row.created_at_ms,
        expires_at_ms=row.expires_at_ms,
        revoked_at_ms=row.revoked_at_ms,
        rotated_to=row.rotated_to,
        last_used_at_ms=row.last_used_at_ms,
    )
