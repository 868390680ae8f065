"""Who a caller is and what it may ask: the facts of a key.

Pure. Never asks anybody: `gateway.keys` finds the facts, `gateway.limits` counts what they allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.limits.types import Limit
from runtime.errors import Code, PenstockError
from runtime.ids import KeyId, TenantId

MAX_SECRET_CHARACTERS = 256
_HEADERS = ("x-api-key", "api-key")


class KeyMissing(PenstockError, code=Code.UNAUTHENTICATED, reason="KEY_MISSING"):
    """No API key came with the call."""


class KeyRefused(PenstockError, code=Code.UNAUTHENTICATED, reason="KEY_REFUSED"):
    """The API key is unknown, expired or revoked: which one is nobody's business."""


class ModelNotAllowed(PenstockError, code=Code.PERMISSION_DENIED, reason="MODEL_NOT_ALLOWED"):
    """The key is not for this model."""


class InferRequired(PenstockError, code=Code.PERMISSION_DENIED, reason="INFER_SCOPE_REQUIRED"):
    """The key may look, and not call."""


class AdminRequired(PenstockError, code=Code.PERMISSION_DENIED, reason="ADMIN_KEY_REQUIRED"):
    """Only a key with the right to load may change what is loaded."""


class RateLimited(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="RATE_LIMITED"):
    """More was asked than a limit allows. `headers`: what else its caller is told of the limits."""

    def __init__(self, message: str, *, retry_after_s: float | None = None, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.headers = headers


class TooManyGuesses(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="TOO_MANY_KEYS_REFUSED"):
    """Key after key from the caller's address was refused."""


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """What the registry says of a key."""

    key_id: KeyId
    tenant: TenantId
    admin: bool = False
    """May load and unload models."""
    may_infer: bool = True
    allowed_models: frozenset[str] = frozenset()
    """Empty: every model."""
    expires_at_s: float = 0.0
    """Wall clock; 0 = never."""
    limits: tuple[Limit, ...] = ()
    """All that its requests may fall under, those of single models included."""

    def allows(self, model: str) -> bool:
        return not self.allowed_models or model in self.allowed_models

    def authorise(self, model: str) -> None:
        """Raises ModelNotAllowed."""
        if self.allowed_models and model not in self.allowed_models:
            allowed = ", ".join(sorted(self.allowed_models)[:8])
            raise ModelNotAllowed(f"this key is not for model {model[:80]!r}; it is for: {allowed}")

    def authorise_call(self, model: str) -> None:
        """Raises ModelNotAllowed, InferRequired."""
        self.require_infer()
        self.authorise(model)

    def require_infer(self) -> None:
        """Raises InferRequired."""
        if not self.may_infer:
            raise InferRequired("this key may look but not call models: it lacks the right 'infer'; use another key")

    def require_admin(self, doing: str) -> None:
        """Raises AdminRequired."""
        if not self.admin:
            raise AdminRequired(
                f"{doing} needs the right 'models:load', which this key does not have; "
                "`penstock keys create --role publisher` makes one that has"
            )


EVERYBODY = KeyFacts(KeyId(""), TenantId(""), admin=True)
"""Who calls where no key is asked for."""


def secret_of(headers: Mapping[str, str | bytes]) -> str:
    """The API key that came with a call. Raises KeyMissing, and KeyRefused for what cannot be one."""
    secret: str | bytes | None = None
    authorization = headers.get("authorization")
    if isinstance(authorization, str):
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise KeyRefused("the authorization header is not of the form 'Bearer sk-…'; send the API key that way")
    else:
        for name in _HEADERS:
            secret = headers.get(name) or secret
    if not isinstance(secret, str) or not secret.strip():
        raise KeyMissing("no API key; send it as metadata 'authorization: Bearer sk-…' or 'x-api-key: sk-…'")
    secret = secret.strip()
    if len(secret) > MAX_SECRET_CHARACTERS or not secret.isascii():
        raise KeyRefused("this is no API key of this mesh; `penstock keys create` makes one")
    return secret
