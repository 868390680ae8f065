"""A node's request for a certificate: made by the node, checked by the registry.

Whoever asks proves that it holds both keys: the request is signed with the TLS key, and with the Ed25519 key that the node's id
is the fingerprint of, together with the token or node id that it is for. Decides whether a request is the node's; never whether
it is granted.
"""

from __future__ import annotations

from dataclasses import dataclass

import nacl.exceptions
import nacl.signing
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from runtime.certificates import UNREADABLE, NodeCertificate, node_id_of
from runtime.errors import Code, FailedPrecondition, PenstockError
from runtime.identity import public_key_of, tls_key_of
from runtime.ids import NodeId

CONTEXT = b"penstock-enrolment-v1\n"
REQUEST_BYTES_LIMIT = 4096


class CertificateRequestRefused(PenstockError, code=Code.INVALID_ARGUMENT, reason="CERTIFICATE_REQUEST_REFUSED"):
    """A request for a certificate that is malformed, or not signed by whom it names."""


class CertificateRefused(PenstockError, code=Code.DATA_LOSS, reason="CERTIFICATE_REFUSED"):
    """What a registry sent is not the certificate that was asked for."""


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A PKCS#10 request, DER, with the node's signature over it and what it is for."""

    certificate_request: bytes
    ed25519_public_key: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """Who asks, and the key that is to be certified."""

    node_id: NodeId
    ed25519_public_key: bytes
    tls_key: ec.EllipticCurvePublicKey


def signed_request(signing_key: nacl.signing.SigningKey, tls_key_pem: bytes, subject: str) -> SignedRequest:
    """`subject`: the id of the token it is for, or of the node where it renews."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(tls_key_of(tls_key_pem), hashes.SHA256())
    der = request.public_bytes(serialization.Encoding.DER)
    return SignedRequest(der, bytes(signing_key.verify_key), signing_key.sign(_signed(subject, der)).signature)


def check_request(request: SignedRequest, subject: str) -> CheckedRequest:
    """Raises CertificateRequestRefused: not a P-256 request, or not signed with the keys it names, for this subject."""
    der = request.certificate_request
    if len(der) > REQUEST_BYTES_LIMIT:
        raise CertificateRequestRefused(f"a certificate request of {len(der)} bytes: up to {REQUEST_BYTES_LIMIT} are allowed")
    try:
        nacl.signing.VerifyKey(request.ed25519_public_key).verify(_signed(subject, der), request.signature)
    except (nacl.exceptions.BadSignatureError, ValueError, TypeError) as error:
        raise CertificateRequestRefused(
            "the request is not signed with the Ed25519 key it names, for what it is for"
        ) from error
    key = _requested_key(der)
    return CheckedRequest(node_id_of(request.ed25519_public_key), request.ed25519_public_key, key)


def check_answer(certificate_pem: bytes, authority_pem: bytes, node_id: NodeId, tls_key_pem: bytes) -> NodeCertificate:
    """The certificate, if this authority made it for this node and key. Raises CertificateRefused."""
    try:
        issued = x509.load_pem_x509_certificate(certificate_pem)
        issued.verify_directly_issued_by(x509.load_pem_x509_certificate(authority_pem))
        certificate = NodeCertificate.read(certificate_pem)
        fits = issued.public_key() == public_key_of(tls_key_pem) and certificate.peer.node_id == node_id
    except (*UNREADABLE, InvalidSignature, PenstockError) as error:
        raise CertificateRefused("the registry sent no certificate of this mesh's authority; nothing was changed") from error
    if not fits:
        raise CertificateRefused(f"the registry sent a certificate that is not of node {node_id}; nothing was changed")
    return certificate


def same_authority(one_pem: bytes, other_pem: bytes) -> bool:
    """Raises FailedPrecondition on what is no certificate."""
    try:
        return x509.load_pem_x509_certificate(one_pem) == x509.load_pem_x509_certificate(other_pem)
    except UNREADABLE as error:
        raise FailedPrecondition("ca.pem holds no certificate; enrol this node with `penstock join`") from error


def _signed(subject: str, der: bytes) -> bytes:
    return CONTEXT + subject.encode() + b"\n" + der


def _requested_key(der: bytes) -> ec.EllipticCurvePublicKey:
    try:
        request = x509.load_der_x509_csr(der)
        key, is_signed = request.public_key(), request.is_signature_valid
    except (*UNREADABLE, InvalidSignature) as error:
        raise CertificateRequestRefused("what was sent is no PKCS#10 certificate request in DER") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateRequestRefused("the certificate request is for another kind of key; P-256 is expected")
    if not is_signed:
        raise CertificateRequestRefused("the certificate request is not signed with the key it is for")
    return key
