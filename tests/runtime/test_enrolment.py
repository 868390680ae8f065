"""Requests for certificates: whatever is sent, it is refused with one error, or proves who sent it."""

from __future__ import annotations

from dataclasses import replace

import nacl.signing
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from runtime.certificates import node_id_of
from runtime.enrolment import CertificateRequestRefused, SignedRequest, check_request, signed_request

SIGNING_KEY = nacl.signing.SigningKey(b"k" * 32)
TLS_KEY = ec.generate_private_key(ec.SECP256R1())
TLS_KEY_PEM = TLS_KEY.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
GOOD = signed_request(SIGNING_KEY, TLS_KEY_PEM, "subject")


def signed(der: bytes, subject: str = "subject") -> SignedRequest:
    """Whatever it is, signed as it should be."""
    payload = b"penstock-enrolment-v1\n" + subject.encode() + b"\n" + der
    return SignedRequest(der, bytes(SIGNING_KEY.verify_key), SIGNING_KEY.sign(payload).signature)


def test_a_request_proves_who_sent_it() -> None:
    checked = check_request(GOOD, "subject")
    assert checked.node_id == node_id_of(bytes(SIGNING_KEY.verify_key))
    assert checked.tls_key == TLS_KEY.public_key()


def test_a_request_is_for_one_subject() -> None:
    with pytest.raises(CertificateRequestRefused):
        check_request(GOOD, "another")


@given(st.binary(max_size=400))
def test_garbage_is_refused_even_if_it_is_signed(der: bytes) -> None:
    with pytest.raises(CertificateRequestRefused):
        check_request(signed(der), "subject")


@given(st.integers(0, len(GOOD.certificate_request) - 1), st.integers(1, 255))
def test_a_request_with_one_byte_altered_is_refused_even_if_it_is_signed_anew(position: int, change: int) -> None:
    """Every byte of it is under the TLS key's signature, or is that signature."""
    der = bytearray(GOOD.certificate_request)
    der[position] ^= change
    with pytest.raises(CertificateRequestRefused):
        check_request(signed(bytes(der)), "subject")
    with pytest.raises(CertificateRequestRefused):
        check_request(replace(GOOD, certificate_request=bytes(der)), "subject")


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_a_signature_of_nobody_is_refused(key: bytes, signature: bytes) -> None:
    with pytest.raises(CertificateRequestRefused):
        check_request(SignedRequest(GOOD.certificate_request, key, signature), "subject")


def test_a_request_that_is_too_large_is_not_read() -> None:
    with pytest.raises(CertificateRequestRefused, match="4097 bytes"):
        check_request(signed(bytes(4097)), "subject")


@pytest.mark.parametrize("kind", ["p384", "rsa", "ed25519"])
def test_keys_of_other_kinds_are_refused(kind: str) -> None:
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
    if kind == "p384":
        key = ec.generate_private_key(ec.SECP384R1())
    elif kind == "rsa":
        key = rsa.generate_private_key(65537, 2048)
    else:
        key = ed25519.Ed25519PrivateKey.generate()
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, algorithm)
    with pytest.raises(CertificateRequestRefused, match="P-256"):
        check_request(signed(request.public_bytes(serialization.Encoding.DER)), "subject")
