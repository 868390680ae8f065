"""Who a process is: an Ed25519 key that signs, and a certificate for mTLS that is bound to it.

Owns node keys, the local authority that issues certificates, and what a certificate says of its bearer. The node id is the
fingerprint of the Ed25519 key and stands in the certificate, so a certificate cannot be used with another node's key.
TLS itself uses P-256, because BoringSSL does not offer Ed25519 certificates by default.
"""

from __future__ import annotations

import datetime as dt
import enum
import hashlib
import ipaddress
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

import nacl.signing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from runtime.errors import FailedPrecondition, PermissionDenied
from runtime.ids import NodeId

DOMAIN_SUFFIX = "penstock.internal"
_CERTIFICATE_LIFETIME = dt.timedelta(days=397)  # CA/Browser Forum BR 6.3.2: no longer than 398 days
_USAGES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_AUTHORITY_LIFETIME = dt.timedelta(days=3650)


class Role(enum.Enum):
    """What a node may be; inner services grant by it."""

    GATEWAY = "gateway"
    SCHEDULER = "scheduler"
    WORKER = "worker"
    REGISTRY = "registry"
    ENVOY = "envoy"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of an inner hop, as its certificate says."""

    role: Role
    node_id: NodeId


def node_id_of(ed25519_public_key: bytes) -> NodeId:
    """Fingerprint of the 32-byte public key."""
    return NodeId(hashlib.sha256(ed25519_public_key).hexdigest()[:20])


def server_name(role: Role, node_id: NodeId | None = None) -> str:
    """The DNS name that a node's certificate carries: of its role, or of this very node."""
    return f"{role.value}.{DOMAIN_SUFFIX}" if node_id is None else f"{node_id}.{role.value}.{DOMAIN_SUFFIX}"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where a process keeps what mTLS needs, for those that read files themselves (Envoy)."""

    authority: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """A node's keys and certificate, loaded."""

    role: Role
    node_id: NodeId
    signing_key: nacl.signing.SigningKey = field(repr=False)
    certificate_pem: bytes = field(repr=False)
    tls_key_pem: bytes = field(repr=False)
    authority_pem: bytes = field(repr=False)
    folder: Path

    @property
    def ed25519_public_key(self) -> bytes:
        return bytes(self.signing_key.verify_key)

    @property
    def x25519_public_key(self) -> bytes:
        return bytes(self.signing_key.verify_key.to_curve25519_public_key())

    @property
    def certificate_der(self) -> bytes:
        return x509.load_pem_x509_certificate(self.certificate_pem).public_bytes(serialization.Encoding.DER)

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
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """Load the authority in this folder, or found it."""
        certificate_file, key_file = folder / "ca.pem", folder / "ca.key"
        if not certificate_file.exists():
            _found(folder)
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise FailedPrecondition(f"{key_file} holds no P-256 key; it was not made by penstock")
        return cls(x509.load_pem_x509_certificate(certificate_file.read_bytes()), key)

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def enrol(self, folder: Path, role: Role, *, hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")) -> NodeIdentity:
        """The identity kept in this folder; made and certified if there is none. A restart keeps who it was."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        seed_file = folder / "ed25519.key"
        if not seed_file.exists():
            write_secret(seed_file, secrets.token_bytes(32))
        signing_key = nacl.signing.SigningKey(seed_file.read_bytes())
        if not (folder / "tls.pem").exists():
            tls_key = ec.generate_private_key(ec.SECP256R1())
            certificate = self._issue(tls_key.public_key(), role, node_id_of(bytes(signing_key.verify_key)), hosts)
            write_secret(folder / "tls.key", _key_pem(tls_key))
            (folder / "ca.pem").write_bytes(self.certificate_pem)
            (folder / "tls.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return load_identity(folder)

    def _issue(self, key: ec.EllipticCurvePublicKey, role: Role, node_id: NodeId, hosts: tuple[str, ...]) -> x509.Certificate:
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"penstock://{role.value}/{node_id}")]
        names += [x509.DNSName(server_name(role)), x509.DNSName(server_name(role, node_id))]
        names += [_host_name(host) for host in hosts]
        return (
            _builder(f"{role.value} {node_id}", self.certificate.subject, key, _CERTIFICATE_LIFETIME)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
            )
            .sign(self.key, hashes.SHA256())
        )


def load_identity(folder: Path) -> NodeIdentity:
    """The identity in this folder. Raises FailedPrecondition where there is none."""
    try:
        signing_key = nacl.signing.SigningKey((folder / "ed25519.key").read_bytes())
        certificate_pem = (folder / "tls.pem").read_bytes()
        tls_key_pem, authority_pem = (folder / "tls.key").read_bytes(), (folder / "ca.pem").read_bytes()
    except OSError as error:
        raise FailedPrecondition(
            f"no usable node identity in {folder}: {error.strerror}; `penstock up` makes one, or copy an enrolled one there"
        ) from error
    peer = peer_of_certificate(x509.load_pem_x509_certificate(certificate_pem))
    return NodeIdentity(peer.role, peer.node_id, signing_key, certificate_pem, tls_key_pem, authority_pem, folder)


def peer_of_names(names: list[str]) -> Peer:
    """The bearer, from a certificate's URI names. Raises PermissionDenied if it is none of ours."""
    for name in names:
        scheme, _, rest = name.partition("://")
        role, _, node_id = rest.partition("/")
        if scheme == "penstock" and node_id and role in Role._value2member_map_:
            return Peer(Role(role), NodeId(node_id))
    raise PermissionDenied("the peer's certificate names no penstock role; enrol it with this mesh's authority")


def peer_of_certificate(certificate: x509.Certificate) -> Peer:
    """The bearer of a certificate. The caller has checked, or checks, who issued it."""
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return peer_of_names(extension.value.get_values_for_type(x509.UniformResourceIdentifier))


def write_secret(file: Path, content: bytes) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
    draft.replace(file)


def _found(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"penstock authority {secrets.token_hex(4)}")])
    certificate = (
        _builder(None, subject, key.public_key(), _AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_secret(folder / "ca.key", _key_pem(key))
    (folder / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _builder(
    common_name: str | None, issuer: x509.Name, key: ec.EllipticCurvePublicKey, lifetime: dt.timedelta
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    subject = issuer if common_name is None else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + lifetime)
    )


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
