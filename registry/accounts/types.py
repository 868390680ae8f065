"""The nouns of accounts, as everything between this room's codec and its SQL speaks of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from registry.access.types import AccountRole, Scope
from runtime.errors import Code, PenstockError
from runtime.ids import KeyId, ModelName, TenantId, UserId


class TenantExists(PenstockError, code=Code.ALREADY_EXISTS, reason="TENANT_EXISTS"):
    """A tenant of this name is there."""


class TenantUnknown(PenstockError, code=Code.NOT_FOUND, reason="TENANT_UNKNOWN"):
    """No such tenant."""


class UserExists(PenstockError, code=Code.ALREADY_EXISTS, reason="USER_EXISTS"):
    """Somebody logs in by this name already."""


class UserUnknown(PenstockError, code=Code.NOT_FOUND, reason="USER_UNKNOWN"):
    """No such user."""


class KeyUnknown(PenstockError, code=Code.NOT_FOUND, reason="KEY_UNKNOWN"):
    """No such key, or none that is live."""


class KeyEnded(PenstockError, code=Code.FAILED_PRECONDITION, reason="KEY_ENDED"):
    """The key was revoked, has expired, or was rotated already."""


class AccountsFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="ACCOUNTS_FULL"):
    """A tenant has as many keys or users as it may."""


class LoginRefused(PenstockError, code=Code.UNAUTHENTICATED, reason="LOGIN_REFUSED"):
    """The name or the password is wrong; which of them is not said."""


class LoginThrottled(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="LOGIN_THROTTLED"):
    """Too many attempts by this name or from this address."""


class PasswordsBusy(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="PASSWORDS_BUSY"):
    """More passwords are being checked than may wait."""


class NoSession(PenstockError, code=Code.FAILED_PRECONDITION, reason="NO_SESSION"):
    """Nobody logged in for this call."""


@dataclass(frozen=True, slots=True)
class Tenant:
    tenant: TenantId
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class User:
    """Who administers; all of one but the password's hash."""

    user_id: UserId
    tenant: TenantId
    name: str
    role: AccountRole
    created_at_ms: int
    disabled_at_ms: int = 0
    """0 = not disabled."""
    last_login_at_ms: int = 0
    """0 = never."""


@dataclass(frozen=True, slots=True)
class UserWish:
    tenant: TenantId
    name: str
    role: AccountRole
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class UserChange:
    """None: as it is."""

    role: AccountRole | None = None
    password: str | None = field(default=None, repr=False)
    disabled: bool | None = None


@dataclass(frozen=True, slots=True)
class Session:
    token: str = field(repr=False)
    expires_at_ms: int
    user: User


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A token bucket's figures; 0 requests_per_s = no limit."""

    requests_per_s: float = 0.0
    burst: int = 0


@dataclass(frozen=True, slots=True)
class ApiKey:
    """All of a key but its secret, which is nowhere."""

    key_id: KeyId
    tenant: TenantId
    name: str
    role: AccountRole
    scopes: frozenset[Scope]
    allowed_models: tuple[ModelName, ...]
    """Empty: every model."""
    rate_limit: RateLimit
    created_at_ms: int
    expires_at_ms: int
    """0 = never."""
    revoked_at_ms: int = 0
    """0 = not revoked."""
    rotated_to: str = ""
    """The key that took over."""
    last_used_at_ms: int = 0
    """To the minute; 0 = never."""


@dataclass(frozen=True, slots=True)
class KeyWish:
    """A key as someone asks for it."""

    tenant: TenantId
    name: str
    role: AccountRole
    allowed_models: tuple[ModelName, ...] = ()
    rate_limit: RateLimit = RateLimit()
    lifetime_s: int = 0
    """0 = for ever."""
    scopes: frozenset[Scope] = frozenset()
    """Empty: all that the role may."""
