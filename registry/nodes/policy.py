"""Who is let in, stays and is put out. Pure: a "no" is the error to answer with, or a sentence."""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection
from dataclasses import replace

from registry.nodes.types import (
    TOKEN_LIFETIME_LIMIT_S,
    AnotherRole,
    Applicant,
    Certified,
    Invitation,
    JoinToken,
    JoinTokenRefused,
    Node,
    NotItself,
)
from runtime.certificates import LIFETIME_LIMIT_S, hosts_fault
from runtime.errors import PenstockError
from runtime.identity import LOOPBACK_HOSTS, Role
from runtime.ids import NodeId
from runtime.revocations import refusal_of

MAX_TENANTS = 64
MAX_REASON_CHARACTERS = 500
TOKEN_KEPT_MS = 30 * 86_400_000
"""How long a token that has expired is still listed."""
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_NODE_ID = re.compile(r"[0-9a-f]{20}")
_TOKEN_ID = re.compile(r"[0-9a-f]{16}")
_FINGERPRINT = re.compile(r"([0-9a-f]{64})?")


def invitation_faults(invitation: Invitation) -> list[str]:
    faults = []
    if len(invitation.tenants) > MAX_TENANTS:
        faults.append(f"{len(invitation.tenants)} tenants: up to {MAX_TENANTS} can be named; without any, it serves everybody")
    faults += [f"tenant {name[:80]!r}: no tenant is called so" for name in sorted(invitation.tenants) if not _is_tenant(name)]
    if invitation.tenants and invitation.role is not Role.WORKER:
        faults.append(f"a {invitation.role.value} serves every tenant; only workers can be kept to some")
    if not 0 < invitation.lifetime_s <= TOKEN_LIFETIME_LIMIT_S:
        faults.append(f"a lifetime of {invitation.lifetime_s} s: between 1 and {TOKEN_LIFETIME_LIMIT_S} s is allowed")
    return faults


def applicant_faults(hosts: Collection[str], hardware_fingerprint: str) -> list[str]:
    faults = [fault] if (fault := hosts_fault(hosts)) else []
    if not _FINGERPRINT.fullmatch(hardware_fingerprint):
        faults.append("the hardware fingerprint: 64 hex digits are expected, or nothing")
    return faults


def reason_faults(reason: str) -> list[str]:
    if len(reason) > MAX_REASON_CHARACTERS:
        return [f"a reason of {len(reason)} characters: up to {MAX_REASON_CHARACTERS} are kept"]
    if not all(letter.isprintable() or letter in "\n\t" for letter in reason):  # PostgreSQL takes no NUL
        return ["a reason with control characters: printable ones, line breaks and tabs are allowed"]
    return []


def is_node_id(text: str) -> bool:
    return _NODE_ID.fullmatch(text) is not None


def is_token_id(text: str) -> bool:
    return _TOKEN_ID.fullmatch(text) is not None


def token_refusal(token: JoinToken | None, secret_sha256: bytes, node_id: NodeId, now_ms: int) -> PenstockError | None:
    """Why this token does not let this node in. Only who knows the secret hears what became of the token."""
    if token is None or not hmac.compare_digest(token.secret_sha256, secret_sha256):
        return unknown_token()
    if token.revoked_at_ms:
        return JoinTokenRefused(f"join token {token.token_id} was revoked; ask an operator for a new one")
    if now_ms >= token.expires_at_ms:
        return JoinTokenRefused(f"join token {token.token_id} has expired; ask an operator for a new one")
    if token.used_at_ms and token.node_id != node_id:
        return JoinTokenRefused(f"join token {token.token_id} was used by node {token.node_id}; ask for one of this node's own")
    return None


def unknown_token() -> PenstockError:
    return JoinTokenRefused("this join token is not known here; ask an operator for a new one (`penstock nodes invite`)")


def node_refusal(node: Node | None, node_id: NodeId, role: Role) -> PenstockError | None:
    """Why a node cannot have a certificate of this role."""
    if node is None:
        return None
    if node.revoked_at_ms:
        return refusal_of(node_id)
    if node.role is not None and node.role is not role:
        return AnotherRole(
            f"node {node_id} is a {node.role.value}; to be a {role.value} it needs an identity folder of its own"
        )
    return None


def used(token: JoinToken, node_id: NodeId, now_ms: int) -> JoinToken:
    """The token once it has let this node in."""
    return token if token.used_at_ms else replace(token, used_at_ms=now_ms, node_id=node_id)


def enrolled(token: JoinToken, known: Node | None, applicant: Applicant, now_ms: int, expires_at_ms: int) -> Node:
    """The node as the token makes it; a certificate it had before may last longer."""
    before = known or Node(applicant.node_id, token.role)
    return replace(
        before,
        role=token.role,
        tenants=token.tenants,
        hosts=applicant.hosts,
        ed25519_public_key=applicant.ed25519_public_key,
        hardware_fingerprint=applicant.hardware_fingerprint,
        enrolled_at_ms=before.enrolled_at_ms or now_ms,
        certificate_expires_at_ms=max(before.certificate_expires_at_ms, expires_at_ms),
    )


def renewed(known: Node | None, certified: Certified, ed25519_public_key: bytes, now_ms: int, expires_at_ms: int) -> Node:
    """The node as it was enrolled; one that was certified elsewhere as its certificate says."""
    peer = certified.peer
    node = known or Node(peer.node_id, peer.role)
    if not node.enrolled_at_ms:
        hosts = certified.hosts or node.hosts or LOOPBACK_HOSTS
        node = replace(node, role=peer.role, tenants=peer.tenants, hosts=hosts)
    return replace(
        node,
        ed25519_public_key=ed25519_public_key,
        renewed_at_ms=now_ms,
        certificate_expires_at_ms=max(node.certificate_expires_at_ms, certified.expires_at_ms, expires_at_ms),
    )


def revocation_refusal(node_id: NodeId, caller: Node | None) -> PenstockError | None:
    """Why this caller may not put the node out. That nobody revokes itself keeps one operator, whatever is asked at once."""
    if caller is None:
        return None
    if caller.revoked_at_ms:
        return refusal_of(caller.node_id)
    if caller.node_id == node_id:
        return NotItself(f"node {node_id} is the one that calls; another operator has to revoke it")
    return None


def revoked(node: Node | None, node_id: NodeId, because: str, now_ms: int) -> Node:
    """A node that was certified elsewhere is taken to hold a certificate for as long as there can be one."""
    before = node or Node(node_id, None)
    expires_at_ms = before.certificate_expires_at_ms or now_ms + LIFETIME_LIMIT_S * 1000
    return replace(before, revoked_at_ms=now_ms, revoked_because=because, certificate_expires_at_ms=expires_at_ms)


def _is_tenant(name: str) -> bool:
    return _TENANT.fullmatch(name) is not None
