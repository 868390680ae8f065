"""The first tenant and the first key, made once, when the database is empty.

The secret is written to its file's draft before the key is stored, and the draft takes the file's name afterwards: a process
that dies in between finds at its next start, by the hash, whether the draft's secret came to count.
"""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from registry.accounts import key_of
from registry.keys import mint, secret_sha256
from registry.ports import AccountStore
from registry.threads import in_thread
from registry.types import KeyRole, KeyWish, RateLimit, Tenant
from runtime.clock import Clock
from runtime.errors import FailedPrecondition
from runtime.identity import write_secret
from runtime.ids import TenantId

DEFAULT_TENANT = TenantId("default")
_ADMIN = KeyWish(DEFAULT_TENANT, "bootstrap", KeyRole.ADMIN, (), RateLimit(), lifetime_s=0)
_log = structlog.get_logger("penstock.registry")


async def bootstrap(store: AccountStore, key_file: Path | None, clock: Clock) -> None:
    """Make tenant `default` and an admin key whose secret goes to this file (mode 0600); no file, no key."""
    now_ms = int(clock.wall_s() * 1000)
    tenant = Tenant(DEFAULT_TENANT, now_ms)
    if key_file is None:
        if await store.add_first(tenant, None, b""):
            _log.warning("bootstrapped_without_key", tenant=DEFAULT_TENANT, hint="make a key with `penstock keys create`")
        return
    draft = key_file.with_name(f".{key_file.name}.draft")
    try:
        await _settle(store, draft, key_file)
        if await store.is_empty():
            await _first_key(store, tenant, draft, key_file, now_ms)
    except OSError as error:
        raise FailedPrecondition(f"cannot write the first key to {key_file}: {error.strerror}; choose another file") from error


async def _first_key(store: AccountStore, tenant: Tenant, draft: Path, key_file: Path, now_ms: int) -> None:
    minted = mint()
    await in_thread(_write_draft, draft, minted.secret)
    if await store.add_first(tenant, key_of(_ADMIN, minted.key_id, now_ms), minted.secret_sha256):
        await in_thread(draft.replace, key_file)
        _log.info("bootstrapped", tenant=DEFAULT_TENANT, key_id=minted.key_id, file=os.fspath(key_file))
    else:
        await in_thread(draft.unlink)  # another replica was first


async def _settle(store: AccountStore, draft: Path, key_file: Path) -> None:
    """What a process that died left behind: promote its draft if that key was stored."""
    try:
        secret = (await in_thread(draft.read_text)).strip()
    except FileNotFoundError:
        return
    if await store.key_by_secret(secret_sha256(secret)) is not None:
        await in_thread(draft.replace, key_file)
    else:
        await in_thread(draft.unlink)


def _write_draft(draft: Path, secret: str) -> None:
    draft.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_secret(draft, f"{secret}\n".encode())
