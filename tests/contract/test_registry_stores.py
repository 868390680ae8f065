"""What every model store and every account store has to do, whatever it is made of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from registry.database import open_database
from registry.memory import MemoryAccountStore, MemoryModelStore
from registry.ports import AccountStore, ModelExists, ModelStore, ModelUnknown, TenantExists, TenantUnknown, VersionExists
from registry.sql_accounts import SqlAccountStore
from registry.sql_models import SqlModelStore
from registry.types import ApiKey, KeyRole, Model, RateLimit, SignedBytes, StoredVersion, Tenant, VersionSummary
from runtime.ids import Digest, KeyId, ModelName, ModelVersion, NodeId, TenantId

ACME, OTHER = Tenant(TenantId("acme"), 1), Tenant(TenantId("other"), 2)
DIGITS = Model(ModelName("digits"), "reads digits", 3)


@pytest.fixture(params=["memory", "sqlite"])
async def models(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ModelStore]:
    if request.param == "memory":
        yield MemoryModelStore()
        return
    async with open_database(str(tmp_path / "registry.db")) as database:
        yield SqlModelStore(database)


@pytest.fixture(params=["memory", "sqlite"])
async def accounts(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AccountStore]:
    if request.param == "memory":
        yield MemoryAccountStore()
        return
    async with open_database(str(tmp_path / "registry.db")) as database:
        yield SqlAccountStore(database)


def version(number: str, model: str = "digits", digest: str = "") -> StoredVersion:
    summary = VersionSummary(
        ModelName(model),
        ModelVersion(number),
        Digest(digest or f"{model}-{number}"),
        "onnx",
        "tensor",
        2**40,
        1_700_000_000_000,
        NodeId("signer"),
    )
    return StoredVersion(summary, SignedBytes(b"manifest\0", b"signature", b"key"))


def key(key_id: str, tenant: Tenant = ACME, created_at_ms: int = 5) -> ApiKey:
    return ApiKey(
        KeyId(key_id),
        tenant.tenant,
        "name with ünicode",
        KeyRole.ADMIN,
        (ModelName("b"), ModelName("a")),
        RateLimit(0.1, 2**32 - 1),
        created_at_ms,
        expires_at_ms=2**45,
    )


async def test_a_model_is_kept_once(models: ModelStore) -> None:
    assert not await models.has_model(DIGITS.model)
    await models.add_model(DIGITS)
    assert await models.has_model(DIGITS.model)
    with pytest.raises(ModelExists):
        await models.add_model(replace(DIGITS, description="another"))
    (entry,) = await models.models()
    assert (entry.model, entry.versions) == (DIGITS, ())


async def test_versions_come_back_as_they_went_in(models: ModelStore) -> None:
    await models.add_model(DIGITS)
    await models.add_version(version("7"))
    assert await models.version(DIGITS.model, ModelVersion("7")) == version("7")
    assert await models.version_by_digest(version("7").summary.digest) == version("7")
    assert await models.version(DIGITS.model, ModelVersion("8")) is None
    assert await models.version(ModelName("other"), ModelVersion("")) is None
    assert await models.version_by_digest(Digest("unknown")) is None


async def test_numbers_are_ordered_as_numbers(models: ModelStore) -> None:
    await models.add_model(DIGITS)
    await models.add_model(replace(DIGITS, model=ModelName("a")))
    largest = "9" * 18
    for number in ("10", largest, "9"):
        await models.add_version(version(number))
    newest = await models.version(DIGITS.model, ModelVersion(""))
    assert newest is not None
    assert newest.summary.version == largest
    entries = await models.models()
    assert [entry.model.model for entry in entries] == ["a", "digits"]
    assert [summary.version for summary in entries[1].versions] == ["9", "10", largest]


async def test_a_version_needs_its_model_and_a_free_number_and_digest(models: ModelStore) -> None:
    with pytest.raises(ModelUnknown):
        await models.add_version(version("1"))
    await models.add_model(DIGITS)
    await models.add_version(version("1"))
    with pytest.raises(VersionExists):
        await models.add_version(version("1", digest="another"))
    with pytest.raises(VersionExists):
        await models.add_version(version("2", digest="digits-1"))
    assert await models.version(DIGITS.model, ModelVersion("")) == version("1")


async def test_of_concurrent_writers_one_is_kept(models: ModelStore) -> None:
    await models.add_model(DIGITS)
    results = await asyncio.gather(
        *[models.add_version(version("1", digest=f"digest {number}")) for number in range(8)], return_exceptions=True
    )
    assert results.count(None) == 1
    assert all(result is None or isinstance(result, VersionExists) for result in results)


async def test_a_tenant_is_kept_once(accounts: AccountStore) -> None:
    assert await accounts.is_empty()
    await accounts.add_tenant(ACME)
    assert not await accounts.is_empty()
    with pytest.raises(TenantExists):
        await accounts.add_tenant(ACME)


async def test_keys_come_back_as_they_went_in(accounts: AccountStore) -> None:
    await accounts.add_tenant(ACME)
    await accounts.add_key(key("k"), b"h" * 32)
    assert await accounts.key_by_secret(b"h" * 32) == key("k")
    assert await accounts.key_by_secret(b"i" * 32) is None
    with pytest.raises(TenantUnknown):
        await accounts.add_key(key("other", OTHER), b"j" * 32)
    assert await accounts.keys(None) == (key("k"),)


async def test_keys_are_listed_oldest_first(accounts: AccountStore) -> None:
    await accounts.add_tenant(ACME)
    await accounts.add_tenant(OTHER)
    made = [key("a", ACME, 9), key("c", OTHER, 3), key("b", ACME, 3)]
    for number, one in enumerate(made):
        await accounts.add_key(one, bytes([number]) * 32)
    assert await accounts.keys(None) == (made[2], made[1], made[0])
    assert await accounts.keys(ACME.tenant) == (made[2], made[0])
    assert await accounts.keys(TenantId("nobody")) == ()


async def test_revoking_keeps_the_first_time(accounts: AccountStore) -> None:
    await accounts.add_tenant(ACME)
    await accounts.add_key(key("k"), b"h" * 32)
    revoked = replace(key("k"), revoked_at_ms=77)
    assert await accounts.revoke_key(KeyId("k"), 77) == revoked
    assert await accounts.revoke_key(KeyId("k"), 99) == revoked
    assert await accounts.key_by_secret(b"h" * 32) == revoked
    assert await accounts.revoke_key(KeyId("unknown"), 77) is None


async def test_of_those_who_would_be_first_one_is(accounts: AccountStore) -> None:
    firsts = await asyncio.gather(*[accounts.add_first(ACME, key(f"k{number}"), bytes([number]) * 32) for number in range(6)])
    assert sorted(firsts) == [False] * 5 + [True]
    assert len(await accounts.keys(None)) == 1
    assert not await accounts.add_first(OTHER, None, b"")


async def test_the_first_may_be_a_tenant_alone(accounts: AccountStore) -> None:
    assert await accounts.add_first(ACME, None, b"")
    assert await accounts.keys(None) == ()
