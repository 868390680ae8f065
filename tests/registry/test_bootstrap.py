"""The first key: made once, told once, to one file."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
import structlog.testing

from registry.bootstrap import bootstrap
from registry.keys import secret_sha256
from registry.memory import MemoryAccountStore
from registry.types import ApiKey, KeyRole, Tenant
from runtime.errors import FailedPrecondition
from tests.registry.mesh import ManualClock


async def found(store: MemoryAccountStore, file: Path) -> ApiKey:
    secret = (await asyncio.to_thread(file.read_text)).strip()
    key = await store.key_by_secret(secret_sha256(secret))
    assert key is not None
    return key


async def test_an_empty_database_gets_a_tenant_and_an_admin_key(tmp_path: Path) -> None:
    store, file = MemoryAccountStore(), tmp_path / "made" / "admin.key"
    with structlog.testing.capture_logs() as lines:
        await bootstrap(store, file, ManualClock())
    key = await found(store, file)
    assert (key.tenant, key.role, key.allowed_models, key.expires_at_ms) == ("default", KeyRole.ADMIN, (), 0)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert names_in(file.parent) == ["admin.key"]
    assert lines
    assert file.read_text().strip() not in str(lines)


def names_in(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


async def test_a_restart_changes_nothing(tmp_path: Path) -> None:
    store, file = MemoryAccountStore(), tmp_path / "admin.key"
    await bootstrap(store, file, ManualClock())
    before, keys = file.read_bytes(), await store.keys(None)
    await bootstrap(store, file, ManualClock())
    assert (file.read_bytes(), await store.keys(None)) == (before, keys)
    file.unlink()
    await bootstrap(store, file, ManualClock())
    assert not file.exists(), "the secret was told once"
    assert await store.keys(None) == keys


async def test_without_a_file_there_is_a_tenant_and_no_key(tmp_path: Path) -> None:
    store = MemoryAccountStore()
    await bootstrap(store, None, ManualClock())
    assert not await store.is_empty()
    assert await store.keys(None) == ()


class DiesAfterStoring(MemoryAccountStore):
    async def add_first(self, tenant: Tenant, key: ApiKey | None, secret_sha256: bytes) -> bool:
        await super().add_first(tenant, key, secret_sha256)
        raise ConnectionAbortedError("died here")


class DiesBeforeStoring(MemoryAccountStore):
    async def add_first(self, tenant: Tenant, key: ApiKey | None, secret_sha256: bytes) -> bool:
        raise ConnectionAbortedError("died here")


async def test_dying_after_the_key_was_stored_loses_no_secret(tmp_path: Path) -> None:
    store, file = DiesAfterStoring(), tmp_path / "admin.key"
    with pytest.raises(FailedPrecondition):
        await bootstrap(store, file, ManualClock())
    assert not file.exists()
    await bootstrap(store, file, ManualClock())
    assert (await found(store, file)).role is KeyRole.ADMIN
    assert len(await store.keys(None)) == 1


async def test_dying_before_the_key_was_stored_starts_over(tmp_path: Path) -> None:
    file = tmp_path / "admin.key"
    with pytest.raises(FailedPrecondition):
        await bootstrap(DiesBeforeStoring(), file, ManualClock())
    store = MemoryAccountStore()
    await bootstrap(store, file, ManualClock())
    await found(store, file)
    assert names_in(tmp_path) == ["admin.key"]


async def test_the_loser_of_a_race_leaves_the_winners_file_alone(tmp_path: Path) -> None:
    class SomebodyElseWasFirst(MemoryAccountStore):
        async def add_first(self, tenant: Tenant, key: ApiKey | None, secret_sha256: bytes) -> bool:
            return False

    file = tmp_path / "admin.key"
    file.write_text("the winner's")
    await bootstrap(SomebodyElseWasFirst(), file, ManualClock())
    assert await asyncio.to_thread(file.read_text) == "the winner's"
    assert names_in(tmp_path) == ["admin.key"]


async def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition, match=r"admin\.key"):
        await bootstrap(MemoryAccountStore(), tmp_path / "file" / "admin.key", ManualClock())
