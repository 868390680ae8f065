"""Tenants and users over the wire."""

from __future__ import annotations

import asyncio

import pytest
from penstock.registry.v1 import accounts_pb2

from registry.access.types import ScopeRequired
from registry.accounts.types import TenantExists, TenantUnknown, UserExists, UserUnknown
from runtime.errors import InvalidArgument
from tests.registry.accounts.rig import PASSWORD, Office, bearing
from tests.registry.harness import refusal


async def test_a_tenant_is_created_once(office: Office) -> None:
    accounts = await office.accounts()
    request = accounts_pb2.CreateTenantRequest(tenant="initech")
    outcomes = await asyncio.gather(*(accounts.CreateTenant(request) for _ in range(5)), return_exceptions=True)
    made = [outcome for outcome in outcomes if isinstance(outcome, accounts_pb2.CreateTenantResponse)]
    assert len(made) == 1
    assert isinstance(await refusal(accounts.CreateTenant(request)), TenantExists)
    assert await office.ground.actions() == [("tenant.create", "initech", "done")]


@pytest.mark.parametrize("name", ["", "Not/Valid", "-x", "x" * 64, "a\0b", "*"])
async def test_a_tenants_name_is_checked(sqlite_office: Office, name: str) -> None:
    call = (await sqlite_office.accounts()).CreateTenant(accounts_pb2.CreateTenantRequest(tenant=name))
    assert isinstance(await refusal(call), InvalidArgument)


async def test_tenants_are_seen_by_their_own(office: Office) -> None:
    owner = await office.key(role="owner")
    request = accounts_pb2.ListTenantsRequest()
    everybody = await (await office.accounts()).ListTenants(request)
    assert [tenant.tenant for tenant in everybody.tenants] == ["acme", "default", "globex"]
    own = await (await office.public()).ListTenants(request, metadata=bearing(owner.secret))
    assert [tenant.tenant for tenant in own.tenants] == ["acme"]


async def test_tenants_are_made_by_operators_alone(sqlite_office: Office) -> None:
    owner = await sqlite_office.key(role="owner")
    request = accounts_pb2.CreateTenantRequest(tenant="initech")
    call = (await sqlite_office.public()).CreateTenant(request, metadata=bearing(owner.secret))
    assert isinstance(await refusal(call), ScopeRequired)


async def test_users_are_made_and_listed(office: Office) -> None:
    bob, ann = await office.user("Bob", "auditor"), await office.user("ann@acme.org")
    other = await office.user("zoe", tenant="globex")
    assert (bob.name, bob.role, bob.tenant, bob.disabled, bob.last_login_at_ms) == ("bob", "auditor", "acme", False, 0)
    accounts = await office.accounts()
    assert list((await accounts.ListUsers(accounts_pb2.ListUsersRequest())).users) == [ann, bob, other]
    assert list((await accounts.ListUsers(accounts_pb2.ListUsersRequest(tenant="acme"))).users) == [ann, bob]
    assert "argon2" not in str(bob)


async def test_a_name_is_taken_in_the_whole_mesh(office: Office) -> None:
    await office.user("ann")
    assert isinstance(await refusal(office.user("ANN", tenant="globex")), UserExists)
    assert isinstance(await refusal(office.user("bob", tenant="nobody")), TenantUnknown)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "a b"},
        {"name": "x" * 129},
        {"name": "nul\0"},
        {"role": "root"},
        {"role": "operator"},
        {"password": "short"},
        {"password": "x" * 1025},
        {"password": "a" * 12},
        {"name": "ann-of-acme-inc", "password": "Ann-of-Acme-Inc"},
    ],
)
async def test_a_user_that_makes_no_sense_is_refused(sqlite_office: Office, fields: dict[str, str]) -> None:
    wanted = {"tenant": "acme", "name": "ann", "role": "caller", "password": PASSWORD, **fields}
    refused = await refusal((await sqlite_office.accounts()).CreateUser(accounts_pb2.CreateUserRequest(**wanted)))
    assert isinstance(refused, InvalidArgument)
    assert wanted["password"] not in refused.message
    assert await sqlite_office.ground.count("users") == 0


async def test_what_is_not_named_stays_as_it_is(office: Office) -> None:
    ann = await office.user()
    accounts = await office.accounts()
    disabled = (await accounts.UpdateUser(accounts_pb2.UpdateUserRequest(user_id=ann.user_id, disabled=True))).user
    assert (disabled.disabled, disabled.role) == (True, "owner")
    again = (await accounts.UpdateUser(accounts_pb2.UpdateUserRequest(user_id=ann.user_id, role="auditor"))).user
    assert (again.disabled, again.role) == (True, "auditor")
    enabled = (await accounts.UpdateUser(accounts_pb2.UpdateUserRequest(user_id=ann.user_id, disabled=False))).user
    assert not enabled.disabled
    await office.session()
    nothing = accounts_pb2.UpdateUserRequest(user_id=ann.user_id)
    assert isinstance(await refusal(accounts.UpdateUser(nothing)), InvalidArgument)


async def test_a_user_that_is_not_there_is_said_so(office: Office) -> None:
    for user_id in ("", "x", "0" * 16, "a\0b"):
        request = accounts_pb2.UpdateUserRequest(user_id=user_id, disabled=True)
        assert isinstance(await refusal((await office.accounts()).UpdateUser(request)), UserUnknown)


async def test_everybody_chooses_its_own_password_and_nothing_else(office: Office) -> None:
    ann, bob = await office.user(role="caller"), await office.user("bob", role="caller")
    token, public = await office.session(), await office.public()
    for request in (
        accounts_pb2.UpdateUserRequest(user_id=ann.user_id, role="owner"),
        accounts_pb2.UpdateUserRequest(user_id=ann.user_id, password="another long one", disabled=False),
        accounts_pb2.UpdateUserRequest(user_id=bob.user_id, password="another long one"),
    ):
        assert isinstance(await refusal(public.UpdateUser(request, metadata=bearing(token))), ScopeRequired)
    own = accounts_pb2.UpdateUserRequest(user_id=ann.user_id, password="another long one")
    await public.UpdateUser(own, metadata=bearing(token))
    await office.session(password="another long one")


async def test_owners_change_users_of_their_tenant(office: Office) -> None:
    await office.user()
    bob, zoe = await office.user("bob", role="caller"), await office.user("zoe", tenant="globex")
    token, public = await office.session(), await office.public()
    change = accounts_pb2.UpdateUserRequest(user_id=bob.user_id, role="publisher")
    assert (await public.UpdateUser(change, metadata=bearing(token))).user.role == "publisher"
    theirs = accounts_pb2.UpdateUserRequest(user_id=zoe.user_id, disabled=True)
    hidden = await refusal(public.UpdateUser(theirs, metadata=bearing(token)))
    assert isinstance(hidden, UserUnknown), "that there is one is nobody else's to know"
    nobodys = accounts_pb2.UpdateUserRequest(user_id="0" * 16, disabled=True)
    unknown = await refusal(public.UpdateUser(nobodys, metadata=bearing(token)))
    assert unknown.message == hidden.message.replace(zoe.user_id, "0" * 16)
