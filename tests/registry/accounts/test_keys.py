"""Keys over the wire: shown once, resolved by hash, rotated, expired, revoked; each change told and written down."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from penstock.registry.v1 import accounts_pb2
from sqlalchemy import select

from registry.access.tokens import token_sha256
from registry.access.types import MoreThanOwn, OtherTenant, ScopeRequired
from registry.accounts.types import KeyEnded, KeyUnknown, TenantUnknown
from registry.schema import outbox
from registry.seals import RowAltered
from runtime.errors import InvalidArgument, PenstockError
from runtime.identity import Role
from tests.registry.accounts.rig import Office, bearing
from tests.registry.harness import Ground, refusal


def asking(secret: str) -> accounts_pb2.ResolveKeyRequest:
    return accounts_pb2.ResolveKeyRequest(secret_sha256=token_sha256(secret))


async def told(ground: Ground) -> list[tuple[str, str]]:
    async with ground.database.reading() as connection:
        rows = await connection.execute(select(outbox.c.kind, outbox.c.subject).order_by(outbox.c.notice))
        return [(row.kind, row.subject) for row in rows]


async def test_a_key_resolves_by_the_hash_of_its_secret(office: Office) -> None:
    limit = accounts_pb2.RateLimit(requests_per_s=2.5, burst=7)
    made = await office.key(allowed_models=["digits", "sums", "digits"], rate_limit=limit, scopes=["infer"])
    assert made.secret.startswith(f"sk-pn-{made.key.key_id}-")
    assert len(made.secret.rsplit("-", 1)[1]) == 64, "256 bits in hex"
    resolved = (await (await office.accounts(Role.GATEWAY)).ResolveKey(asking(made.secret))).key
    assert resolved == made.key
    assert (resolved.tenant, resolved.role, resolved.name, list(resolved.scopes)) == ("acme", "caller", "app", ["infer"])
    assert list(resolved.allowed_models) == ["digits", "sums"]
    assert resolved.rate_limit == limit
    assert resolved.created_at_ms == int(office.ground.clock.now_s * 1000)
    assert resolved.expires_at_ms == resolved.revoked_at_ms == 0


async def test_a_key_may_all_that_its_role_may_where_nothing_less_is_asked(sqlite_office: Office) -> None:
    assert list((await sqlite_office.key()).key.scopes) == ["infer", "models:read"]


async def test_a_rate_without_a_burst_gets_one(sqlite_office: Office) -> None:
    made = await sqlite_office.key(rate_limit=accounts_pb2.RateLimit(requests_per_s=2.5))
    assert made.key.rate_limit.burst == 3


async def test_no_secret_is_stored_anywhere(sqlite_office: Office) -> None:
    made = await sqlite_office.key()
    stored = b"".join(file.read_bytes() for file in Path(sqlite_office.ground.address).parent.glob("registry.db*"))
    assert made.key.key_id.encode() in stored
    assert made.secret.rsplit("-", 1)[1].encode() not in stored


async def test_every_change_is_told_and_written_down(office: Office) -> None:
    made = await office.key()
    accounts = await office.accounts()
    rotated = await accounts.RotateKey(accounts_pb2.RotateKeyRequest(key_id=made.key.key_id, overlap_s=60))
    await accounts.RevokeKey(accounts_pb2.RevokeKeyRequest(key_id=made.key.key_id))
    first, second = made.key.key_id, rotated.key.key_id
    assert await told(office.ground) == [("key", first), ("key", second), ("key", first), ("key", first)]
    assert await office.ground.actions() == [
        ("key.create", first, "done"),
        ("key.rotate", first, "done"),
        ("key.revoke", first, "done"),
    ]


async def test_a_revoked_key_resolves_no_more_and_keeps_the_time(office: Office) -> None:
    made = await office.key()
    accounts = await office.accounts()
    ask = accounts_pb2.RevokeKeyRequest(key_id=made.key.key_id)
    first = (await accounts.RevokeKey(ask)).key
    assert first.revoked_at_ms == int(office.ground.clock.now_s * 1000)
    office.ground.clock.now_s += 60
    assert (await accounts.RevokeKey(ask)).key == first
    assert isinstance(await refusal(accounts.ResolveKey(asking(made.secret))), KeyUnknown)
    (listed,) = (await accounts.ListKeys(accounts_pb2.ListKeysRequest(tenant="acme"))).keys
    assert listed == first, "it is still listed, as revoked"


async def test_an_expired_key_resolves_no_more(office: Office) -> None:
    made = await office.key(lifetime_s=60)
    accounts = await office.accounts()
    assert made.key.expires_at_ms == made.key.created_at_ms + 60_000
    office.ground.clock.now_s += 59.9
    await accounts.ResolveKey(asking(made.secret))
    office.ground.clock.now_s += 0.1
    assert isinstance(await refusal(accounts.ResolveKey(asking(made.secret))), KeyUnknown)


async def test_a_rotated_key_works_until_the_overlap_ends(office: Office) -> None:
    limit = accounts_pb2.RateLimit(requests_per_s=2, burst=3)
    made = await office.key(lifetime_s=86_400, allowed_models=["digits"], rate_limit=limit, scopes=["infer"])
    office.ground.clock.now_s += 3600
    accounts = await office.accounts()
    turned = await accounts.RotateKey(accounts_pb2.RotateKeyRequest(key_id=made.key.key_id, overlap_s=600))
    now_ms = int(office.ground.clock.now_s * 1000)
    assert turned.old_key.rotated_to == turned.key.key_id != made.key.key_id
    assert turned.old_key.expires_at_ms == now_ms + 600_000
    assert turned.key.expires_at_ms == now_ms + 86_400_000, "as long as the first one had"
    same = accounts_pb2.ApiKey(name="app", tenant="acme", role="caller", allowed_models=["digits"], scopes=["infer"])
    same.rate_limit.CopyFrom(limit)
    for key in (turned.key, turned.old_key):
        kept = accounts_pb2.ApiKey()
        kept.CopyFrom(key)
        for name in ("key_id", "created_at_ms", "expires_at_ms", "rotated_to"):
            kept.ClearField(name)
        assert kept == same
    office.ground.clock.now_s += 599.9
    for secret in (made.secret, turned.secret):
        await accounts.ResolveKey(asking(secret))
    office.ground.clock.now_s += 0.1
    assert isinstance(await refusal(accounts.ResolveKey(asking(made.secret))), KeyUnknown)
    await accounts.ResolveKey(asking(turned.secret))


async def test_without_an_overlap_the_old_key_ends_now(sqlite_office: Office) -> None:
    made = await sqlite_office.key()
    accounts = await sqlite_office.accounts()
    await accounts.RotateKey(accounts_pb2.RotateKeyRequest(key_id=made.key.key_id))
    assert isinstance(await refusal(accounts.ResolveKey(asking(made.secret))), KeyUnknown)


async def test_of_many_rotations_at_once_one_wins(office: Office) -> None:
    made = await office.key()
    accounts = await office.accounts()
    request = accounts_pb2.RotateKeyRequest(key_id=made.key.key_id, overlap_s=60)

    async def rotate() -> PenstockError | None:
        try:
            await accounts.RotateKey(request)
        except Exception as error:
            return await refusal(_raising(error))
        return None

    outcomes = await asyncio.gather(*(rotate() for _ in range(8)))
    assert [type(error) for error in outcomes if error] == [KeyEnded] * 7
    assert len((await accounts.ListKeys(accounts_pb2.ListKeysRequest())).keys) == 2


async def _raising(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("overlap_s", [91 * 86_400, 2**63])
async def test_an_overlap_is_bounded(sqlite_office: Office, overlap_s: int) -> None:
    made = await sqlite_office.key()
    request = accounts_pb2.RotateKeyRequest(key_id=made.key.key_id, overlap_s=overlap_s)
    assert isinstance(await refusal((await sqlite_office.accounts()).RotateKey(request)), InvalidArgument)


async def test_a_key_that_is_not_there_is_said_so(office: Office) -> None:
    accounts = await office.accounts()
    for key_id in ("", "x", "0" * 16, "a\0b", "../../etc", "'; --"):
        assert isinstance(await refusal(accounts.RevokeKey(accounts_pb2.RevokeKeyRequest(key_id=key_id))), KeyUnknown)
        assert isinstance(await refusal(accounts.RotateKey(accounts_pb2.RotateKeyRequest(key_id=key_id))), KeyUnknown)


async def test_an_unknown_hash_resolves_to_nothing(sqlite_office: Office) -> None:
    accounts = await sqlite_office.accounts()
    assert isinstance(await refusal(accounts.ResolveKey(asking("sk-pn-made-up"))), KeyUnknown)
    short = accounts_pb2.ResolveKeyRequest(secret_sha256=b"short")
    assert isinstance(await refusal(accounts.ResolveKey(short)), InvalidArgument)


async def test_keys_are_listed_by_tenant_oldest_first(office: Office) -> None:
    expected = []
    for tenant in ("acme", "globex", "acme"):
        office.ground.clock.now_s += 1
        expected.append((await office.key(tenant=tenant)).key)
    accounts = await office.accounts()
    assert list((await accounts.ListKeys(accounts_pb2.ListKeysRequest())).keys) == expected
    one = await accounts.ListKeys(accounts_pb2.ListKeysRequest(tenant="acme"))
    assert list(one.keys) == [expected[0], expected[2]]


@pytest.mark.parametrize(
    "fields",
    [
        {"role": "root"},
        {"role": "admin"},
        {"role": ""},
        {"tenant": "Not/Valid"},
        {"name": "x" * 129},
        {"name": "line\nbreak"},
        {"name": "nul\0"},
        {"allowed_models": ["a/b"]},
        {"allowed_models": ["m"] * 1001},
        {"rate_limit": accounts_pb2.RateLimit(requests_per_s=-1)},
        {"rate_limit": accounts_pb2.RateLimit(requests_per_s=float("nan"))},
        {"rate_limit": accounts_pb2.RateLimit(burst=5)},
        {"lifetime_s": 2**63},
        {"scopes": ["no:such"]},
        {"scopes": ["accounts:write"]},
        {"role": "owner", "scopes": ["tenants:write"]},
    ],
)
async def test_a_key_that_makes_no_sense_is_refused(sqlite_office: Office, fields: dict[str, object]) -> None:
    assert isinstance(await refusal(sqlite_office.key(**fields)), InvalidArgument)
    assert await sqlite_office.ground.count("keys") == 0


async def test_a_key_needs_a_tenant_that_is_there(sqlite_office: Office) -> None:
    assert isinstance(await refusal(sqlite_office.key(tenant="nobody")), TenantUnknown)


async def test_an_owners_key_makes_keys_of_its_own_tenant_alone(office: Office) -> None:
    owner = await office.key(role="owner")
    public = await office.public()
    made = await public.CreateKey(accounts_pb2.CreateKeyRequest(name="x", role="publisher"), metadata=bearing(owner.secret))
    assert made.key.tenant == "acme", "the caller's, where none is named"
    other = accounts_pb2.CreateKeyRequest(tenant="globex", name="x", role="caller")
    assert isinstance(await refusal(public.CreateKey(other, metadata=bearing(owner.secret))), OtherTenant)
    theirs = (await office.key(tenant="globex")).key.key_id
    for call in (
        public.RevokeKey(accounts_pb2.RevokeKeyRequest(key_id=theirs), metadata=bearing(owner.secret)),
        public.RotateKey(accounts_pb2.RotateKeyRequest(key_id=theirs), metadata=bearing(owner.secret)),
    ):
        assert isinstance(await refusal(call), KeyUnknown), "that there is one is nobody else's to know"
    listed = await public.ListKeys(accounts_pb2.ListKeysRequest(), metadata=bearing(owner.secret))
    assert {key.tenant for key in listed.keys} == {"acme"}


async def test_nobody_hands_out_more_than_it_has(sqlite_office: Office) -> None:
    limited = await sqlite_office.key(role="owner", scopes=["accounts:write", "accounts:read"], allowed_models=["digits"])
    public = await sqlite_office.public()
    whole = (await sqlite_office.key(role="owner")).key.key_id
    models = (await sqlite_office.key(role="owner", scopes=["accounts:read"], allowed_models=["sums"])).key.key_id
    for request in (
        accounts_pb2.CreateKeyRequest(name="x", role="owner", allowed_models=["digits"]),
        accounts_pb2.CreateKeyRequest(name="x", role="caller", allowed_models=["digits"]),
        accounts_pb2.CreateKeyRequest(name="x", role="owner", scopes=["accounts:read"]),
        accounts_pb2.CreateKeyRequest(name="x", role="owner", scopes=["accounts:read"], allowed_models=["sums"]),
    ):
        assert isinstance(await refusal(public.CreateKey(request, metadata=bearing(limited.secret))), MoreThanOwn)
    for key_id in (whole, models):
        rotate = accounts_pb2.RotateKeyRequest(key_id=key_id)
        assert isinstance(await refusal(public.RotateKey(rotate, metadata=bearing(limited.secret))), MoreThanOwn)
    user = accounts_pb2.CreateUserRequest(name="x", role="auditor", password="long enough for all")
    assert isinstance(await refusal(public.CreateUser(user, metadata=bearing(limited.secret))), MoreThanOwn)
    fine = accounts_pb2.CreateKeyRequest(name="x", role="owner", scopes=["accounts:read"], allowed_models=["digits"])
    await public.CreateKey(fine, metadata=bearing(limited.secret))


@pytest.mark.parametrize("role", [role for role in Role if role not in (Role.OPERATOR, Role.ENVOY)])
async def test_of_nodes_only_operators_change_accounts(sqlite_office: Office, role: Role) -> None:
    stub = await sqlite_office.accounts(role)
    for call in (
        stub.CreateTenant(accounts_pb2.CreateTenantRequest(tenant="x")),
        stub.CreateKey(accounts_pb2.CreateKeyRequest(tenant="acme", role="owner")),
        stub.ListKeys(accounts_pb2.ListKeysRequest()),
        stub.RevokeKey(accounts_pb2.RevokeKeyRequest(key_id="x")),
        stub.CreateUser(accounts_pb2.CreateUserRequest(role="owner")),
        stub.ListUsers(accounts_pb2.ListUsersRequest()),
        stub.UpdateUser(accounts_pb2.UpdateUserRequest(user_id="0" * 16, disabled=True)),
    ):
        assert isinstance(await refusal(call), ScopeRequired)


@pytest.mark.parametrize("role", [Role.WORKER, Role.SCHEDULER, Role.REGISTRY])
async def test_of_nodes_only_gateways_resolve_keys(sqlite_office: Office, role: Role) -> None:
    assert isinstance(await refusal((await sqlite_office.accounts(role)).ResolveKey(asking("x"))), ScopeRequired)


@pytest.mark.parametrize(
    "change",
    ["role = 'owner'", "tenant = 'globex'", "expires_at_ms = 0", "allowed_models = '[]'", "scopes = '[\"accounts:write\"]'"],
)
async def test_a_key_that_was_edited_in_the_database_opens_nothing(office: Office, change: str) -> None:
    made = await office.key(lifetime_s=60, allowed_models=["digits"])
    await office.ground.execute(f"UPDATE keys SET {change}")
    calls = (
        (await office.accounts(Role.GATEWAY)).ResolveKey(asking(made.secret)),
        (await office.public()).WhoAmI(accounts_pb2.WhoAmIRequest(), metadata=bearing(made.secret)),
        (await office.accounts()).RotateKey(accounts_pb2.RotateKeyRequest(key_id=made.key.key_id)),
        (await office.accounts()).ListKeys(accounts_pb2.ListKeysRequest()),
    )
    for call in calls:
        assert isinstance(await refusal(call), RowAltered)
    assert (await office.ground.actions())[1:] == [("tampering", f"row {made.key.key_id} of keys", "failed")] * len(calls)
