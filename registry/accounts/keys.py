"""API keys: made, listed, resolved, rotated, revoked. A change is stored, told to the mesh and written down in one step."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncConnection

from registry.access.policy import is_live, require_as_much
from registry.access.tokens import MintedKey, mint_key
from registry.access.types import OtherTenant, Principal, Scope
from registry.accounts.last_use import LastUse
from registry.accounts.policy import (
    MAX_KEYS,
    is_key_id,
    key_faults,
    key_of,
    overlap_faults,
    rotated,
    rotation_fault,
    tenant_faults,
)
from registry.accounts.sql import AccountSql
from registry.accounts.types import AccountsFull, ApiKey, KeyEnded, KeyUnknown, KeyWish, TenantUnknown
from registry.audit.trail import AuditTrail
from registry.audit.types import note_of
from registry.limits.on_keys import LimitsOnKeys
from registry.limits.types import Limit
from registry.notices.outbox import NoticeKind, tell
from runtime.clock import Clock
from runtime.database import Database
from runtime.errors import InvalidArgument
from runtime.ids import KeyId, TenantId

_HASH_BYTES = 32


class Keys:
    def __init__(
        self,
        database: Database,
        sql: AccountSql,
        limits: LimitsOnKeys,
        trail: AuditTrail,
        last_use: LastUse,
        clock: Clock,
    ) -> None:
        self._database, self._sql, self._limits, self._trail = database, sql, limits, trail
        self._last_use, self._clock = last_use, clock

    async def create(self, principal: Principal, wish: KeyWish) -> tuple[ApiKey, MintedKey]:
        """The key, and what was minted for it: the only time that its secret is seen. Raises MoreThanOwn, TenantUnknown."""
        principal.require(Scope.ACCOUNTS_WRITE, wish.tenant)
        if faults := key_faults(wish):
            raise InvalidArgument("; ".join(faults[:10]))
        minted = mint_key()
        key = key_of(wish, minted.key_id, self._now_ms())
        require_as_much(principal, key.scopes, frozenset(key.allowed_models))
        async with self._database.writing() as connection:
            if await self._sql.tenant(connection, key.tenant) is None:
                raise TenantUnknown(f"there is no tenant {key.tenant}; create it first")
            await self._add(connection, key, minted)
            detail = f"{key.role.value} {key.name!r} with {_scopes(key)}"
            await self._trail.write(connection, note_of(principal, "key.create", key.key_id, tenant=key.tenant, detail=detail))
        return key, minted

    async def all(self, principal: Principal, wanted: TenantId | None) -> tuple[ApiKey, ...]:
        """Those of a tenant, or all that the caller may see; oldest first."""
        principal.require(Scope.ACCOUNTS_READ, wanted)
        if wanted and (faults := tenant_faults(wanted)):
            raise InvalidArgument("; ".join(faults))
        async with self._database.reading() as connection:
            return await self._sql.keys(connection, wanted or principal.tenant)

    async def rotate(self, principal: Principal, key_id: KeyId, overlap_s: int) -> tuple[ApiKey, MintedKey, ApiKey]:
        """The new key, what was minted for it, and the old key as it is now.

        Raises KeyUnknown, KeyEnded, MoreThanOwn, LimitsFull.
        """
        if faults := overlap_faults(overlap_s):
            raise InvalidArgument("; ".join(faults))
        minted, now_ms = mint_key(), self._now_ms()
        async with self._database.writing() as connection:
            key = await self._mine(connection, principal, key_id)
            require_as_much(principal, key.scopes, frozenset(key.allowed_models))
            if fault := rotation_fault(key, now_ms):
                raise KeyEnded(fault)
            new, old = rotated(key, minted.key_id, overlap_s, now_ms)
            await self._add(connection, new, minted)
            await self._end(connection, old)
            await self._limits.hand_on(connection, key.tenant, key_id, new.key_id, now_ms)
            detail = f"to {new.key_id}, the old one ends {overlap_s} s later"
            await self._trail.write(connection, note_of(principal, "key.rotate", key_id, tenant=key.tenant, detail=detail))
        return new, minted, old

    async def revoke(self, principal: Principal, key_id: KeyId) -> ApiKey:
        """Idempotent: a key revoked before keeps its time. Raises KeyUnknown."""
        async with self._database.writing() as connection:
            key = await self._mine(connection, principal, key_id)
            if not key.revoked_at_ms:
                key = replace(key, revoked_at_ms=self._now_ms())
                await self._end(connection, key)
                await self._trail.write(connection, note_of(principal, "key.revoke", key_id, tenant=key.tenant))
        return key

    async def resolve(self, principal: Principal, secret_sha256: bytes) -> tuple[ApiKey, tuple[Limit, ...]]:
        """The live key with this hash, and all limits that its requests may fall under.

        Raises KeyUnknown, without saying which of unknown, revoked and expired it is.
        """
        principal.require(Scope.KEYS_RESOLVE)
        if len(secret_sha256) != _HASH_BYTES:
            raise InvalidArgument(f"secret_sha256 has {len(secret_sha256)} bytes; {_HASH_BYTES} are expected")
        async with self._database.reading() as connection:
            key = await self._sql.key_by_secret(connection, secret_sha256)
            if key is None or not is_live(key.revoked_at_ms, key.expires_at_ms, self._now_ms()):
                raise KeyUnknown("no live key has this hash")
            limits = await self._limits.over(connection, key.tenant, key.key_id)
        self._last_use.used(key.key_id)
        return key, limits

    async def _mine(self, connection: AsyncConnection, principal: Principal, key_id: KeyId) -> ApiKey:
        """A key that the caller may change, as it is until this transaction ends. Another tenant's is not there for it."""
        principal.require(Scope.ACCOUNTS_WRITE)
        key = await self._sql.locked_key(connection, key_id) if is_key_id(key_id) else None
        unknown = KeyUnknown(f"there is no key {key_id[:40]!r}; list the keys to see their ids")
        if key is None:
            raise unknown
        try:
            principal.require(Scope.ACCOUNTS_WRITE, key.tenant)
        except OtherTenant as error:
            raise unknown from error
        return key

    async def _add(self, connection: AsyncConnection, key: ApiKey, minted: MintedKey) -> None:
        if await self._sql.count_live_keys(connection, key.tenant, self._now_ms()) >= MAX_KEYS:
            raise AccountsFull(f"tenant {key.tenant} has {MAX_KEYS} live keys, which is the most it may have; revoke some")
        await self._sql.add_key(connection, key, minted.secret_sha256)
        # Nobody can know of this key yet, but somebody may remember that its hash was unknown.
        await tell(connection, NoticeKind.KEY, key.key_id)

    async def _end(self, connection: AsyncConnection, key: ApiKey) -> None:
        await self._sql.end_key(connection, key)
        await tell(connection, NoticeKind.KEY, key.key_id)

    def _now_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)


def _scopes(key: ApiKey) -> str:
    return ", ".join(sorted(scope.value for scope in key.scopes))
