"""Logging in and out.

A session lasts twelve hours from the log-in, whatever is done with it: a sliding end would need a write for each call, and a
stolen session would live for as long as its thief uses it. Owns the limits on attempts, by name and by address; each replica
counts its own, so two take twice as many. Never says whether it was the name or the password that was wrong, by word or by
time.
"""

from __future__ import annotations

from contextlib import suppress

from registry.access.throttle import Throttle
from registry.access.tokens import mint_session, token_sha256
from registry.access.types import ActorKind, Principal
from registry.accounts.passwords import Passwords
from registry.accounts.policy import (
    MAX_PASSWORD_CHARACTERS,
    MAX_SESSIONS,
    SESSION_LIFETIME_S,
    login_name,
    name_faults,
    whole_password,
)
from registry.accounts.sql import AccountSql
from registry.accounts.types import LoginRefused, LoginThrottled, NoSession, PasswordsBusy, Session, User
from registry.audit.bounded import BoundedTrail
from registry.audit.trail import AuditTrail
from registry.audit.types import AuditNote, AuditOutcome, note_of
from runtime.clock import Clock
from runtime.database import Database
from runtime.ids import UserId

NAME_ATTEMPTS, NAME_ATTEMPTS_PER_S = 10, 1 / 30
"""At two a minute the commonest thousand passwords take eight hours, and who mistyped does not wait long."""
ADDRESS_ATTEMPTS, ADDRESS_ATTEMPTS_PER_S = 30, 0.5
"""Of an office behind one address."""


class Sessions:
    def __init__(
        self,
        database: Database,
        sql: AccountSql,
        trail: AuditTrail,
        bounded: BoundedTrail,
        passwords: Passwords,
        clock: Clock,
    ) -> None:
        self._database, self._sql, self._trail, self._bounded = database, sql, trail, bounded
        self._passwords, self._clock = passwords, clock
        self._by_name = Throttle(burst=NAME_ATTEMPTS, per_s=NAME_ATTEMPTS_PER_S)
        self._by_address = Throttle(burst=ADDRESS_ATTEMPTS, per_s=ADDRESS_ATTEMPTS_PER_S)

    async def log_in(self, name: str, password: str, address: str) -> Session:
        """Raises LoginRefused, LoginThrottled, PasswordsBusy."""
        name = login_name(name[:256])
        self._throttle(name, address)
        found = await self._found(name)
        user, stored = found or (None, None)
        fits = await self._passwords.fits(stored, whole_password(password[:MAX_PASSWORD_CHARACTERS]))
        fits = fits and len(password) <= MAX_PASSWORD_CHARACTERS
        session = await self._begun(user, stored, password, address) if fits and user and stored else None
        if session is None:
            await self._refuse(user, address)
            raise LoginRefused("the name or the password is wrong, or the user is disabled")
        self._by_name.give_back(name)
        self._by_address.give_back(address)
        return session

    async def log_out(self, principal: Principal, token: str) -> None:
        """End the session that came with this call. Raises NoSession."""
        if principal.kind is not ActorKind.USER:
            raise NoSession(f"{principal.kind.value} {principal.actor_id} is not logged in; only a session can be ended")
        async with self._database.writing() as connection:
            await self._sql.end_session(connection, UserId(principal.actor_id), token_sha256(token))
            await self._trail.write(connection, note_of(principal, "logout", principal.actor_id))

    def _throttle(self, name: str, address: str) -> None:
        now_s = self._clock.monotonic_s()
        wait_s = self._by_address.take(address, now_s) or self._by_name.take(name, now_s)
        if wait_s:
            raise LoginThrottled(
                f"too many attempts to log in by this name or from this address; try again in {wait_s:.0f} s",
                retry_after_s=wait_s,
            )

    async def _found(self, name: str) -> tuple[User, str] | None:
        if name_faults(name):
            return None
        async with self._database.reading() as connection:
            return await self._sql.user_by_name(connection, name)

    async def _begun(self, user: User, stored: str, password: str, address: str) -> Session | None:
        """The session, unless the user was disabled or given another password since it was looked up."""
        new_hash = await self._new_hash(stored, password)
        minted, now_ms = mint_session(), int(self._clock.wall_s() * 1000)
        expires_at_ms = now_ms + SESSION_LIFETIME_S * 1000
        async with self._database.writing() as connection:
            locked = await self._sql.locked_user(connection, user.user_id)
            if locked is None or locked[0].disabled_at_ms or locked[1] != stored:
                return None
            changed = await self._sql.change_user(
                connection, user.user_id, {"last_login_at_ms": now_ms, "password_hash": new_hash}
            )
            await self._sql.trim_sessions(connection, user.user_id, now_ms, keep=MAX_SESSIONS - 1)
            await self._sql.add_session(connection, minted.token_sha256, user.user_id, now_ms, expires_at_ms)
            note = AuditNote(ActorKind.USER, user.user_id, "login", user.user_id, user.tenant, detail=f"from {address}")
            await self._trail.write(connection, note)
        return Session(minted.token, expires_at_ms, changed)

    async def _new_hash(self, stored: str, password: str) -> str:
        """With the parameters of today, now that the password is known. Not now if there is much to do: it can wait."""
        if self._passwords.is_outdated(stored):
            with suppress(PasswordsBusy):
                return await self._passwords.hash(whole_password(password))
        return stored

    async def _refuse(self, user: User | None, address: str) -> None:
        # Names that nobody has are not written down: now and then one is a password in the wrong field.
        subject, tenant = (user.user_id, user.tenant) if user else ("", None)
        note = AuditNote(ActorKind.NOBODY, "", "login", subject, tenant, AuditOutcome.REFUSED, f"from {address}")
        await self._bounded.note(note, actor="login")
