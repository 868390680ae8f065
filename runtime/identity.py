"""Who a process is: an Ed25519 key that signs, and a certificate for mTLS that is bound to it.

Owns node keys, the folder they lie in, and the local authority that issues certificates. The node id is the fingerprint of the
Ed25519 key and stands in the certificate, so a certificate cannot be used with another node's key. What a certificate says is
`certificates.py`'s.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import nacl.signing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from runtime.certificates import DOMAIN_SUFFIX as DOMAIN_SUFFIX
from runtime.certificates import LIFETIME_LIMIT_S, NodeCertificate, certificate_builder, node_certificate_builder
from runtime.certificates import Peer as Peer
from runtime.certificates import Role as Role
from runtime.certificates import node_id_of as node_id_of
from runtime.certificates import peer_of_certificate as peer_of_certificate
from runtime.certificates import peer_of_names as peer_of_names
from runtime.certificates import server_name as server_name
from runtime.errors import FailedPrecondition
from runtime.ids import NodeId, TenantId

_AUTHORITY_LIFETIME_S = 3650 * 86_400
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where a process keeps what mTLS needs, for those that read files themselves (Envoy)."""

    authority: Path
    certificate: Path
    key: Path


@dataclass(slots=True)
class CurrentCertificate:
    """The one part of an identity that changes while a process lives. What is made with it from then on has the new one."""

    certificate: NodeCertificate


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """A node's keys and certificate, loaded. Its keys stay; its certificate is the newest there is (`renewal.py`)."""

    role: Role
    node_id: NodeId
    signing_key: nacl.signing.SigningKey = field(repr=False)
    tls_key_pem: bytes = field(repr=False)
    authority_pem: bytes = field(repr=False)
    folder: Path
    current: CurrentCertificate = field(repr=False, hash=False)

    @property
    def certificate(self) -> NodeCertificate:
        return self.current.certificate

    @property
    def certificate_pem(self) -> bytes:
        return self.current.certificate.pem

    @property
    def certificate_der(self) -> bytes:
        return self.current.certificate.der

    @property
    def ed25519_public_key(self) -> bytes:
        return bytes(self.signing_key.verify_key)

    @property
    def x25519_public_key(self) -> bytes:
        return bytes(self.signing_key.verify_key.to_curve25519_public_key())

    @property
    def files(self) -> TlsFiles:
        return TlsFiles(self.folder / "ca.pem", self.folder / "tls.pem", self.folder / "tls.key")

    def sign(self, payload: bytes) -> bytes:
        """64-byte Ed25519 signature."""
        return self.signing_key.sign(payload).signature


@dataclass(frozen=True, slots=True)
class Authority:
    """The mesh's own certificate authority."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """Load the authority in this folder, or found it."""
        if not (folder / "ca.pem").exists():
            _found(folder)
        return cls.load(folder)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """The authority in this folder. Raises FailedPrecondition where there is none."""
        certificate_file, key_file = folder / "ca.pem", folder / "ca.key"
        try:
            certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
            key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise FailedPrecondition(
                f"no usable authority in {folder}: {error}; ca.pem and ca.key are expected there"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise FailedPrecondition(f"{key_file} holds no P-256 key; it was not made by penstock")
        if key.public_key() != certificate.public_key():
            raise FailedPrecondition(
                f"{key_file} is not the key of {certificate_file}; put back the pair that belongs together"
            )
        return cls(certificate, key)

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def certificate_der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def enrol(
        self, folder: Path, role: Role, *, hosts: tuple[str, ...] = LOOPBACK_HOSTS, tenants: Iterable[TenantId] = ()
    ) -> NodeIdentity:
        """The identity kept in this folder; made and certified if there is none. A restart keeps who it was."""
        signing_key, tls_key_pem = keys_in(folder)
        if not (folder / "tls.pem").exists():
            peer = Peer(role, node_id_of(bytes(signing_key.verify_key)), frozenset(tenants))
            certificate = self.certify(public_key_of(tls_key_pem), peer, hosts, time.time(), LIFETIME_LIMIT_S)
            write_public(folder / "ca.pem", self.certificate_pem)
            write_public(folder / "tls.pem", certificate.pem)
        return load_identity(folder)

    def certify(
        self, key: ec.EllipticCurvePublicKey, peer: Peer, hosts: Iterable[str], now_wall_s: float, lifetime_s: float
    ) -> NodeCertificate:
        """A certificate of this bearer for this key. Raises FailedPrecondition on hosts that it may not carry."""
        expires_wall_s = self.expiry_wall_s(now_wall_s, lifetime_s)
        builder = node_certificate_builder(key, self.certificate.subject, peer, hosts, now_wall_s, expires_wall_s)
        return NodeCertificate.of(builder.sign(self.key, hashes.SHA256()))

    def expiry_wall_s(self, now_wall_s: float, lifetime_s: float) -> float:
        """When a certificate that is made now ends: whole seconds, and never after the authority itself.

        Raises FailedPrecondition where that has ended already.
        """
        last_wall_s = self.certificate.not_valid_after_utc.timestamp()
        if last_wall_s <= now_wall_s:
            raise FailedPrecondition("the mesh's authority has expired; found another, and enrol every node with it")
        return float(int(min(now_wall_s + lifetime_s, last_wall_s)))


def load_identity(folder: Path) -> NodeIdentity:
    """The identity in this folder. Raises FailedPrecondition where there is none, or its parts do not belong together."""
    try:
        signing_key = nacl.signing.SigningKey((folder / "ed25519.key").read_bytes())
        tls_key_pem, authority_pem = (folder / "tls.key").read_bytes(), (folder / "ca.pem").read_bytes()
        certificate_pem = (folder / "tls.pem").read_bytes()
        fits = public_key_of(tls_key_pem) == x509.load_pem_x509_certificate(certificate_pem).public_key()
    except (OSError, ValueError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise FailedPrecondition(
            f"no usable node identity in {folder}: {why}; `penstock up` makes one, `penstock join` enrols one"
        ) from error
    certificate = NodeCertificate.read(certificate_pem)
    if not fits or certificate.peer.node_id != node_id_of(bytes(signing_key.verify_key)):
        raise FailedPrecondition(f"keys and certificate in {folder} are not of one node; enrol it anew with `penstock join`")
    peer, current = certificate.peer, CurrentCertificate(certificate)
    return NodeIdentity(peer.role, peer.node_id, signing_key, tls_key_pem, authority_pem, folder, current)


def keys_in(folder: Path) -> tuple[nacl.signing.SigningKey, bytes]:
    """The keys kept in this folder, Ed25519 and P-256 (as PEM); made where there are none."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    seed_file, tls_file = folder / "ed25519.key", folder / "tls.key"
    if not seed_file.exists():
        write_secret(seed_file, secrets.token_bytes(32))
    if not tls_file.exists():
        write_secret(tls_file, _key_pem(ec.generate_private_key(ec.SECP256R1())))
    try:
        return nacl.signing.SigningKey(seed_file.read_bytes()), tls_file.read_bytes()
    except (ValueError, TypeError) as error:
        raise FailedPrecondition(f"{seed_file} holds no key of 32 bytes; remove it to become another node") from error


def public_key_of(tls_key_pem: bytes) -> ec.EllipticCurvePublicKey:
    """Raises ValueError on what is no P-256 key."""
    return tls_key_of(tls_key_pem).public_key()


def tls_key_of(tls_key_pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Raises ValueError on what is no P-256 key."""
    key = serialization.load_pem_private_key(tls_key_pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("tls.key holds no P-256 key")
    return key


def write_secret(file: Path, content: bytes) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    _write(file, content, 0o600)


def write_public(file: Path, content: bytes) -> None:
    """Write a file that anybody may read, whole or not at all."""
    _write(file, content, 0o644)


def _write(file: Path, content: bytes, mode: int) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())  # a power cut after the renaming must not leave an empty key
    draft.replace(file)


def _found(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key, now_wall_s = ec.generate_private_key(ec.SECP256R1()), time.time()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"penstock authority {secrets.token_hex(4)}")])
    certificate = (
        certificate_builder(subject, subject, key.public_key(), now_wall_s, now_wall_s + _AUTHORITY_LIFETIME_S)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_secret(folder / "ca.key", _key_pem(key))
    write_public(folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM))


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
