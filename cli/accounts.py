"""What `penstock users …` and `penstock tenants …` do, against the registry's accounts."""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.registry.v1 import accounts_pb2, accounts_pb2_grpc
from rich.text import Text

from cli.keys import shown_time
from cli.profile import Profile
from cli.tables import console, table
from runtime.errors import NotFound


@dataclass(frozen=True, slots=True)
class UserUpdate:
    """None: as it is."""

    role: str | None = None
    password: str | None = field(default=None, repr=False)
    disabled: bool | None = None


async def create_tenant(profile: Profile, name: str) -> None:
    async with profile.registry_channel() as registry:
        stub = accounts_pb2_grpc.AccountServiceStub(registry)
        tenant = (await stub.CreateTenant(accounts_pb2.CreateTenantRequest(tenant=name))).tenant
    _say(f"created tenant {tenant.tenant}")


async def show_tenants(profile: Profile) -> None:
    """A row per tenant."""
    async with profile.registry_channel() as registry:
        stub = accounts_pb2_grpc.AccountServiceStub(registry)
        tenants = (await stub.ListTenants(accounts_pb2.ListTenantsRequest())).tenants
    rows = table("tenant", "created")
    for tenant in tenants:
        rows.add_row(Text(tenant.tenant), Text(shown_time(tenant.created_at_ms)))
    console().print(rows if tenants else "there are no tenants")


async def create_user(profile: Profile, name: str, tenant: str, role: str, password: str) -> None:
    async with profile.registry_channel() as registry:
        stub = accounts_pb2_grpc.AccountServiceStub(registry)
        request = accounts_pb2.CreateUserRequest(tenant=tenant, name=name, role=role, password=password)
        user = (await stub.CreateUser(request)).user
    _say(f"created {user.name}, {user.role} of tenant {user.tenant}")


async def show_users(profile: Profile, tenant: str) -> None:
    """A row per user."""
    async with profile.registry_channel() as registry:
        users = await _users(accounts_pb2_grpc.AccountServiceStub(registry), tenant)
    rows = table("user", "tenant", "name", "role", "created", "last login", "state")
    for user in users:
        state = "disabled" if user.disabled else "active"
        times = (shown_time(user.created_at_ms), shown_time(user.last_login_at_ms))
        rows.add_row(*map(Text, (user.user_id, user.tenant, user.name, user.role, *times, state)))
    console().print(rows if users else "there are no users")


async def update_user(profile: Profile, name: str, update: UserUpdate) -> None:
    """Change somebody, by name. A new password, or being disabled, ends the sessions. Raises NotFound."""
    async with profile.registry_channel() as registry:
        stub = accounts_pb2_grpc.AccountServiceStub(registry)
        found = next((user for user in await _users(stub, "") if user.name == name.strip().lower()), None)
        if found is None:
            raise NotFound(f"nobody logs in as {name!r}; `penstock users list` shows who does")
        request = accounts_pb2.UpdateUserRequest(
            user_id=found.user_id, role=update.role, password=update.password, disabled=update.disabled
        )
        user = (await stub.UpdateUser(request)).user
    _say(f"{user.name} is {user.role} of tenant {user.tenant}{', disabled' if user.disabled else ''}")


async def _users(stub: accounts_pb2_grpc.AccountServiceStub, tenant: str) -> list[accounts_pb2.User]:
    return list((await stub.ListUsers(accounts_pb2.ListUsersRequest(tenant=tenant))).users)


def _say(sentence: str) -> None:
    console().print(Text(sentence), soft_wrap=True)
