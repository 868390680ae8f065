"""The people who administer a tenant: made, listed, changed. Nobody makes or changes one who may more than itself."""

from __future__ import annotations

import secrets
from typing import Any

from sqlalchemy.exc import IntegrityError

from registry.access.policy import ACCOUNT_SCOPES, require_as_much
from registry.access.types import AccountRole, ActorKind, OtherTenant, Principal, Scope
from registry.accounts.passwords import Passwords
from registry.accounts.policy import MAX_USERS, is_user_id, password_faults, tenant_faults, user_faults
from registry.accounts.sql import AccountSql
from registry.accounts.types import (
    AccountsFull,
    TenantUnknown,
    User,
    UserChange,
    UserExists,
    UserUnknown,
    UserWish,
)
from registry.audit.trail import AuditTrail
from registry.audit.types import note_of
from runtime.clock import Clock
from runtime.database import Database
from runtime.errors import InvalidArgument
from runtime.ids import TenantId, UserId


class Users:
    def __init__(self, database: Database, sql: AccountSql, trail: AuditTrail, passwords: Passwords, clock: Clock) -> None:
        self._database, self._sql, self._trail, self._passwords, self._clock = database, sql, trail, passwords, clock

    async def create(self, principal: Principal, wish: UserWish) -> User:
        """Raises UserExists, TenantUnknown, MoreThanOwn, AccountsFull."""
        principal.require(Scope.ACCOUNTS_WRITE, wish.tenant)
        if faults := user_faults(wish):
            raise InvalidArgument("; ".join(faults))
        require_as_much(principal, ACCOUNT_SCOPES[wish.role])
        password_hash = await self._passwords.hash(wish.password)
        user = User(UserId(secrets.token_hex(8)), wish.tenant, wish.name, wish.role, self._now_ms())
        try:
            async with self._database.writing() as connection:
                if await self._sql.tenant(connection, wish.tenant) is None:
                    raise TenantUnknown(f"there is no tenant {wish.tenant}; create it first")
                if await self._sql.count_users(connection, wish.tenant) >= MAX_USERS:
                    raise AccountsFull(f"tenant {wish.tenant} has {MAX_USERS} users, which is the most it may have")
                await self._sql.add_user(connection, user, password_hash)
                note = note_of(principal, "user.create", user.user_id, tenant=user.tenant, detail=_told(user.name, user.role))
                await self._trail.write(connection, note)
        except IntegrityError as error:
            raise UserExists(f"somebody logs in as {wish.name} already; choose another name") from error
        return user

    async def all(self, principal: Principal, wanted: TenantId | None) -> tuple[User, ...]:
        """Those of a tenant, or all that the caller may see."""
        principal.require(Scope.ACCOUNTS_READ, wanted)
        if wanted and (faults := tenant_faults(wanted)):
            raise InvalidArgument("; ".join(faults))
        async with self._database.reading() as connection:
            return await self._sql.users(connection, wanted or principal.tenant)

    async def change(self, principal: Principal, user_id: UserId, change: UserChange) -> User:
        """A new password, or being disabled, ends the user's sessions. Raises UserUnknown, MoreThanOwn."""
        if not is_user_id(user_id):
            raise _unknown(user_id)
        async with self._database.reading() as connection:
            self._check(principal, await self._sql.user(connection, user_id), user_id, change)
        password_hash = None if change.password is None else await self._passwords.hash(change.password)
        async with self._database.writing() as connection:
            locked = await self._sql.locked_user(connection, user_id)
            user = self._check(principal, locked[0] if locked else None, user_id, change)  # it may be another by now
            changed = await self._sql.change_user(connection, user_id, self._changes(user, change, password_hash))
            if change.password is not None or change.disabled:
                await self._sql.end_sessions(connection, user_id)
            note = note_of(principal, "user.update", user_id, tenant=user.tenant, detail=_changed(change))
            await self._trail.write(connection, note)
        return changed

    def _check(self, principal: Principal, user: User | None, user_id: UserId, change: UserChange) -> User:
        """Whether the caller may. Everybody may choose a new password for itself; another tenant's users are not there."""
        if user is None:
            principal.require(Scope.ACCOUNTS_WRITE)
            raise _unknown(user_id)
        own = principal.kind is ActorKind.USER and principal.actor_id == user_id
        if not (own and change.role is None and change.disabled is None):
            try:
                principal.require(Scope.ACCOUNTS_WRITE, user.tenant)
            except OtherTenant as error:
                raise _unknown(user_id) from error
            require_as_much(principal, ACCOUNT_SCOPES[user.role] | ACCOUNT_SCOPES[change.role or user.role])
        if change.password is not None and (faults := password_faults(change.password, user.name)):
            raise InvalidArgument("; ".join(faults))
        return user

    def _changes(self, user: User, change: UserChange, password_hash: str | None) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if change.role is not None:
            changes["role"] = change.role.value
        if password_hash is not None:
            changes["password_hash"] = password_hash
        if change.disabled is not None:
            changes["disabled_at_ms"] = (user.disabled_at_ms or self._now_ms()) if change.disabled else 0
        return changes

    def _now_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)


def _unknown(user_id: UserId) -> UserUnknown:
    return UserUnknown(f"there is no user {user_id[:40]!r}; list the users to see their ids")


def _told(name: str, role: AccountRole) -> str:
    return f"{name} as {role.value}"


def _changed(change: UserChange) -> str:
    parts = [f"role {change.role.value}"] if change.role else []
    parts += ["a new password"] if change.password is not None else []
    parts += [] if change.disabled is None else ["disabled" if change.disabled else "enabled"]
    return ", ".join(parts)
