"""AccountService: tenants, users, sessions and keys, asked by whoever the door let in."""

from __future__ import annotations

import grpc.aio
from penstock.registry.v1 import accounts_pb2, accounts_pb2_grpc

from registry.access.credentials import bearer_of, caller_address, is_private
from registry.access.door import Context, Door
from registry.access.types import CredentialsRefused
from registry.accounts import codec
from registry.accounts.keys import Keys
from registry.accounts.last_use import LastUse
from registry.accounts.passwords import Passwords
from registry.accounts.sessions import Sessions
from registry.accounts.sql import AccountSql
from registry.accounts.tenants import Tenants
from registry.accounts.users import Users
from registry.audit.bounded import BoundedTrail
from registry.audit.trail import AuditTrail
from registry.limits.codec import limit_message
from registry.limits.on_keys import LimitsOnKeys
from runtime.clock import Clock
from runtime.database import Database
from runtime.ids import KeyId, TenantId, UserId

SERVICE = "penstock.registry.v1.AccountService"


class AccountServicer(accounts_pb2_grpc.AccountServiceServicer):
    def __init__(
        self,
        *,
        door: Door,
        database: Database,
        sql: AccountSql,
        limits: LimitsOnKeys,
        trail: AuditTrail,
        bounded: BoundedTrail,
        last_use: LastUse,
        clock: Clock,
        passwords: Passwords | None = None,
    ) -> None:
        passwords = passwords or Passwords()
        self._door = door
        self._tenants = Tenants(database, sql, trail, clock)
        self._users = Users(database, sql, trail, passwords, clock)
        self._sessions = Sessions(database, sql, trail, bounded, passwords, clock)
        self._keys = Keys(database, sql, limits, trail, last_use, clock)

    def register(self, server: grpc.aio.Server) -> None:
        accounts_pb2_grpc.add_AccountServiceServicer_to_server(self, server)

    async def CreateTenant(
        self, request: accounts_pb2.CreateTenantRequest, context: Context
    ) -> accounts_pb2.CreateTenantResponse:
        principal = await self._door.enter(context)
        tenant = await self._tenants.create(principal, TenantId(request.tenant))
        return accounts_pb2.CreateTenantResponse(tenant=codec.tenant_message(tenant))

    async def ListTenants(self, request: accounts_pb2.ListTenantsRequest, context: Context) -> accounts_pb2.ListTenantsResponse:
        principal = await self._door.enter(context)
        tenants = await self._tenants.all(principal)
        return accounts_pb2.ListTenantsResponse(tenants=[codec.tenant_message(tenant) for tenant in tenants])

    async def CreateUser(self, request: accounts_pb2.CreateUserRequest, context: Context) -> accounts_pb2.CreateUserResponse:
        principal = await self._door.enter(context)
        wish = codec.user_wish_of(request, principal.tenant_or(request.tenant))
        return accounts_pb2.CreateUserResponse(user=codec.user_message(await self._users.create(principal, wish)))

    async def ListUsers(self, request: accounts_pb2.ListUsersRequest, context: Context) -> accounts_pb2.ListUsersResponse:
        principal = await self._door.enter(context)
        users = await self._users.all(principal, codec.tenant_of(request.tenant))
        return accounts_pb2.ListUsersResponse(users=[codec.user_message(user) for user in users])

    async def UpdateUser(self, request: accounts_pb2.UpdateUserRequest, context: Context) -> accounts_pb2.UpdateUserResponse:
        principal = await self._door.enter(context)
        user = await self._users.change(principal, UserId(request.user_id), codec.change_of(request))
        return accounts_pb2.UpdateUserResponse(user=codec.user_message(user))

    async def LogIn(self, request: accounts_pb2.LogInRequest, context: Context) -> accounts_pb2.LogInResponse:
        """The one call that nobody has to enter for: who asks is about to say who it is."""
        if not is_private(context):
            raise CredentialsRefused("passwords are taken over TLS alone; anybody on the way could have read this one")
        session = await self._sessions.log_in(request.name, request.password, caller_address(context))
        return codec.session_message(session)

    async def LogOut(self, request: accounts_pb2.LogOutRequest, context: Context) -> accounts_pb2.LogOutResponse:
        principal = await self._door.enter(context)
        await self._sessions.log_out(principal, bearer_of(context))
        return accounts_pb2.LogOutResponse()

    async def WhoAmI(self, request: accounts_pb2.WhoAmIRequest, context: Context) -> accounts_pb2.WhoAmIResponse:
        return codec.caller_message(await self._door.enter(context))

    async def CreateKey(self, request: accounts_pb2.CreateKeyRequest, context: Context) -> accounts_pb2.CreateKeyResponse:
        principal = await self._door.enter(context)
        wish = codec.key_wish_of(request, principal.tenant_or(request.tenant))
        key, minted = await self._keys.create(principal, wish)
        return accounts_pb2.CreateKeyResponse(key=codec.key_message(key), secret=minted.secret)

    async def ListKeys(self, request: accounts_pb2.ListKeysRequest, context: Context) -> accounts_pb2.ListKeysResponse:
        principal = await self._door.enter(context)
        keys = await self._keys.all(principal, codec.tenant_of(request.tenant))
        return accounts_pb2.ListKeysResponse(keys=[codec.key_message(key) for key in keys])

    async def RotateKey(self, request: accounts_pb2.RotateKeyRequest, context: Context) -> accounts_pb2.RotateKeyResponse:
        principal = await self._door.enter(context)
        new, minted, old = await self._keys.rotate(principal, KeyId(request.key_id), request.overlap_s)
        return accounts_pb2.RotateKeyResponse(key=codec.key_message(new), secret=minted.secret, old_key=codec.key_message(old))

    async def RevokeKey(self, request: accounts_pb2.RevokeKeyRequest, context: Context) -> accounts_pb2.RevokeKeyResponse:
        principal = await self._door.enter(context)
        key = await self._keys.revoke(principal, KeyId(request.key_id))
        return accounts_pb2.RevokeKeyResponse(key=codec.key_message(key))

    async def ResolveKey(self, request: accounts_pb2.ResolveKeyRequest, context: Context) -> accounts_pb2.ResolveKeyResponse:
        principal = await self._door.enter(context)
        key, limits = await self._keys.resolve(principal, request.secret_sha256)
        return accounts_pb2.ResolveKeyResponse(key=codec.key_message(key), limits=[limit_message(limit) for limit in limits])
