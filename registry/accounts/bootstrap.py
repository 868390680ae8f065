"""The first tenant and the first key, made once, when the database is empty.

The secret is written to its file's draft before the key is stored, and the draft takes the file's name afterwards: a process
that dies in between finds at its next start, by the hash, whether the draft's secret came to count. Replicas that share the
file take turns, so that none writes over another's draft.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from sqlalchemy.exc import IntegrityError

from registry.access.tokens import MintedKey, mint_key, token_sha256
from registry.access.types import AccountRole, ActorKind
from registry.accounts.policy import key_of
from registry.accounts.sql import AccountSql
from registry.accounts.types import KeyWish, Tenant
from registry.audit.trail import AuditTrail
from registry.audit.types import AuditNote
from registry.threads import in_thread, opened_in_thread
from runtime.clock import Clock
from runtime.database import Database
from runtime.errors import FailedPrecondition
from runtime.identity import write_secret
from runtime.ids import DEFAULT_TENANT

_OWNER = KeyWish(DEFAULT_TENANT, "bootstrap", AccountRole.OWNER)
_log = structlog.get_logger("penstock.registry")


class FirstAccounts:
    """What an empty database is begun with."""

    def __init__(self, database: Database, sql: AccountSql, trail: AuditTrail, clock: Clock) -> None:
        self._database, self._sql, self._trail, self._clock = database, sql, trail, clock

    async def is_empty(self) -> bool:
        async with self._database.reading() as connection:
            return not await self._sql.has_tenants(connection)

    async def has_key(self, secret: str) -> bool:
        async with self._database.reading() as connection:
            return await self._sql.key_by_secret(connection, token_sha256(secret)) is not None

    async def store(self, minted: MintedKey | None) -> bool:
        """Tenant `default`, and the key, all at once or not at all; False: another replica was first."""
        now_ms = int(self._clock.wall_s() * 1000)
        key = None if minted is None else key_of(_OWNER, minted.key_id, now_ms)
        try:
            async with self._database.writing() as connection:
                if await self._sql.has_tenants(connection):
                    return False
                await self._sql.add_tenant(connection, Tenant(DEFAULT_TENANT, now_ms))
                await self._trail.write(connection, _note("tenant.create", DEFAULT_TENANT))
                if minted is not None and key is not None:
                    await self._sql.add_key(connection, key, minted.secret_sha256)
                    await self._trail.write(connection, _note("key.create", key.key_id))
        except IntegrityError:
            return False
        return True


async def bootstrap(accounts: FirstAccounts, key_file: Path | None) -> None:
    """Make tenant `default` and an owner's key whose secret goes to this file (mode 0600); no file, no key."""
    if key_file is None:
        if await accounts.store(None):
            _log.warning("bootstrapped_without_key", tenant=DEFAULT_TENANT, hint="make a key with `penstock keys create`")
        return
    draft = key_file.with_name(f".{key_file.name}.draft")
    try:
        if await in_thread(draft.exists) or await accounts.is_empty():
            async with _alone(draft):
                await _settle(accounts, draft, key_file)
                if await accounts.is_empty():
                    await _first_key(accounts, draft, key_file)
    except OSError as error:
        raise FailedPrecondition(f"cannot write the first key to {key_file}: {error.strerror}; choose another file") from error


@asynccontextmanager
async def _alone(draft: Path) -> AsyncIterator[None]:
    lock = await opened_in_thread(lambda: _locked(draft.with_suffix(".lock")), os.close)
    try:
        yield
    finally:
        os.close(lock)


def _locked(file: Path) -> int:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


async def _first_key(accounts: FirstAccounts, draft: Path, key_file: Path) -> None:
    minted = mint_key()
    await in_thread(_write_draft, draft, minted.secret)
    if await accounts.store(minted):
        await in_thread(draft.replace, key_file)
        _log.info("bootstrapped", tenant=DEFAULT_TENANT, key_id=minted.key_id, file=os.fspath(key_file))
    else:
        await in_thread(draft.unlink)


async def _settle(accounts: FirstAccounts, draft: Path, key_file: Path) -> None:
    """What a process that died left behind: promote its draft if that key was stored."""
    try:
        secret = (await in_thread(draft.read_text)).strip()
    except FileNotFoundError:
        return
    if await accounts.has_key(secret):
        await in_thread(draft.replace, key_file)
    else:
        await in_thread(draft.unlink)


def _write_draft(draft: Path, secret: str) -> None:
    write_secret(draft, f"{secret}\n".encode())


def _note(action: str, subject: str) -> AuditNote:
    return AuditNote(ActorKind.NOBODY, "bootstrap", action, subject, DEFAULT_TENANT)
