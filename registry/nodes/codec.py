"""Messages of NodeService and what they are here."""

from __future__ import annotations

from penstock.registry.v1 import nodes_pb2

from registry.nodes.types import DEFAULT_TOKEN_LIFETIME_S, Invitation, JoinToken, Node
from runtime.enrolment import SignedRequest
from runtime.errors import InvalidArgument
from runtime.identity import Role
from runtime.ids import TenantId


def invitation_of(request: nodes_pb2.CreateJoinTokenRequest) -> Invitation:
    """Raises InvalidArgument on a role that there is not."""
    if request.role not in Role._value2member_map_:
        roles = ", ".join(role.value for role in Role)
        raise InvalidArgument(f"role {request.role[:80]!r}: one of {roles} is expected")
    tenants = frozenset(TenantId(name) for name in request.tenants)
    return Invitation(Role(request.role), tenants, request.lifetime_s or DEFAULT_TOKEN_LIFETIME_S)


def signed_request_of(request: nodes_pb2.EnrolRequest | nodes_pb2.RenewCertificateRequest) -> SignedRequest:
    return SignedRequest(request.certificate_request, request.ed25519_public_key, request.signature)


def token_message(token: JoinToken) -> nodes_pb2.JoinToken:
    return nodes_pb2.JoinToken(
        token_id=token.token_id,
        role=token.role.value,
        tenants=sorted(token.tenants),
        created_at_ms=token.created_at_ms,
        expires_at_ms=token.expires_at_ms,
        used_at_ms=token.used_at_ms,
        node_id=token.node_id,
        revoked_at_ms=token.revoked_at_ms,
    )


def node_message(node: Node) -> nodes_pb2.Node:
    return nodes_pb2.Node(
        node_id=node.node_id,
        role="" if node.role is None else node.role.value,
        tenants=sorted(node.tenants),
        hosts=node.hosts,
        enrolled_at_ms=node.enrolled_at_ms,
        certificate_expires_at_ms=node.certificate_expires_at_ms,
        renewed_at_ms=node.renewed_at_ms,
        revoked_at_ms=node.revoked_at_ms,
        revoked_because=node.revoked_because,
    )
