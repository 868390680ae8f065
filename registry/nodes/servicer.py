"""NodeService: how machines come in, stay and are put out.

Enrol alone may be called by who has no certificate: on a port that asks for none.
"""

from __future__ import annotations

import grpc.aio
from cryptography import x509
from penstock.registry.v1 import nodes_pb2, nodes_pb2_grpc

from registry.access.credentials import caller_address, certified_peer, request_id_of
from registry.access.door import Context, Door, NodeDoor
from registry.access.throttle import Throttle
from registry.access.types import ActorKind, CredentialsMissing, Principal, Scope, ScopeRequired
from registry.audit.bounded import BoundedTrail
from registry.audit.types import AuditNote, AuditOutcome
from registry.nodes import codec
from registry.nodes.enrolment import Enrolment
from registry.nodes.policy import (
    applicant_faults,
    invitation_faults,
    is_node_id,
    is_token_id,
    reason_faults,
)
from registry.nodes.sql import SqlNodes
from registry.nodes.types import AnotherRole, Applicant, Certified, EnrolmentsTooMany, JoinTokenRefused
from runtime.certificates import hosts_of, node_id_of, peer_of_certificate
from runtime.clock import Clock
from runtime.enrolment import check_request
from runtime.errors import InvalidArgument, PenstockError
from runtime.identity import Peer
from runtime.ids import NodeId
from runtime.join_line import SECRET_BYTES
from runtime.revocations import NodeRevoked

SERVICE = "penstock.registry.v1.NodeService"
_REFUSALS = (JoinTokenRefused, NodeRevoked, AnotherRole)
_ED25519_KEY_BYTES = 32
_AT_ONCE, _PER_S = 100, 1.0
_RENEWALS_AT_ONCE, _RENEWALS_PER_S = 10, 1 / 60


class NodeServicer(nodes_pb2_grpc.NodeServiceServicer):
    def __init__(self, *, door: Door, enrolment: Enrolment, sql: SqlNodes, bounded: BoundedTrail, clock: Clock) -> None:
        self._door, self._enrolment, self._sql, self._bounded, self._clock = door, enrolment, sql, bounded, clock
        self._strangers = Throttle(burst=_AT_ONCE, per_s=_PER_S)
        self._renewals = Throttle(burst=_RENEWALS_AT_ONCE, per_s=_RENEWALS_PER_S)

    def register(self, server: grpc.aio.Server) -> None:
        nodes_pb2_grpc.add_NodeServiceServicer_to_server(self, server)

    async def CreateJoinToken(
        self, request: nodes_pb2.CreateJoinTokenRequest, context: Context
    ) -> nodes_pb2.CreateJoinTokenResponse:
        principal = await self._door.enter(context)
        principal.require(Scope.NODES_WRITE)
        invitation = codec.invitation_of(request)
        if faults := invitation_faults(invitation):
            raise InvalidArgument("; ".join(faults))
        token, line = await self._enrolment.invite(principal, invitation)
        return nodes_pb2.CreateJoinTokenResponse(token=codec.token_message(token), secret=str(line))

    async def ListJoinTokens(
        self, request: nodes_pb2.ListJoinTokensRequest, context: Context
    ) -> nodes_pb2.ListJoinTokensResponse:
        (await self._door.enter(context)).require(Scope.NODES_READ)
        return nodes_pb2.ListJoinTokensResponse(tokens=[codec.token_message(token) for token in await self._sql.tokens()])

    async def RevokeJoinToken(
        self, request: nodes_pb2.RevokeJoinTokenRequest, context: Context
    ) -> nodes_pb2.RevokeJoinTokenResponse:
        principal = await self._door.enter(context)
        principal.require(Scope.NODES_WRITE)
        if not is_token_id(request.token_id):
            raise InvalidArgument(
                f"join token {request.token_id[:80]!r}: 16 hex digits are expected; `penstock nodes list --tokens` shows them"
            )
        token = await self._enrolment.withdraw(principal, request.token_id)
        return nodes_pb2.RevokeJoinTokenResponse(token=codec.token_message(token))

    async def Enrol(self, request: nodes_pb2.EnrolRequest, context: Context) -> nodes_pb2.EnrolResponse:
        authority_pem = self._enrolment.authority.certificate_pem
        self._slow_down(self._strangers, caller_address(context))
        if not is_token_id(request.token_id) or len(request.token_secret) != SECRET_BYTES:
            raise InvalidArgument("this is no join token; use the whole line that `penstock nodes invite` printed")
        if len(request.ed25519_public_key) != _ED25519_KEY_BYTES:
            raise InvalidArgument(
                f"an Ed25519 key of {len(request.ed25519_public_key)} bytes: {_ED25519_KEY_BYTES} are expected"
            )
        request_id, node_id = request_id_of(context), node_id_of(request.ed25519_public_key)
        try:
            await self._enrolment.check_token(request.token_id, request.token_secret, node_id)
            checked = check_request(codec.signed_request_of(request), request.token_id)
            if faults := applicant_faults(request.hosts, request.hardware_fingerprint):
                raise InvalidArgument("; ".join(faults))
            applicant = Applicant(node_id, request.ed25519_public_key, tuple(request.hosts), request.hardware_fingerprint)
            node, certificate_pem = await self._enrolment.enrol(
                request.token_id, request.token_secret, applicant, checked, request_id
            )
        except _REFUSALS as error:
            await self._refused(request.token_id, error, request_id)
            raise
        return nodes_pb2.EnrolResponse(
            node=codec.node_message(node), certificate_pem=certificate_pem, authority_pem=authority_pem
        )

    async def RenewCertificate(
        self, request: nodes_pb2.RenewCertificateRequest, context: Context
    ) -> nodes_pb2.RenewCertificateResponse:
        principal = await self._renewer(context)
        principal.require(Scope.NODES_RENEW)
        authority_pem = self._enrolment.authority.certificate_pem
        certified = _certified(principal, context)
        node_id = certified.peer.node_id
        checked = check_request(codec.signed_request_of(request), node_id)
        if checked.node_id != node_id:
            raise ScopeRequired(f"node {node_id} renews its own certificate, not that of {checked.node_id}")
        # Only now: through Envoy anybody could use up its turns, and Envoy would be without a certificate one day.
        self._slow_down(self._renewals, node_id)
        certificate_pem = await self._enrolment.renew(principal, checked, certified)
        return nodes_pb2.RenewCertificateResponse(certificate_pem=certificate_pem, authority_pem=authority_pem)

    async def ListNodes(self, request: nodes_pb2.ListNodesRequest, context: Context) -> nodes_pb2.ListNodesResponse:
        (await self._door.enter(context)).require(Scope.NODES_READ)
        return nodes_pb2.ListNodesResponse(nodes=[codec.node_message(node) for node in await self._sql.nodes()])

    async def RevokeNode(self, request: nodes_pb2.RevokeNodeRequest, context: Context) -> nodes_pb2.RevokeNodeResponse:
        principal = await self._door.enter(context)
        principal.require(Scope.NODES_WRITE)
        if not is_node_id(request.node_id):
            raise InvalidArgument(
                f"node {request.node_id[:80]!r}: 20 hex digits are expected, as `penstock nodes list` shows them"
            )
        if faults := reason_faults(request.reason):
            raise InvalidArgument("; ".join(faults))
        node = await self._enrolment.revoke(principal, NodeId(request.node_id), request.reason)
        return nodes_pb2.RevokeNodeResponse(node=codec.node_message(node))

    async def _renewer(self, context: Context) -> Principal:
        """Who enters by the door; or Envoy, which is nobody there, as it speaks for others. Here it signs for itself."""
        try:
            return await self._door.enter(context)
        except CredentialsMissing:
            if certified_peer(context) is None:
                raise
            return await NodeDoor().enter(context)

    def _slow_down(self, throttle: Throttle, name: str) -> None:
        if wait_s := throttle.take(name, self._clock.monotonic_s()):
            raise EnrolmentsTooMany(f"too many requests for certificates from {name}; slow down", retry_after_s=wait_s)

    async def _refused(self, token_id: str, error: PenstockError, request_id: str) -> None:
        note = AuditNote(
            ActorKind.NOBODY, "", "node.enrol", token_id, None, AuditOutcome.REFUSED, error.message, request_id=request_id
        )
        await self._bounded.note(note, actor="enrolment")


def _certified(principal: Principal, context: Context) -> Certified:
    """The caller, as its certificate says. Raises ScopeRequired on who is no node."""
    if principal.node_id is None or principal.node_role is None:
        raise ScopeRequired("only a node can renew a certificate, with the one it has")
    peer = Peer(principal.node_role, principal.node_id, principal.node_tenants)
    shown = tuple(context.auth_context().get("x509_pem_cert", ()))
    certificate = x509.load_pem_x509_certificate(shown[0]) if shown else None
    if certificate is None or peer_of_certificate(certificate) != peer:
        return Certified(peer)
    return Certified(peer, hosts_of(certificate), int(certificate.not_valid_after_utc.timestamp() * 1000))
