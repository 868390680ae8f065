"""What a node's certificate says, and how one is made.

Decides which names a certificate may carry: a role and a node id that inner hops grant by, the tenants of a worker, and the
hosts a node is reached at. Never holds a node's keys, nor decides who may have a certificate.
TLS uses P-256, because BoringSSL does not offer Ed25519 certificates by default.
"""

from __future__ import annotations

import datetime as dt
import enum
import hashlib
import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from runtime.errors import FailedPrecondition, PermissionDenied
from runtime.ids import NodeId, TenantId

DOMAIN_SUFFIX = "penstock.internal"
ROLE_SCHEME = "penstock"
TENANT_SCHEME = "penstock-tenant"
LIFETIME_LIMIT_S = 397 * 86_400
"""CA/Browser Forum BR 6.3.2: no longer than 398 days."""
HOSTS_LIMIT = 16
_BACKDATED = dt.timedelta(minutes=5)
"""For machines whose clocks are behind."""
_HOST = re.compile(
    r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*", re.IGNORECASE
)
UNREADABLE = (ValueError, TypeError, x509.ExtensionNotFound, x509.InvalidVersion, x509.DuplicateExtension, UnsupportedAlgorithm)
"""What `cryptography` raises for bytes that only look like a certificate or a request for one."""


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
    tenants: frozenset[TenantId] = frozenset()
    """Whose models a worker may load; empty: everybody's."""


@dataclass(frozen=True, slots=True)
class NodeCertificate:
    """A certificate, read once."""

    pem: bytes = field(repr=False)
    der: bytes = field(repr=False, compare=False)
    peer: Peer
    begins_wall_s: float
    expires_wall_s: float

    @classmethod
    def read(cls, pem: bytes) -> NodeCertificate:
        """Raises FailedPrecondition on what is none, PermissionDenied on one that is not a node's."""
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            return cls.of(certificate)
        except UNREADABLE as error:
            raise FailedPrecondition("this is no certificate of a node; enrol it with `penstock join`") from error

    @classmethod
    def of(cls, certificate: x509.Certificate) -> NodeCertificate:
        return cls(
            certificate.public_bytes(serialization.Encoding.PEM),
            certificate.public_bytes(serialization.Encoding.DER),
            peer_of_certificate(certificate),
            certificate.not_valid_before_utc.timestamp(),
            certificate.not_valid_after_utc.timestamp(),
        )


def node_id_of(ed25519_public_key: bytes) -> NodeId:
    """Fingerprint of the 32-byte public key."""
    return NodeId(hashlib.sha256(ed25519_public_key).hexdigest()[:20])


def server_name(role: Role, node_id: NodeId | None = None) -> str:
    """The DNS name that a node's certificate carries: of its role, or of this very node."""
    return f"{role.value}.{DOMAIN_SUFFIX}" if node_id is None else f"{node_id}.{role.value}.{DOMAIN_SUFFIX}"


def peer_of_names(names: Iterable[str]) -> Peer:
    """The bearer, from a certificate's URI names. Raises PermissionDenied if it is none of ours, or says to be two."""
    bearers: list[tuple[Role, NodeId]] = []
    tenants: set[TenantId] = set()
    for name in names:
        scheme, _, rest = name.partition("://")
        role, _, node_id = rest.partition("/")
        if scheme == ROLE_SCHEME and node_id and role in Role._value2member_map_:
            bearers.append((Role(role), NodeId(node_id)))
        elif scheme == TENANT_SCHEME and rest:
            tenants.add(TenantId(rest))
    if len(bearers) != 1:
        raise PermissionDenied("the peer's certificate names no one penstock role; enrol it with this mesh's authority")
    return Peer(*bearers[0], frozenset(tenants))


def peer_of_certificate(certificate: x509.Certificate) -> Peer:
    """The bearer of a certificate. The caller has checked, or checks, who issued it."""
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return peer_of_names(extension.value.get_values_for_type(x509.UniformResourceIdentifier))


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Where a node is reached, as its certificate says: its names but for those that come with role and id."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = [name for name in names.get_values_for_type(x509.DNSName) if not name.endswith(DOMAIN_SUFFIX)]
    return (*hosts, *(str(address) for address in names.get_values_for_type(x509.IPAddress)))


def hosts_fault(hosts: Collection[str]) -> str | None:
    """Why a certificate may not carry these hosts. A node may choose them, so none may mean another node, or many."""
    if len(hosts) > HOSTS_LIMIT:
        return f"{len(hosts)} hosts: a node has at most {HOSTS_LIMIT}"
    for host in hosts:
        if not _is_address(host) and _HOST.fullmatch(host) is None:
            return f"host {host[:80]!r}: a name such as gpu1.example.org or an address is expected, without port or wildcard"
        if f".{host.lower()}".endswith(f".{DOMAIN_SUFFIX}"):
            return f"host {host[:80]!r}: names under {DOMAIN_SUFFIX} come with a node's role, and cannot be chosen"
    return None


_FRONTED: Mapping[Role, tuple[Role, ...]] = {Role.ENVOY: (Role.REGISTRY,)}
"""In whose name a role answers beside its own: nodes reach the registry's replicas through Envoy, and ask for the registry."""


def node_certificate_builder(
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    peer: Peer,
    hosts: Iterable[str],
    now_wall_s: float,
    expires_wall_s: float,
) -> x509.CertificateBuilder:
    """All of a node's certificate but the signature. Raises FailedPrecondition on hosts that it may not carry."""
    if (fault := hosts_fault(hosts := tuple(hosts))) is not None:
        raise FailedPrecondition(fault)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"{ROLE_SCHEME}://{peer.role.value}/{peer.node_id}")]
    names += [x509.UniformResourceIdentifier(f"{TENANT_SCHEME}://{tenant}") for tenant in sorted(peer.tenants)]
    names += [x509.DNSName(server_name(peer.role)), x509.DNSName(server_name(peer.role, peer.node_id))]
    names += [x509.DNSName(server_name(role)) for role in _FRONTED.get(peer.role, ())]
    names += [_host_name(host) for host in hosts]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{peer.role.value} {peer.node_id}")])
    return (
        certificate_builder(subject, issuer, key, now_wall_s, expires_wall_s)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    )


def certificate_builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now_wall_s: float, expires_wall_s: float
) -> x509.CertificateBuilder:
    """What every certificate of the mesh has."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_moment(now_wall_s) - _BACKDATED)
        .not_valid_after(_moment(expires_wall_s))
    )


def _moment(wall_s: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(wall_s), dt.UTC)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host


def _host_name(host: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(host)) if _is_address(host) else x509.DNSName(host)
