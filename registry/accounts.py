"""Tenants and keys: made, listed, resolved, revoked. Every change is stored first and told to the watchers afterwards."""

from __future__ import annotations

import structlog

from registry.changes import KeyChanges
from registry.keys import MintedKey, mint
from registry.policy import is_live, key_faults, tenant_faults, whole_rate_limit
from registry.ports import AccountStore
from registry.types import ApiKey, KeyWish, Tenant
from runtime.clock import Clock
from runtime.errors import Code, InvalidArgument, PenstockError
from runtime.ids import KeyId, TenantId

_log = structlog.get_logger("penstock.registry")


class KeyUnknown(PenstockError, code=Code.NOT_FOUND, reason="KEY_UNKNOWN"):
    """No such key, or none that is live."""


class Accounts:
    """What may be done with tenants and keys."""

    def __init__(self, store: AccountStore, changes: KeyChanges, clock: Clock) -> None:
        self._store, self._changes, self._clock = store, changes, clock

    async def create_tenant(self, name: TenantId) -> Tenant:
        if faults := tenant_faults(name):
            raise InvalidArgument("; ".join(faults))
        tenant = Tenant(name, self._now_ms())
        await self._store.add_tenant(tenant)
        _log.info("tenant_created", tenant=name)
        return tenant

    async def create_key(self, wish: KeyWish) -> tuple[ApiKey, MintedKey]:
        """The key, and what was minted for it: the only time that its secret is seen."""
        if faults := key_faults(wish):
            raise InvalidArgument("; ".join(faults[:10]))
        minted = mint()
        key = key_of(wish, minted.key_id, self._now_ms())
        await self._store.add_key(key, minted.secret_sha256)
        # Nobody can know of this key yet, but somebody may remember that its hash was unknown.
        self._changes.publish(key.key_id)
        _log.info("key_created", key_id=key.key_id, tenant=key.tenant, role=key.role.value)
        return key, minted

    async def keys(self, tenant: TenantId | None) -> tuple[ApiKey, ...]:
        return await self._store.keys(tenant)

    async def revoke(self, key_id: KeyId) -> ApiKey:
        """Idempotent: a key revoked before keeps its time. Raises KeyUnknown."""
        key = await self._store.revoke_key(key_id, self._now_ms())
        if key is None:
            raise KeyUnknown(f"there is no key {key_id[:40]!r}; list the keys to see their ids")
        self._changes.publish(key.key_id)
        _log.info("key_revoked", key_id=key.key_id, tenant=key.tenant)
        return key

    async def resolve(self, secret_sha256: bytes) -> ApiKey:
        """The live key with this hash. Raises KeyUnknown, without saying which of unknown, revoked and expired it is."""
        if len(secret_sha256) != 32:
            raise InvalidArgument(f"secret_sha256 has {len(secret_sha256)} bytes; 32 are expected")
        key = await self._store.key_by_secret(secret_sha256)
        if key is None or not is_live(key, self._now_ms()):
            raise KeyUnknown("no live key has this hash")
        return key

    def _now_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)


def key_of(wish: KeyWish, key_id: KeyId, now_ms: int) -> ApiKey:
    """The key that fulfils this wish, from now on."""
    return ApiKey(
        key_id=key_id,
        tenant=wish.tenant,
        name=wish.name,
        role=wish.role,
        allowed_models=tuple(dict.fromkeys(wish.allowed_models)),
        rate_limit=whole_rate_limit(wish.rate_limit),
        created_at_ms=now_ms,
        expires_at_ms=now_ms + wish.lifetime_s * 1000 if wish.lifetime_s else 0,
    )
