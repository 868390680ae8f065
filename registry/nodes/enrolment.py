"""Lets nodes in by join tokens, keeps them in by renewing their certificates, and puts them out.

Owns when a certificate is signed: after the database has it that it may be. A registry that dies in between has used up the
token for that node alone, which asks again with the same token and key. Never decides by itself: `policy.py` does.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import replace

from registry.access.types import ActorKind, Principal
from registry.audit.types import AuditNote, note_of
from registry.nodes.policy import (
    enrolled,
    node_refusal,
    renewed,
    revocation_refusal,
    token_refusal,
    unknown_token,
    used,
)
from registry.nodes.sql import SqlNodes
from registry.nodes.types import Applicant, Certified, EnrolmentRules, Invitation, JoinToken, NoAuthority, Node
from runtime.clock import Clock
from runtime.enrolment import CheckedRequest
from runtime.errors import PenstockError
from runtime.identity import Authority
from runtime.ids import NodeId
from runtime.join_line import SECRET_BYTES, TOKEN_ID_BYTES, JoinLine
from runtime.revocations import Revocations


class Enrolment:
    """The life of a node in the mesh, as far as the registry sees it."""

    def __init__(
        self,
        sql: SqlNodes,
        authority: Authority | None,
        rules: EnrolmentRules,
        revocations: Revocations,
        clock: Clock,
    ) -> None:
        self._sql, self._authority, self._rules = sql, authority, rules
        self._revocations, self._clock = revocations, clock

    @property
    def authority(self) -> Authority:
        """Raises NoAuthority."""
        if self._authority is None:
            raise NoAuthority("this registry has no authority to sign with; start one with --authority-dir, or ask another")
        return self._authority

    async def invite(self, principal: Principal, invitation: Invitation) -> tuple[JoinToken, JoinLine]:
        """A token, and the line with its secret, which nobody can be told again. Raises NoAuthority, NotFound."""
        authority_der = self.authority.certificate_der
        if not self._rules.addresses:
            raise NoAuthority("no address is known where a node could join; start the registry with --public-port")
        secret, now_ms = secrets.token_bytes(SECRET_BYTES), self._now_ms()
        token = JoinToken(
            secrets.token_hex(TOKEN_ID_BYTES),
            _sha256(secret),
            invitation.role,
            invitation.tenants,
            now_ms,
            now_ms + invitation.lifetime_s * 1000,
        )
        detail = f"{invitation.role.value} of {', '.join(sorted(invitation.tenants)) or 'every tenant'}"
        await self._sql.add_token(token, note_of(principal, "node.invite", token.token_id, detail=detail))
        return token, JoinLine(token.token_id, secret, authority_der, self._rules.addresses)

    async def withdraw(self, principal: Principal, token_id: str) -> JoinToken:
        """Raises NotFound."""
        now_ms = self._now_ms()

        def change(token: JoinToken) -> JoinToken:
            return token if token.revoked_at_ms else replace(token, revoked_at_ms=now_ms)

        return await self._sql.change_token(token_id, change, note_of(principal, "node.uninvite", token_id))

    async def check_token(self, token_id: str, secret: bytes, node_id: NodeId) -> None:
        """Before anything else is done for a stranger. Raises JoinTokenRefused."""
        refused = token_refusal(await self._sql.token(token_id), _sha256(secret), node_id, self._now_ms())
        if refused is not None:
            raise refused

    async def enrol(
        self, token_id: str, secret: bytes, applicant: Applicant, request: CheckedRequest, request_id: str
    ) -> tuple[Node, bytes]:
        """The node and its certificate, PEM. Raises JoinTokenRefused, NodeRevoked, AnotherRole, NoAuthority."""
        expires_wall_s = self.authority.expiry_wall_s(self._clock.wall_s(), self._rules.certificate_lifetime_s)
        secret_sha256, now_ms = _sha256(secret), self._now_ms()

        def decide(token: JoinToken | None, known: Node | None) -> tuple[JoinToken, Node] | PenstockError:
            refused = token_refusal(token, secret_sha256, applicant.node_id, now_ms)
            if refused is not None or token is None:
                return refused or unknown_token()
            if (refused := node_refusal(known, applicant.node_id, token.role)) is not None:
                return refused
            node = enrolled(token, known, applicant, now_ms, int(expires_wall_s * 1000))
            return used(token, applicant.node_id, now_ms), node

        note = AuditNote(
            ActorKind.NODE, applicant.node_id, "node.enrol", applicant.node_id, None, detail=token_id, request_id=request_id
        )
        node = await self._sql.admit(token_id, applicant.node_id, decide, note)
        return node, self._certified(node, request, expires_wall_s)

    async def renew(self, principal: Principal, request: CheckedRequest, certified: Certified) -> bytes:
        """A certificate, PEM, with the same names and a new lifetime. Raises NodeRevoked, AnotherRole, NoAuthority."""
        expires_wall_s = self.authority.expiry_wall_s(self._clock.wall_s(), self._rules.certificate_lifetime_s)
        now_ms = self._now_ms()

        def decide(known: Node | None) -> Node | PenstockError:
            if (refused := node_refusal(known, request.node_id, certified.peer.role)) is not None:
                return refused
            return renewed(known, certified, request.ed25519_public_key, now_ms, int(expires_wall_s * 1000))

        note = note_of(principal, "node.renew", request.node_id)
        node = await self._sql.change_node(request.node_id, decide, note)
        return self._certified(node, request, expires_wall_s)

    async def revoke(self, principal: Principal, node_id: NodeId, because: str) -> Node:
        """For good, here at once and everywhere when it is told. Raises NotItself, NodeRevoked."""
        now_ms, caller = self._now_ms(), principal.node_id
        if caller is not None:
            # So that two operators who revoke each other at the same time meet in the database.
            await self._sql.see(Node(caller, principal.node_role, principal.node_tenants))

        def refusal(row: Node | None) -> PenstockError | None:
            return revocation_refusal(node_id, row)

        note = note_of(principal, "node.revoke", node_id, detail=because)
        node = await self._sql.revoke(node_id, caller, refusal, because, now_ms, note)
        self._revocations.add(node_id)
        return node

    def _certified(self, node: Node, request: CheckedRequest, expires_wall_s: float) -> bytes:
        now_wall_s = self._clock.wall_s()
        certificate = self.authority.certify(request.tls_key, node.peer, node.hosts, now_wall_s, expires_wall_s - now_wall_s)
        return certificate.pem

    def _now_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)


def _sha256(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
