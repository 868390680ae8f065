"""How an API key is made: its public id, and a secret that is shown once.

A secret carries 256 bits from the system's random source. Guessing one is hopeless at any speed, so its plain sha256 can be
stored and looked up by index; a slow, salted hash protects what people choose, and this nobody chose.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field

from runtime.ids import KeyId

PREFIX = "sk-pn-"
_SECRET_BYTES = 32
_ID_BYTES = 8


@dataclass(frozen=True, slots=True)
class MintedKey:
    key_id: KeyId
    secret: str = field(repr=False)
    secret_sha256: bytes


def mint() -> MintedKey:
    """A new key. Hexadecimal throughout, so that a double click selects all that follows the last dash."""
    key_id = KeyId(secrets.token_hex(_ID_BYTES))
    secret = f"{PREFIX}{key_id}-{secrets.token_hex(_SECRET_BYTES)}"
    return MintedKey(key_id, secret, secret_sha256(secret))


def secret_sha256(secret: str) -> bytes:
    """What is stored of a secret, and what gateways ask by: 32 bytes."""
    return hashlib.sha256(secret.encode()).digest()
