"""`penstock keys`, `users`, `tenants` and `audit` against a real registry: as functions, and as processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from penstock.registry.v1 import accounts_pb2

from cli.accounts import UserUpdate, create_tenant, create_user, show_tenants, show_users, update_user
from cli.audit import AuditQuestion, show_audit
from cli.keys import NewKey, create_key, key_state, revoke_key, rotate_key, show_keys
from cli.profile import Profile
from registry.access.tokens import token_sha256
from runtime.errors import NotFound
from tests.cli.commands import command
from tests.registry.accounts.rig import PASSWORD, Office


async def test_a_keys_life(office: Office, profile: Profile, capsys: pytest.CaptureFixture[str]) -> None:
    await create_key(profile, NewKey("app [red]", "initech", "caller", ("digits",), ("infer",), 5, 9, 3600))
    first = capsys.readouterr()
    secret = first.out.strip()
    assert "only time" in first.err
    assert secret not in first.err
    request = accounts_pb2.ResolveKeyRequest(secret_sha256=token_sha256(secret))
    key = (await (await office.accounts()).ResolveKey(request)).key
    assert (key.tenant, key.rate_limit.burst, list(key.scopes)) == ("initech", 9, ["infer"])
    await rotate_key(profile, key.key_id, 600)
    second = capsys.readouterr()
    assert second.out.strip() != secret
    assert f"key {key.key_id} works until" in second.err
    await revoke_key(profile, key.key_id)
    capsys.readouterr()
    await show_keys(profile, "initech")
    shown = capsys.readouterr().out
    assert "app [red]" in shown, "a name is shown as it is"
    assert "revoked" in shown
    assert secret not in shown


@pytest.mark.parametrize(
    ("key", "state"),
    [
        (accounts_pb2.ApiKey(), "live"),
        (accounts_pb2.ApiKey(expires_at_ms=3000), "until 1970-01-01 00:00"),
        (accounts_pb2.ApiKey(expires_at_ms=1000, rotated_to="b"), "expired 1970-01-01 00:00, rotated to b"),
        (accounts_pb2.ApiKey(expires_at_ms=1000, revoked_at_ms=60_000), "revoked 1970-01-01 00:01"),
    ],
)
def test_a_keys_state_in_words(key: accounts_pb2.ApiKey, state: str) -> None:
    assert key_state(key, now_ms=2000) == state


async def test_users_and_tenants(office: Office, profile: Profile, capsys: pytest.CaptureFixture[str]) -> None:
    await create_tenant(profile, "initech")
    await create_user(profile, "Ann", "initech", "auditor", PASSWORD)
    await update_user(profile, "ANN", UserUpdate(role="owner", disabled=True))
    assert "ann is owner of tenant initech, disabled" in capsys.readouterr().out
    await show_users(profile, "")
    await show_tenants(profile)
    shown = capsys.readouterr().out
    for text in ("initech", "ann", "owner", "disabled", "never"):
        assert text in shown
    with pytest.raises(NotFound, match="bob"):
        await update_user(profile, "bob", UserUpdate(disabled=True))


async def test_the_trail_is_shown_newest_first_over_several_pages(
    office: Office, profile: Profile, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.audit._PAGE", 2)
    for name in ("alpha", "beta", "gamma", "delta", "epsilon"):
        await create_tenant(profile, name)
    capsys.readouterr()
    await show_audit(profile, AuditQuestion(action="tenant.", limit=5))
    shown = capsys.readouterr().out
    places = [shown.index(name) for name in ("epsilon", "delta", "gamma", "beta", "alpha")]
    assert places == sorted(places)
    await show_audit(profile, AuditQuestion(subject="beta"))
    only = capsys.readouterr().out
    assert "beta" in only
    assert "gamma" not in only
    await show_audit(profile, AuditQuestion(tenant="nobody"))
    assert "no such entries" in capsys.readouterr().out


async def test_as_commands(office: Office, profile: Profile, tmp_path: Path) -> None:
    data = ("--data", str(tmp_path))
    created, listed = await asyncio.gather(
        command("accounts_commands", "users", "create", "ann", "--tenant", "acme", *data, stdin=f"{PASSWORD}\n"),
        command("keys_commands", "app", "create", "app", "--role", "owner", "--days", "1", *data),
    )
    assert created[0] == listed[0] == 0, (created, listed)
    assert await office.session() != "", "with the password that was piped in"
    outcomes = await asyncio.gather(
        command("accounts_commands", "users", "create", "bob", *data, stdin=""),
        command("accounts_commands", "users", "update", "ann", "--role", "root", *data),
        command("keys_commands", "app", "revoke", "nothing", *data),
        command("audit_commands", "audit", "--action", "key.", *data),
    )
    assert [status for status, _, _ in outcomes] == [2, 2, 1, 0], outcomes
    assert "stdin holds no password" in outcomes[0][2]
    assert "there is no key 'nothing'" in outcomes[2][2]
    assert "key.create" in outcomes[3][1]
