"""The nouns of enrolment."""

from __future__ import annotations

from dataclasses import dataclass, field

from runtime.errors import Code, PenstockError
from runtime.identity import Peer, Role
from runtime.ids import NodeId, TenantId

DEFAULT_TOKEN_LIFETIME_S = 3600
TOKEN_LIFETIME_LIMIT_S = 30 * 86_400
DEFAULT_CERTIFICATE_LIFETIME_S = 90 * 86_400


class JoinTokenRefused(PenstockError, code=Code.UNAUTHENTICATED, reason="JOIN_TOKEN_REFUSED"):
    """A join token that lets nobody in, or not this node."""


class NoAuthority(PenstockError, code=Code.FAILED_PRECONDITION, reason="NO_AUTHORITY"):
    """This registry cannot issue certificates."""


class AnotherRole(PenstockError, code=Code.FAILED_PRECONDITION, reason="ANOTHER_ROLE"):
    """A node is to be what it is not."""


class NotItself(PenstockError, code=Code.FAILED_PRECONDITION, reason="NOT_ITSELF"):
    """A node is to revoke itself."""


class EnrolmentsTooMany(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="ENROLMENTS_TOO_MANY"):
    """More requests for certificates than one caller may make."""


class JoinTokensTooMany(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="JOIN_TOKENS_TOO_MANY"):
    """More tokens are open than may be at once."""


@dataclass(frozen=True, slots=True)
class EnrolmentRules:
    """What this registry issues, and where it can be asked for it."""

    addresses: tuple[str, ...] = ()
    """host:port of the ports that ask for no certificate, as nodes reach them."""
    certificate_lifetime_s: float = DEFAULT_CERTIFICATE_LIFETIME_S


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a join token is to let in."""

    role: Role
    tenants: frozenset[TenantId]
    lifetime_s: int


@dataclass(frozen=True, slots=True)
class JoinToken:
    """Lets one node in. Times in milliseconds since 1970; 0 = never."""

    token_id: str
    secret_sha256: bytes = field(repr=False)
    role: Role
    tenants: frozenset[TenantId]
    created_at_ms: int
    expires_at_ms: int
    used_at_ms: int = 0
    node_id: str = ""
    """Of the node that used it."""
    revoked_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """A node that this registry certified, or revoked."""

    node_id: NodeId
    role: Role | None
    """None: it was certified elsewhere, and only ever revoked here."""
    tenants: frozenset[TenantId] = frozenset()
    hosts: tuple[str, ...] = ()
    ed25519_public_key: bytes = b""
    hardware_fingerprint: str = ""
    enrolled_at_ms: int = 0
    certificate_expires_at_ms: int = 0
    """Of the certificate that lasts longest, of all it was given."""
    renewed_at_ms: int = 0
    revoked_at_ms: int = 0
    revoked_because: str = ""

    @property
    def peer(self) -> Peer:
        """What its certificate says. Raises AnotherRole where it never had one from here."""
        if self.role is None:
            raise AnotherRole(f"nothing is known of node {self.node_id} but that it was revoked")
        return Peer(self.role, self.node_id, self.tenants)


@dataclass(frozen=True, slots=True)
class Certified:
    """A caller, as the certificate says that it came with."""

    peer: Peer
    hosts: tuple[str, ...] = ()
    expires_at_ms: int = 0
    """Neither is known of a node that came through Envoy."""


@dataclass(frozen=True, slots=True)
class Applicant:
    """Who asks to be enrolled, proven by its signature, and what it says of itself."""

    node_id: NodeId
    ed25519_public_key: bytes
    hosts: tuple[str, ...]
    hardware_fingerprint: str
