"""Chunked authenticated encryption: how a file of a model is kept and how it travels.

A file is cut into chunks of 1 MiB, the last one shorter. Each is sealed by itself with XChaCha20-Poly1305 under the object's
data key and a random nonce, and bound to the object it belongs to, its place in it, and the object's size: a chunk that was
altered, moved, left out, or taken from another object does not open. Knows nothing of where chunks or keys are kept.

    sealed chunk = nonce (24 bytes) | ciphertext | tag (16 bytes)

Source: draft-irtf-cfrg-xchacha-03; the binding of place and end is that of STREAM (Hoang et al., CRYPTO 2015), with the size
of the whole in the place of the last-chunk flag.
"""

from __future__ import annotations

import os

import nacl.exceptions
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_aead_xchacha20poly1305_ietf_NPUBBYTES,
)

from runtime.errors import Code, PenstockError

CHUNK_BYTES = 1 << 20
DATA_KEY_BYTES = 32
OBJECT_ID_BYTES = 16
_NONCE_BYTES = crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
OVERHEAD_BYTES = _NONCE_BYTES + 16
"""By which a sealed chunk is longer."""

_CONTEXT = b"penstock-chunk-v1\n"


class ChunkAltered(PenstockError, code=Code.DATA_LOSS, reason="CHUNK_ALTERED"):
    """A stored chunk is not the one that was sealed there, or the key is another object's."""


def chunk_count(size_bytes: int) -> int:
    """Of a file of that size; an empty file has none."""
    return -(-size_bytes // CHUNK_BYTES)


def chunk_size(size_bytes: int, index: int) -> int:
    """Plain bytes of this chunk of a file of that size."""
    return min(CHUNK_BYTES, size_bytes - index * CHUNK_BYTES)


def seal_chunk(data_key: bytes, object_id: bytes, index: int, size_bytes: int, data: bytes) -> bytes:
    """`size_bytes` is the whole file's."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + crypto_aead_xchacha20poly1305_ietf_encrypt(data, _place(object_id, index, size_bytes), nonce, data_key)


def open_chunk(data_key: bytes, object_id: bytes, index: int, size_bytes: int, sealed: bytes) -> bytes:
    """The plain bytes. Raises ChunkAltered."""
    nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    try:
        data = crypto_aead_xchacha20poly1305_ietf_decrypt(ciphertext, _place(object_id, index, size_bytes), nonce, data_key)
    except (nacl.exceptions.CryptoError, ValueError) as error:
        raise ChunkAltered(f"chunk {index} of object {object_id.hex()} does not open; upload the file again") from error
    if len(data) != chunk_size(size_bytes, index):
        raise ChunkAltered(f"chunk {index} of object {object_id.hex()} has {len(data)} bytes; upload the file again")
    return data


def _place(object_id: bytes, index: int, size_bytes: int) -> bytes:
    return _CONTEXT + object_id + index.to_bytes(8, "big") + size_bytes.to_bytes(8, "big")
