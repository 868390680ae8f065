"""Signed records: bytes that another process may believe because their node's key signed them and the mesh certified the node.

A codec over penstock.worker.v1.SignedRecord. Decides whether a record is authentic;
never what it means, nor whether it is fresh.
"""

from __future__ import annotations

from dataclasses import dataclass

import nacl.exceptions
import nacl.signing
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from google.protobuf.message import DecodeError
from penstock.worker.v1 import presence_pb2

from runtime.certificates import UNREADABLE, Peer, node_id_of, peer_of_certificate
from runtime.errors import Code, PenstockError
from runtime.identity import NodeIdentity
from runtime.revocations import Revocations


class RecordRefused(PenstockError, code=Code.PERMISSION_DENIED, reason="RECORD_REFUSED"):
    """A record that is not to be believed."""


@dataclass(frozen=True, slots=True)
class VerifiedRecord:
    payload: bytes
    signer: Peer


def sign_record(identity: NodeIdentity, payload: bytes) -> bytes:
    """A serialised SignedRecord of this payload."""
    return presence_pb2.SignedRecord(
        payload=payload,
        signature=identity.sign(payload),
        ed25519_public_key=identity.ed25519_public_key,
        certificate=identity.certificate_der,
    ).SerializeToString()


class RecordVerifier:
    """Checks records against one authority. Certificates already checked are remembered, in bounded number."""

    def __init__(self, authority_pem: bytes, *, revocations: Revocations | None = None, remembered: int = 20_000) -> None:
        self._authority = x509.load_pem_x509_certificate(authority_pem)
        self._revocations, self._remembered = revocations or Revocations(), remembered
        self._peers: dict[bytes, tuple[Peer, float]] = {}

    def open(self, raw: bytes, *, now_wall_s: float) -> VerifiedRecord:
        """The payload and who signed it.

        Raises RecordRefused: malformed, uncertified, expired, revoked, another's key, or altered.
        """
        try:
            record = presence_pb2.SignedRecord.FromString(raw)
        except DecodeError as error:
            raise RecordRefused("not a signed record") from error
        peer = self._peer(record.certificate, now_wall_s)
        if node_id_of(record.ed25519_public_key) != peer.node_id:
            raise RecordRefused(f"the record's key is not the one certified for node {peer.node_id}")
        try:
            nacl.signing.VerifyKey(record.ed25519_public_key).verify(record.payload, record.signature)
        except (nacl.exceptions.BadSignatureError, ValueError) as error:
            raise RecordRefused(f"the signature of node {peer.node_id} does not fit its record") from error
        return VerifiedRecord(record.payload, peer)

    def _peer(self, der: bytes, now_wall_s: float) -> Peer:
        known = self._peers.get(der)
        if known is None:
            known = self._checked(der)
            if len(self._peers) >= self._remembered:
                self._peers.pop(next(iter(self._peers)))
            self._peers[der] = known
        peer, expires_wall_s = known
        if now_wall_s > expires_wall_s:
            raise RecordRefused(f"the certificate of node {peer.node_id} has expired")
        if peer.node_id in self._revocations:
            raise RecordRefused(f"node {peer.node_id} was revoked; nothing that it signs is believed")
        return peer

    def _checked(self, der: bytes) -> tuple[Peer, float]:
        try:
            certificate = x509.load_der_x509_certificate(der)
            certificate.verify_directly_issued_by(self._authority)
            return peer_of_certificate(certificate), certificate.not_valid_after_utc.timestamp()
        except (*UNREADABLE, InvalidSignature, PenstockError) as error:
            raise RecordRefused("the record's certificate was not issued by this mesh's authority") from error
