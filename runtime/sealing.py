"""What a client and one worker say to each other so that nobody on the way can read it, and that each can tell it was altered.

A call is a libsodium sealed box to the worker's X25519 key: whoever holds the public key can make one, the worker alone opens
it. It brings a fresh key, under which the answers come back as a secretstream: numbered, in order, and with a mark at their
end, so that one that was left out, moved, altered or cut off is noticed. Whose key it is, is believed for the record that the
worker's node signed, whose certificate the mesh's authority issued. Knows nothing of reservations, never keeps a key.

Source: libsodium's documentation, "Sealed boxes" (X25519, XSalsa20-Poly1305) and "Encrypted streams and files"
(XChaCha20-Poly1305). A box is bound to a reservation and a worker by what it holds, and is remembered so that it opens once.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field

import nacl.exceptions
from google.protobuf.message import DecodeError
from nacl.bindings import (
    crypto_secretstream_xchacha20poly1305_ABYTES,
    crypto_secretstream_xchacha20poly1305_HEADERBYTES,
    crypto_secretstream_xchacha20poly1305_init_pull,
    crypto_secretstream_xchacha20poly1305_init_push,
    crypto_secretstream_xchacha20poly1305_pull,
    crypto_secretstream_xchacha20poly1305_push,
    crypto_secretstream_xchacha20poly1305_state,
    crypto_secretstream_xchacha20poly1305_TAG_FINAL,
    crypto_secretstream_xchacha20poly1305_TAG_MESSAGE,
)
from nacl.public import PrivateKey, PublicKey, SealedBox
from penstock.worker.v1 import presence_pb2, sealed_pb2

from runtime.errors import Code, InvalidArgument, PenstockError
from runtime.identity import Role
from runtime.ids import Region, WorkerId
from runtime.records import RecordRefused, RecordVerifier

KEY_BYTES = 32
TOKEN_BYTES = 32
BOX_OVERHEAD_BYTES = 48
"""By which a box is longer than what it holds: a public key, and a tag."""

REFUSED = "no such reservation is kept here for whoever sent this; reserve a place, and send its secret to its worker"
"""What a stranger is told: which of all that may be wrong is nobody's business."""

_RESERVATION = re.compile(r"[0-9A-Za-z-]{1,64}\.[0-9a-f]{32}")
_FINAL = crypto_secretstream_xchacha20poly1305_TAG_FINAL
_MESSAGE = crypto_secretstream_xchacha20poly1305_TAG_MESSAGE


class BoxRefused(PenstockError, code=Code.UNAUTHENTICATED, reason="BOX_REFUSED"):
    """A box that was not sealed to this key, was altered, or holds no call."""


class SealedRefused(PenstockError, code=Code.UNAUTHENTICATED, reason="SEALED_REFUSED"):
    """The reservation is unknown, has ended, is another worker's, or this is not its secret: one sentence for all of it."""

    def __init__(self, message: str = REFUSED, *, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)


class AnswerAltered(PenstockError, code=Code.DATA_LOSS, reason="SEALED_ANSWER_ALTERED"):
    """What came back is not what the worker sent: altered, out of order, cut off, or under another key."""


@dataclass(frozen=True, slots=True)
class SealedCall:
    """What a box holds. The payload is a serialised message, as `method` (penstock.worker.v1.Method) has it."""

    reservation_id: str
    worker_id: str
    method: int
    payload: bytes = field(repr=False)
    token: bytes = field(repr=False)
    reply_key: bytes = field(repr=False)
    timeout_s: float = 0.0
    """0 = none was set."""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class SealedPlace:
    """Where a worker takes sealed calls, and the key to seal them to."""

    worker_id: WorkerId
    region: Region
    address: str
    x25519_public_key: bytes


def token_sha256_of(token: bytes) -> bytes:
    """What of a reservation's secret others may know."""
    return hashlib.sha256(token).digest()


def is_token(token: bytes, token_sha256: bytes) -> bool:
    """Whether this is the secret; takes the same time whichever it is."""
    return hmac.compare_digest(token_sha256_of(token), token_sha256)


def seal_call(call: SealedCall, x25519_public_key: bytes) -> bytes:
    """A box with this call, for the holder of that key alone; no two are alike."""
    message = sealed_pb2.SealedCall(
        token=call.token,
        reply_key=call.reply_key,
        method=call.method,  # type: ignore[arg-type]  # its number; which are known is the worker's to say
        payload=call.payload,
        timeout_us=round(call.timeout_s * 1_000_000),
        request_id=call.request_id,
        reservation_id=call.reservation_id,
        worker_id=call.worker_id,
    )
    return bytes(SealedBox(PublicKey(x25519_public_key)).encrypt(message.SerializeToString()))


def open_call(box: bytes, private_key: PrivateKey) -> SealedCall:
    """Raises BoxRefused, which says nothing of what was inside."""
    try:
        message = sealed_pb2.SealedCall.FromString(SealedBox(private_key).decrypt(box))
    except (nacl.exceptions.CryptoError, ValueError, TypeError, DecodeError) as error:
        raise BoxRefused("the box does not open with this worker's key, or holds no call") from error
    if len(message.reply_key) != KEY_BYTES:
        raise BoxRefused(f"the box holds a reply key of {len(message.reply_key)} bytes; {KEY_BYTES} are expected")
    return SealedCall(
        message.reservation_id,
        message.worker_id,
        message.method,
        message.payload,
        message.token,
        message.reply_key,
        message.timeout_us / 1_000_000,
        message.request_id,
    )


class AnswerSealer:
    """The worker's end of the way back. One message at a time, in order."""

    def __init__(self, reply_key: bytes) -> None:
        self._state = crypto_secretstream_xchacha20poly1305_state()
        self.header = bytes(crypto_secretstream_xchacha20poly1305_init_push(self._state, reply_key))

    def seal(self, message: bytes, *, final: bool = False) -> bytes:
        """`final`: nothing follows."""
        tag = _FINAL if final else _MESSAGE
        return bytes(crypto_secretstream_xchacha20poly1305_push(self._state, message, tag=tag))


class AnswerOpener:
    """The client's end of the way back."""

    def __init__(self, reply_key: bytes, header: bytes) -> None:
        """Raises AnswerAltered where the header is none."""
        if len(header) != crypto_secretstream_xchacha20poly1305_HEADERBYTES:
            raise AnswerAltered(f"the answer begins with a header of {len(header)} bytes; ask again, with another reservation")
        self._state = crypto_secretstream_xchacha20poly1305_state()
        crypto_secretstream_xchacha20poly1305_init_pull(self._state, header, reply_key)
        self.ended = False
        """Whether the last message has come. An answer that ends before was cut off."""

    def open(self, sealed: bytes) -> bytes:
        """The next message. Raises AnswerAltered."""
        if self.ended:
            raise AnswerAltered("a message came after the answer's last one; ask again, with another reservation")
        if len(sealed) < crypto_secretstream_xchacha20poly1305_ABYTES:
            raise AnswerAltered(f"a message of {len(sealed)} bytes is too short to be sealed; ask again")
        try:
            message, tag = crypto_secretstream_xchacha20poly1305_pull(self._state, sealed)
        except (nacl.exceptions.CryptoError, ValueError) as error:
            raise AnswerAltered("a message of the answer was altered, left out or moved on the way; ask again") from error
        self.ended = tag == _FINAL
        return bytes(message)

    def end(self) -> None:
        """The answer has ended. Raises AnswerAltered where its last message never came."""
        if not self.ended:
            raise AnswerAltered("the answer was cut off before its end; ask again")


def verified_place(record: bytes, authority_pem: bytes, *, worker_id: str, now_wall_s: float) -> SealedPlace:
    """What a worker's signed presence says, for whoever has the authority's certificate and nothing else.

    Raises RecordRefused: not signed by a worker of this mesh, not by the one that was named, or it takes no sealed calls.
    """
    verified = RecordVerifier(authority_pem).open(record, now_wall_s=now_wall_s)
    if verified.signer.role is not Role.WORKER or verified.signer.node_id != worker_id:
        raise RecordRefused(f"node {verified.signer.node_id} signed the presence that is to be worker {worker_id[:40]!r}'s")
    try:
        presence = presence_pb2.Presence.FromString(verified.payload)
    except DecodeError as error:
        raise RecordRefused(f"what node {verified.signer.node_id} signed is no presence") from error
    if presence.worker_id != worker_id:
        raise RecordRefused(f"worker {worker_id} signed a presence of {presence.worker_id[:40]!r}")
    if len(presence.x25519_public_key) != KEY_BYTES or not presence.sealed_address:
        raise RecordRefused(f"worker {worker_id} tells no key or no address for sealed calls; it takes none")
    return SealedPlace(
        WorkerId(presence.worker_id), Region(presence.region), presence.sealed_address, presence.x25519_public_key
    )


def reservation_id(worker_id: WorkerId, hold_id: str) -> str:
    """One name for a place and who keeps it. Whoever knows it may give the place back: the hold's id is a secret."""
    return f"{worker_id}.{hold_id}"


def reservation_parts(name: str) -> tuple[WorkerId, str]:
    """Worker and hold. Raises InvalidArgument on what names none."""
    if not _RESERVATION.fullmatch(name):
        raise InvalidArgument(f"{name[:80]!r} names no reservation; send the reservation_id as it was answered")
    worker_id, _, hold_id = name.partition(".")
    return WorkerId(worker_id), hold_id
