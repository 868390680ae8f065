"""The line that a node joins with: `pnj1.` and base64url of token id, secret, the mesh's authority, and where the registry is.

With it a node that has nothing can tell the registry from anybody else. A codec, and decides nothing. The bytes: token id (8),
secret (32), length of the certificate (2, big-endian), the certificate (DER), addresses (UTF-8, separated by line feeds), and
the first 4 bytes of the sha256 of all that, so that a line that was not copied whole is told from one that is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from runtime.certificates import UNREADABLE
from runtime.errors import InvalidArgument

PREFIX = "pnj1."
TOKEN_ID_BYTES = 8
SECRET_BYTES = 32
ADDRESSES_LIMIT = 8
_CHECK_BYTES = 4
_LINE_CHARACTERS_LIMIT = 16_384


@dataclass(frozen=True, slots=True)
class JoinLine:
    """What a node has to know to join."""

    token_id: str
    secret: bytes = field(repr=False)
    authority_der: bytes = field(repr=False)
    addresses: tuple[str, ...]
    """host:port, of ports that ask for no certificate; to be tried in this order."""

    @property
    def authority_pem(self) -> bytes:
        return x509.load_der_x509_certificate(self.authority_der).public_bytes(serialization.Encoding.PEM)

    def __str__(self) -> str:
        body = bytes.fromhex(self.token_id) + self.secret
        body += len(self.authority_der).to_bytes(2, "big") + self.authority_der + "\n".join(self.addresses).encode()
        return PREFIX + base64.urlsafe_b64encode(body + _check(body)).decode().rstrip("=")


def read_join_line(text: str) -> JoinLine:
    """Raises InvalidArgument on anything else than a whole line."""
    line = "".join(text.split())  # as it comes from a mail or a chat, broken into lines
    if not line.startswith(PREFIX):
        raise InvalidArgument(f"this is no join token: one begins with {PREFIX} and is made by `penstock nodes invite`")
    try:
        if len(line) > _LINE_CHARACTERS_LIMIT:
            raise ValueError("too long")
        coded = line.removeprefix(PREFIX)
        raw = base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True)
        if _check(raw[:-_CHECK_BYTES]) != raw[-_CHECK_BYTES:]:
            raise ValueError("altered")
        return _read(raw[:-_CHECK_BYTES])
    except (*UNREADABLE, binascii.Error, UnicodeError) as error:
        raise InvalidArgument("this join token was not copied whole, or was altered; copy the line once more") from error


def _read(body: bytes) -> JoinLine:
    fixed = TOKEN_ID_BYTES + SECRET_BYTES
    if len(body) < fixed + 2:
        raise ValueError("too short")
    certificate_bytes = int.from_bytes(body[fixed : fixed + 2], "big")
    authority_der = body[fixed + 2 : fixed + 2 + certificate_bytes]
    x509.load_der_x509_certificate(authority_der)
    addresses = tuple(body[fixed + 2 + certificate_bytes :].decode().split("\n"))
    if not 0 < len(addresses) <= ADDRESSES_LIMIT or not all(":" in address for address in addresses):
        raise ValueError("no addresses")
    return JoinLine(body[:TOKEN_ID_BYTES].hex(), body[TOKEN_ID_BYTES:fixed], authority_der, addresses)


def _check(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_CHECK_BYTES]
