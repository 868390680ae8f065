"""Whose a session or a key is, in SQL. The one file with SQL of this room; rows are read with their seals checked."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from registry.access.policy import ACCOUNT_SCOPES, is_live, scopes_of_key
from registry.access.types import AccountRole, ActorKind, Principal
from registry.schema import keys, sessions, users
from registry.seals import Seals, select_checked
from runtime.database import Database
from runtime.ids import ModelName, TenantId


class Bearers:
    """Who bears a token, by the token's hash. Asked anew for each call: what has ended counts no more from that moment."""

    def __init__(self, database: Database, seals: Seals) -> None:
        self._database, self._seals = database, seals

    async def of_session(self, token_sha256: bytes, now_ms: int) -> Principal | None:
        """Raises RowAltered."""
        async with self._database.reading() as connection:
            session = await select_checked(connection, self._seals, sessions, sessions.c.session_sha256 == token_sha256)
            if session is None or not is_live(0, session.expires_at_ms, now_ms):
                return None
            user = await select_checked(connection, self._seals, users, users.c.user_id == session.user_id)
        return None if user is None or user.disabled_at_ms else _user_principal(user)

    async def of_key(self, token_sha256: bytes, now_ms: int) -> Principal | None:
        """Raises RowAltered."""
        async with self._database.reading() as connection:
            key = await select_checked(connection, self._seals, keys, keys.c.secret_sha256 == token_sha256)
        return None if key is None or not is_live(key.revoked_at_ms, key.expires_at_ms, now_ms) else _key_principal(key)


def _user_principal(user: Row[Any]) -> Principal:
    role = AccountRole(user.role)
    return Principal(ActorKind.USER, user.user_id, ACCOUNT_SCOPES[role], tenant=TenantId(user.tenant), role=role)


def _key_principal(key: Row[Any]) -> Principal:
    role = AccountRole(key.role)
    return Principal(
        ActorKind.KEY,
        key.key_id,
        scopes_of_key(role, key.scopes),
        tenant=TenantId(key.tenant),
        allowed_models=frozenset(ModelName(model) for model in key.allowed_models),
        role=role,
    )
