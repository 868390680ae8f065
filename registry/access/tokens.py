"""What people and programs show instead of a certificate: sessions and API keys. How they are made, what is kept of them.

A token carries 256 bits from the system's random source. Guessing one is hopeless at any speed, so its plain sha256 can be
stored and looked up by index; a slow, salted hash protects what people choose, and this nobody chose. Nothing is ever compared
with a token itself, so nothing can be learnt from how long a comparison takes.
"""

from __future__ import annotations

import enum
import hashlib
import re
import secrets
from dataclasses import dataclass, field

from runtime.ids import KeyId

KEY_PREFIX = "sk-pn-"
SESSION_PREFIX = "ss-pn-"
_SECRET_BYTES = 32
_ID_BYTES = 8
_KEY = re.compile(rf"{KEY_PREFIX}[0-9a-f]{{{2 * _ID_BYTES}}}-[0-9a-f]{{{2 * _SECRET_BYTES}}}")
_SESSION = re.compile(rf"{SESSION_PREFIX}[0-9a-f]{{{2 * _SECRET_BYTES}}}")


class TokenKind(enum.Enum):
    KEY = "key"
    SESSION = "session"


@dataclass(frozen=True, slots=True)
class MintedKey:
    """A new key's public id, its secret, and what is stored of that."""

    key_id: KeyId
    secret: str = field(repr=False)
    secret_sha256: bytes


@dataclass(frozen=True, slots=True)
class MintedSession:
    token: str = field(repr=False)
    token_sha256: bytes


def mint_key() -> MintedKey:
    """A new key. Hexadecimal throughout, so that a double click selects all that follows the last dash."""
    key_id = KeyId(secrets.token_hex(_ID_BYTES))
    secret = f"{KEY_PREFIX}{key_id}-{secrets.token_hex(_SECRET_BYTES)}"
    return MintedKey(key_id, secret, token_sha256(secret))


def mint_session() -> MintedSession:
    token = f"{SESSION_PREFIX}{secrets.token_hex(_SECRET_BYTES)}"
    return MintedSession(token, token_sha256(token))


def kind_of(token: str) -> TokenKind | None:
    """What this can be by its shape; None: nothing that was ever given out, so no database has to be asked."""
    if _KEY.fullmatch(token):
        return TokenKind.KEY
    return TokenKind.SESSION if _SESSION.fullmatch(token) else None


def token_sha256(token: str) -> bytes:
    """What is stored of a token, and what it is looked up by: 32 bytes."""
    return hashlib.sha256(token.encode()).digest()
