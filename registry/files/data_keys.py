"""Data keys: one for each stored object, kept wrapped under a master key, handed out sealed to the node that asks.

Decides whether a wrapped key is the one that was made for this object and file. Never keeps a key.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import nacl.exceptions
import nacl.public
import nacl.signing
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt, crypto_aead_xchacha20poly1305_ietf_encrypt

from registry.master_keys import KeySource
from runtime.errors import Code, InvalidArgument, PenstockError
from runtime.sealed_chunks import DATA_KEY_BYTES

_CONTEXT = b"penstock-data-key-v1\n"
_NONCE_BYTES = 24


class DataKeyAltered(PenstockError, code=Code.DATA_LOSS, reason="DATA_KEY_ALTERED"):
    """A wrapped key is not the one that was made for its object, or its master key is not here."""


@dataclass(frozen=True, slots=True)
class WrappedKey:
    wrapped: bytes = field(repr=False)
    master_key_id: str


class DataKeys:
    def __init__(self, keys: KeySource) -> None:
        self._keys = keys

    @property
    def newest_key_id(self) -> str:
        """Of the master key that what is wrapped now lies under."""
        return self._keys.latest().newest

    def make(self, object_id: bytes, sha256: str) -> tuple[bytes, WrappedKey]:
        """A new data key (32 bytes), and how it is kept."""
        data_key = os.urandom(DATA_KEY_BYTES)
        return data_key, self.wrap(object_id, sha256, data_key)

    def wrap(self, object_id: bytes, sha256: str, data_key: bytes) -> WrappedKey:
        """Under the newest master key."""
        keys, nonce = self._keys.latest(), os.urandom(_NONCE_BYTES)
        box = crypto_aead_xchacha20poly1305_ietf_encrypt(data_key, _binding(object_id, sha256), nonce, keys.current)
        return WrappedKey(nonce + box, keys.newest)

    def open(self, object_id: bytes, sha256: str, kept: WrappedKey) -> bytes:
        """The data key. Raises DataKeyAltered."""
        master = self._keys.knowing(kept.master_key_id).keys.get(kept.master_key_id)
        if master is None:
            raise DataKeyAltered(
                f"master key {kept.master_key_id!r} is not among this registry's; give it the file that holds it"
            )
        nonce, box = kept.wrapped[:_NONCE_BYTES], kept.wrapped[_NONCE_BYTES:]
        try:
            return crypto_aead_xchacha20poly1305_ietf_decrypt(box, _binding(object_id, sha256), nonce, master)
        except (nacl.exceptions.CryptoError, ValueError) as error:
            raise DataKeyAltered(f"the key of object {object_id.hex()} was altered; restore the database") from error

    def wrapped_anew(self, object_id: bytes, sha256: str, kept: WrappedKey) -> WrappedKey:
        """The same data key under the newest master key. Raises DataKeyAltered."""
        return self.wrap(object_id, sha256, self.open(object_id, sha256, kept))


def _binding(object_id: bytes, sha256: str) -> bytes:
    """A row that was edited to lead from a file that a worker may have to another's object does not open."""
    return _CONTEXT + object_id + sha256.encode()


def sealed_to_node(data_key: bytes, ed25519_public_key: bytes) -> bytes:
    """A sealed box that only the node with this Ed25519 key opens. Raises InvalidArgument for what is no key."""
    try:
        x25519 = nacl.signing.VerifyKey(ed25519_public_key).to_curve25519_public_key()
    except (nacl.exceptions.RuntimeError, nacl.exceptions.TypeError, ValueError) as error:
        raise InvalidArgument("ed25519_public_key is no Ed25519 public key of 32 bytes") from error
    return bytes(nacl.public.SealedBox(x25519).encrypt(data_key))
