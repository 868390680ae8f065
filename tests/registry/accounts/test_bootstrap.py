"""The first key: made once, told once, to one file; whatever dies when."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog.testing

from registry.access.tokens import MintedKey, token_sha256
from registry.access.types import AccountRole
from registry.accounts.bootstrap import FirstAccounts, bootstrap
from registry.accounts.sql import AccountSql
from registry.accounts.types import ApiKey
from registry.audit.trail import AuditTrail
from registry.schema import REGISTRY
from registry.seals import Seals
from runtime.database import Database, open_database
from runtime.errors import FailedPrecondition
from tests.registry.harness import MASTER_KEYS, ManualClock


@pytest.fixture
async def database(database_address: str) -> AsyncIterator[Database]:
    """Empty."""
    async with open_database(database_address, REGISTRY) as opened:
        yield opened


def first(database: Database, kind: type[FirstAccounts] = FirstAccounts) -> FirstAccounts:
    seals, clock = Seals(MASTER_KEYS), ManualClock()
    return kind(database, AccountSql(seals), AuditTrail(database, seals, clock), clock)


async def keys_in(database: Database) -> tuple[ApiKey, ...]:
    async with database.reading() as connection:
        return await AccountSql(Seals(MASTER_KEYS)).keys(connection, None)


async def found(database: Database, file: Path) -> ApiKey:
    secret = (await asyncio.to_thread(file.read_text)).strip()
    async with database.reading() as connection:
        key = await AccountSql(Seals(MASTER_KEYS)).key_by_secret(connection, token_sha256(secret))
    assert key is not None
    return key


def names_in(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if not entry.name.startswith("registry.db") and entry.suffix != ".lock"]


async def test_an_empty_database_gets_a_tenant_and_an_owners_key(tmp_path: Path, database: Database) -> None:
    file = tmp_path / "made" / "owner.key"
    with structlog.testing.capture_logs() as lines:
        await bootstrap(first(database), file)
    key = await found(database, file)
    assert (key.tenant, key.role, key.allowed_models, key.expires_at_ms) == ("default", AccountRole.OWNER, (), 0)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert names_in(file.parent) == ["owner.key"]
    assert lines
    assert file.read_text().strip() not in str(lines)


async def test_a_restart_changes_nothing(tmp_path: Path, database: Database) -> None:
    file = tmp_path / "owner.key"
    await bootstrap(first(database), file)
    before, keys = file.read_bytes(), await keys_in(database)
    await bootstrap(first(database), file)
    assert (file.read_bytes(), await keys_in(database)) == (before, keys)
    file.unlink()
    await bootstrap(first(database), file)
    assert not file.exists(), "the secret was told once"
    assert await keys_in(database) == keys


async def test_without_a_file_there_is_a_tenant_and_no_key(database: Database) -> None:
    await bootstrap(first(database), None)
    assert not await first(database).is_empty()
    assert await keys_in(database) == ()


class DiesAfterStoring(FirstAccounts):
    async def store(self, minted: MintedKey | None) -> bool:
        await super().store(minted)
        raise ConnectionAbortedError("died here")


class DiesBeforeStoring(FirstAccounts):
    async def store(self, minted: MintedKey | None) -> bool:
        raise ConnectionAbortedError("died here")


async def test_dying_after_the_key_was_stored_loses_no_secret(tmp_path: Path, database: Database) -> None:
    file = tmp_path / "owner.key"
    with pytest.raises(FailedPrecondition):
        await bootstrap(first(database, DiesAfterStoring), file)
    assert not file.exists()
    await bootstrap(first(database), file)
    assert (await found(database, file)).role is AccountRole.OWNER
    assert len(await keys_in(database)) == 1


async def test_dying_before_the_key_was_stored_starts_over(tmp_path: Path, database: Database) -> None:
    file = tmp_path / "owner.key"
    with pytest.raises(FailedPrecondition):
        await bootstrap(first(database, DiesBeforeStoring), file)
    await bootstrap(first(database), file)
    await found(database, file)
    assert names_in(tmp_path) == ["owner.key"]


@pytest.mark.parametrize("folders", [("one", "two"), ("shared", "shared")])
async def test_of_two_replicas_that_start_at_once_one_makes_the_key(
    tmp_path: Path, database: Database, folders: tuple[str, str]
) -> None:
    files = [tmp_path / folder / "owner.key" for folder in folders]
    await asyncio.gather(*(bootstrap(first(database), file) for file in files))
    assert len(await keys_in(database)) == 1
    (file,) = {file for file in files if file.exists()}
    await found(database, file)
    assert names_in(file.parent) == ["owner.key"]


async def test_a_replica_that_comes_in_between_leaves_the_others_draft_alone(tmp_path: Path, database: Database) -> None:
    """It wrote its own over it, and the file held a secret that opened nothing."""
    file, others = tmp_path / "owner.key", list[asyncio.Task[None]]()

    class Slow(FirstAccounts):
        async def store(self, minted: MintedKey | None) -> bool:
            others.append(asyncio.create_task(bootstrap(first(database), file)))
            await first(database).is_empty()  # the other one goes as far as it can
            await asyncio.wait(others, timeout=0.2)
            return await super().store(minted)

    await bootstrap(first(database, Slow), file)
    await asyncio.gather(*others)
    await found(database, file)
    assert len(await keys_in(database)) == 1


async def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, database: Database) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition, match=r"owner\.key"):
        await bootstrap(first(database), tmp_path / "file" / "owner.key")
    assert await first(database).is_empty()
