"""What accounts accept: names, passwords, keys; and what becomes of a key when another takes over.

Pure: values in, values out. A "no" is the list of what is wrong, in words; who asks makes an error of it.
"""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import replace

from registry.access.policy import ACCOUNT_SCOPES, is_live
from registry.accounts.types import ApiKey, KeyWish, RateLimit, UserWish
from runtime.ids import KeyId

MAX_LIFETIME_S = 100 * 366 * 86_400
MAX_OVERLAP_S = 90 * 86_400
MAX_ALLOWED_MODELS = 1_000
MAX_KEYS = 10_000
"""Live ones of one tenant; and what a list shows at most."""
MAX_USERS = 10_000
MAX_TENANTS = 10_000
SESSION_LIFETIME_S = 12 * 3600
MAX_SESSIONS = 16
"""Of one user."""
MIN_PASSWORD_CHARACTERS = 12
MAX_PASSWORD_CHARACTERS = 1024

_MINUTE_MS = 60_000
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_USER = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,127}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_KEY_ID = re.compile(r"[0-9a-f]{16}")
_USER_ID = re.compile(r"[0-9a-f]{16}")


def tenant_faults(tenant: str) -> list[str]:
    if _TENANT.fullmatch(tenant):
        return []
    return [f"tenant {_shown(tenant)}: up to 63 of a-z 0-9 - are allowed, starting with a letter or digit"]


def is_key_id(text: str) -> bool:
    return _KEY_ID.fullmatch(text) is not None


def is_user_id(text: str) -> bool:
    return _USER_ID.fullmatch(text) is not None


def login_name(name: str) -> str:
    """As names are stored and compared."""
    return name.strip().lower()


def name_faults(name: str) -> list[str]:
    if _USER.fullmatch(name):
        return []
    return [f"user name {_shown(name)}: up to 128 of a-z 0-9 . _ @ + - are allowed, starting with a letter or digit"]


def whole_password(password: str) -> str:
    """As it is hashed: one form for what looks the same on every keyboard. Source: NIST SP 800-63B 5.1.1.2.

    One that is too long stays as it is, to be refused: a megabyte of combining marks takes minutes to put in order.
    """
    if len(password) > MAX_PASSWORD_CHARACTERS:
        return password
    return unicodedata.normalize("NFKC", password)


def password_faults(password: str, name: str = "") -> list[str]:
    """Length decides, not a mixture of characters: NIST SP 800-63B 5.1.1.2. It is never shown."""
    if not MIN_PASSWORD_CHARACTERS <= len(password) <= MAX_PASSWORD_CHARACTERS:
        return [f"a password of {len(password)} characters: {MIN_PASSWORD_CHARACTERS} to {MAX_PASSWORD_CHARACTERS} are allowed"]
    if len(set(password)) < 4 or (name and password.lower() == name):
        return ["the password is the name, or of fewer than 4 different characters; choose another"]
    return []


def user_faults(wish: UserWish) -> list[str]:
    return tenant_faults(wish.tenant) + name_faults(wish.name) + password_faults(wish.password, wish.name)


def key_faults(wish: KeyWish) -> list[str]:
    """All that keeps this key from being made."""
    faults = tenant_faults(wish.tenant)
    if len(wish.name) > 128 or not wish.name.isprintable():
        faults.append(f"key name {_shown(wish.name)}: up to 128 printable characters are allowed")
    if wish.lifetime_s > MAX_LIFETIME_S:
        faults.append(f"a lifetime of {wish.lifetime_s} s: at most {MAX_LIFETIME_S} are allowed, or 0 for ever")
    if more := wish.scopes - ACCOUNT_SCOPES[wish.role]:
        names = ", ".join(sorted(scope.value for scope in more))
        faults.append(f"scopes {names}: a key of role {wish.role.value} cannot have them")
    return faults + _model_faults(wish) + _rate_faults(wish.rate_limit)


def _model_faults(wish: KeyWish) -> list[str]:
    if len(wish.allowed_models) > MAX_ALLOWED_MODELS:
        return [f"{len(wish.allowed_models)} allowed models: at most {MAX_ALLOWED_MODELS} fit a key"]
    return [
        f"model name {_shown(model)}: up to 128 of A-Z a-z 0-9 . _ - are allowed, starting with a letter or digit"
        for model in wish.allowed_models
        if not _MODEL.fullmatch(model)
    ]


def _rate_faults(limit: RateLimit) -> list[str]:
    if not (math.isfinite(limit.requests_per_s) and limit.requests_per_s >= 0):
        return [f"a rate limit of {limit.requests_per_s} requests/s: 0 for none, or a positive number is expected"]
    if limit.burst and not limit.requests_per_s:
        return [f"a burst of {limit.burst} without a rate: give requests_per_s too"]
    return []


def whole_rate_limit(limit: RateLimit) -> RateLimit:
    """With a burst of one second's requests where none was given: a bucket that holds nothing admits nothing."""
    if limit.requests_per_s and not limit.burst:
        return RateLimit(limit.requests_per_s, min(math.ceil(limit.requests_per_s), 2**31 - 1))
    return limit


def key_of(wish: KeyWish, key_id: KeyId, now_ms: int) -> ApiKey:
    """The key that fulfils this wish, from now on."""
    return ApiKey(
        key_id=key_id,
        tenant=wish.tenant,
        name=wish.name,
        role=wish.role,
        scopes=wish.scopes or ACCOUNT_SCOPES[wish.role],
        allowed_models=tuple(dict.fromkeys(wish.allowed_models)),
        rate_limit=whole_rate_limit(wish.rate_limit),
        created_at_ms=now_ms,
        expires_at_ms=now_ms + wish.lifetime_s * 1000 if wish.lifetime_s else 0,
    )


def overlap_faults(overlap_s: int) -> list[str]:
    if overlap_s <= MAX_OVERLAP_S:
        return []
    return [f"an overlap of {overlap_s} s: at most {MAX_OVERLAP_S} are allowed; two keys are one too many for so long"]


def rotation_fault(key: ApiKey, now_ms: int) -> str | None:
    """Why another key cannot take over from this one."""
    if key.rotated_to:
        return f"key {key.key_id} was rotated already, to {key.rotated_to}; rotate that one"
    if not is_live(key.revoked_at_ms, key.expires_at_ms, now_ms):
        return f"key {key.key_id} has ended; make a new one"
    return None


def rotated(key: ApiKey, new_id: KeyId, overlap_s: int, now_ms: int) -> tuple[ApiKey, ApiKey]:
    """The new key, with the rights and the lifetime of the old one; and the old one, which lives no longer than before."""
    lifetime_ms = key.expires_at_ms - key.created_at_ms if key.expires_at_ms else 0
    ends_at_ms = now_ms + overlap_s * 1000
    new = replace(
        key,
        key_id=new_id,
        created_at_ms=now_ms,
        expires_at_ms=now_ms + lifetime_ms if lifetime_ms else 0,
        last_used_at_ms=0,
    )
    old = replace(key, expires_at_ms=min(key.expires_at_ms, ends_at_ms) if key.expires_at_ms else ends_at_ms, rotated_to=new_id)
    return new, old


def to_the_minute(at_ms: int) -> int:
    return at_ms - at_ms % _MINUTE_MS


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "…")
