"""Keys over the wire: shown once, resolved by hash, expired, revoked, watched."""

from __future__ import annotations

from pathlib import Path

import grpc.aio
import pytest
from penstock.registry.v1 import accounts_pb2

from registry.accounts import KeyUnknown
from registry.changes import WatchesFull
from registry.keys import secret_sha256
from registry.ports import TenantExists, TenantUnknown
from runtime.errors import InvalidArgument
from runtime.identity import NodeIdentity, Role
from runtime.serving import RoleRequired
from tests.registry.mesh import Mesh, refusal, running_mesh, until


@pytest.fixture
async def acme(mesh: Mesh) -> Mesh:
    await mesh.accounts().CreateTenant(accounts_pb2.CreateTenantRequest(tenant="acme"))
    return mesh


async def make_key(mesh: Mesh, **fields: object) -> accounts_pb2.CreateKeyResponse:
    request = accounts_pb2.CreateKeyRequest(**{"tenant": "acme", "name": "app", "role": "caller", **fields})  # type: ignore[arg-type]
    return await mesh.accounts().CreateKey(request)


def asking(secret: str) -> accounts_pb2.ResolveKeyRequest:
    return accounts_pb2.ResolveKeyRequest(secret_sha256=secret_sha256(secret))


async def test_a_key_resolves_by_the_hash_of_its_secret(acme: Mesh) -> None:
    limit = accounts_pb2.RateLimit(requests_per_s=2.5, burst=7)
    made = await make_key(acme, allowed_models=["digits", "sums", "digits"], rate_limit=limit)
    assert made.secret.startswith(f"sk-pn-{made.key.key_id}-")
    assert len(made.secret.rsplit("-", 1)[1]) == 64, "256 bits in hex"
    resolved = (await acme.accounts(Role.GATEWAY).ResolveKey(asking(made.secret))).key
    assert resolved == made.key
    assert (resolved.tenant, resolved.role, resolved.name) == ("acme", "caller", "app")
    assert list(resolved.allowed_models) == ["digits", "sums"]
    assert resolved.rate_limit == limit
    assert resolved.created_at_ms == int(acme.clock.now_s * 1000)
    assert resolved.expires_at_ms == resolved.revoked_at_ms == 0


async def test_a_rate_without_a_burst_gets_one(acme: Mesh) -> None:
    made = await make_key(acme, rate_limit=accounts_pb2.RateLimit(requests_per_s=2.5))
    assert made.key.rate_limit.burst == 3


async def test_no_secret_is_stored_anywhere(acme: Mesh) -> None:
    made = await make_key(acme)
    listed = await acme.accounts().ListKeys(accounts_pb2.ListKeysRequest())
    assert made.secret not in str(listed)
    stored = b"".join(file.read_bytes() for file in acme.folder.glob("registry.db*"))
    assert made.key.key_id.encode() in stored
    assert made.secret.rsplit("-", 1)[1].encode() not in stored
    assert made.secret.encode() not in stored


async def test_no_two_keys_share_an_id_or_a_secret(acme: Mesh) -> None:
    made = [await make_key(acme) for _ in range(20)]
    assert len({key.secret for key in made}) == len({key.key.key_id for key in made}) == 20


async def test_a_revoked_key_resolves_no_more_and_keeps_the_time(acme: Mesh) -> None:
    made = await make_key(acme)
    ask = accounts_pb2.RevokeKeyRequest(key_id=made.key.key_id)
    first = (await acme.accounts().RevokeKey(ask)).key
    assert first.revoked_at_ms == int(acme.clock.now_s * 1000)
    acme.clock.now_s += 60
    assert (await acme.accounts().RevokeKey(ask)).key == first
    assert isinstance(await refusal(acme.accounts(Role.GATEWAY).ResolveKey(asking(made.secret))), KeyUnknown)
    (listed,) = (await acme.accounts().ListKeys(accounts_pb2.ListKeysRequest(tenant="acme"))).keys
    assert listed == first, "it is still listed, as revoked"


async def test_an_expired_key_resolves_no_more(acme: Mesh) -> None:
    made = await make_key(acme, lifetime_s=60)
    assert made.key.expires_at_ms == made.key.created_at_ms + 60_000
    acme.clock.now_s += 59.9
    await acme.accounts().ResolveKey(asking(made.secret))
    acme.clock.now_s += 0.1
    assert isinstance(await refusal(acme.accounts().ResolveKey(asking(made.secret))), KeyUnknown)


async def test_an_unknown_hash_resolves_to_nothing(mesh: Mesh) -> None:
    assert isinstance(await refusal(mesh.accounts().ResolveKey(asking("sk-pn-made-up"))), KeyUnknown)
    short = accounts_pb2.ResolveKeyRequest(secret_sha256=b"short")
    assert isinstance(await refusal(mesh.accounts().ResolveKey(short)), InvalidArgument)


async def test_revoking_what_is_not_there_is_said_so(mesh: Mesh) -> None:
    assert isinstance(await refusal(mesh.accounts().RevokeKey(accounts_pb2.RevokeKeyRequest(key_id="x"))), KeyUnknown)


async def test_a_tenant_is_created_once_and_keys_need_one(acme: Mesh) -> None:
    again = accounts_pb2.CreateTenantRequest(tenant="acme")
    assert isinstance(await refusal(acme.accounts().CreateTenant(again)), TenantExists)
    assert isinstance(await refusal(make_key(acme, tenant="nobody")), TenantUnknown)


async def test_keys_are_listed_by_tenant_oldest_first(acme: Mesh) -> None:
    await acme.accounts().CreateTenant(accounts_pb2.CreateTenantRequest(tenant="other"))
    expected = []
    for tenant in ("acme", "other", "acme"):
        acme.clock.now_s += 1
        expected.append((await make_key(acme, tenant=tenant)).key)
    everyone = await acme.accounts().ListKeys(accounts_pb2.ListKeysRequest())
    assert list(everyone.keys) == expected
    one = await acme.accounts().ListKeys(accounts_pb2.ListKeysRequest(tenant="acme"))
    assert list(one.keys) == [expected[0], expected[2]]


@pytest.mark.parametrize(
    "fields",
    [
        {"role": "root"},
        {"role": ""},
        {"tenant": ""},
        {"tenant": "Not/Valid"},
        {"name": "x" * 129},
        {"name": "line\nbreak"},
        {"allowed_models": ["a/b"]},
        {"rate_limit": accounts_pb2.RateLimit(requests_per_s=-1)},
        {"rate_limit": accounts_pb2.RateLimit(requests_per_s=float("nan"))},
        {"rate_limit": accounts_pb2.RateLimit(burst=5)},
        {"lifetime_s": 2**63},
    ],
)
async def test_a_key_that_makes_no_sense_is_refused(acme: Mesh, fields: dict[str, object]) -> None:
    assert isinstance(await refusal(make_key(acme, **fields)), InvalidArgument)


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.OPERATOR])
async def test_only_operators_change_accounts(mesh: Mesh, role: Role) -> None:
    stub = mesh.accounts(role)
    for call in (
        stub.CreateTenant(accounts_pb2.CreateTenantRequest(tenant="x")),
        stub.CreateKey(accounts_pb2.CreateKeyRequest(tenant="x", role="admin")),
        stub.ListKeys(accounts_pb2.ListKeysRequest()),
        stub.RevokeKey(accounts_pb2.RevokeKeyRequest(key_id="x")),
    ):
        assert isinstance(await refusal(call), RoleRequired)


@pytest.mark.parametrize("role", [Role.WORKER, Role.SCHEDULER, Role.ENVOY, Role.REGISTRY])
async def test_keys_are_resolved_and_watched_by_gateways_only(mesh: Mesh, role: Role) -> None:
    assert isinstance(await refusal(mesh.accounts(role).ResolveKey(asking("x"))), RoleRequired)
    assert isinstance(await refusal(watched(mesh, role)), RoleRequired)


async def watched(mesh: Mesh, role: Role = Role.GATEWAY) -> list[str]:
    call = mesh.accounts(role).WatchKeys(accounts_pb2.WatchKeysRequest())
    return [key_id async for message in call for key_id in message.key_ids]


async def test_watchers_are_told_of_every_change(acme: Mesh) -> None:
    calls = [acme.accounts(Role.GATEWAY).WatchKeys(accounts_pb2.WatchKeysRequest()) for _ in range(2)]
    for call in calls:
        assert await call.read() == accounts_pb2.WatchKeysResponse(), "the first message says that the watch stands"
    made = await make_key(acme)
    for call in calls:
        assert await call.read() == accounts_pb2.WatchKeysResponse(key_ids=[made.key.key_id])
    await acme.accounts().RevokeKey(accounts_pb2.RevokeKeyRequest(key_id=made.key.key_id))
    for call in calls:
        assert await call.read() == accounts_pb2.WatchKeysResponse(key_ids=[made.key.key_id])
        call.cancel()


async def test_watchers_are_bounded_and_a_place_comes_free(tmp_path: Path, identities: dict[Role, NodeIdentity]) -> None:
    async with running_mesh(tmp_path, identities, watches=1) as mesh:
        call = mesh.accounts(Role.GATEWAY).WatchKeys(accounts_pb2.WatchKeysRequest())
        await call.read()
        refused = await refusal(watched(mesh))
        assert isinstance(refused, WatchesFull)
        assert refused.retry_after_s
        call.cancel()
        await until(lambda: stands(mesh))


async def stands(mesh: Mesh) -> bool:
    call = mesh.accounts(Role.GATEWAY).WatchKeys(accounts_pb2.WatchKeysRequest())
    try:
        await call.read()
    except grpc.aio.AioRpcError:
        return False
    call.cancel()
    return True


async def test_a_stopping_registry_ends_its_watches(tmp_path: Path, identities: dict[Role, NodeIdentity]) -> None:
    async with running_mesh(tmp_path, identities) as mesh:
        call = mesh.accounts(Role.GATEWAY).WatchKeys(accounts_pb2.WatchKeysRequest())
        await call.read()
        mesh.changes.close()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call.read()
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
