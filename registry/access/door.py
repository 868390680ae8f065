"""Finds out who calls, before anything else of a call is looked at.

| the connection | and with the call came | the caller is |
|---|---|---|
| a node of this mesh | anything | that node |
| Envoy | `x-forwarded-client-cert` | the node that Envoy saw |
| Envoy or a gateway (also as seen by Envoy) | a session or key | its bearer |
| TLS without a certificate | a session or key | its bearer |
| Envoy | neither | nobody: it speaks for others alone |

Never decides what the caller may do: each servicer asks that of the Principal.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from typing import Protocol

from registry.access.credentials import (
    Context,
    bearer_of,
    certified_peer,
    forwarded_certificate,
    is_private,
    request_id_of,
)
from registry.access.forwarded import forwarded_uris
from registry.access.policy import NODE_SCOPES, SPEAKS_FOR_OTHERS
from registry.access.sql import Bearers
from registry.access.tokens import TokenKind, kind_of, token_sha256
from registry.access.types import ActorKind, CredentialsMissing, CredentialsRefused, Principal
from runtime.clock import Clock
from runtime.identity import Peer, Role, peer_of_names
from runtime.ids import KeyId
from runtime.peer_gate import also_held_by
from runtime.revocations import Revocations, refusal_of
from runtime.serving import inner_peer

__all__ = ["Context", "Door", "MeshDoor", "NodeDoor", "entered"]

entered: ContextVar[Principal | None] = ContextVar("entered", default=None)
"""Who was let in to the call that is being served: for what is written down when it is refused later."""


class Door(Protocol):
    async def enter(self, context: Context) -> Principal:
        """Raises what says that the caller is nobody this registry knows: UNAUTHENTICATED or PERMISSION_DENIED."""
        ...


class NodeDoor:
    """Lets nodes in by their certificates, and nobody else."""

    async def enter(self, context: Context) -> Principal:
        return _let_in(_node_principal(inner_peer(context)), context)


class MeshDoor:
    """Lets in nodes, people by their sessions, programs by their keys."""

    def __init__(
        self, bearers: Bearers, revocations: Revocations, clock: Clock, key_used: Callable[[KeyId], None] = lambda _: None
    ) -> None:
        """`key_used` is told of each key that opened; it must not fail."""
        self._bearers, self._revocations, self._clock, self._key_used = bearers, revocations, clock, key_used

    async def enter(self, context: Context) -> Principal:
        """Raises CredentialsMissing, CredentialsRefused, NodeRevoked; RowAltered where the database was."""
        return _let_in(await self._caller(context), context)

    async def _caller(self, context: Context) -> Principal:
        node = self._node(context)
        if node is not None and node.role not in SPEAKS_FOR_OTHERS:
            return _node_principal(node)
        if token := bearer_of(context):
            if not is_private(context):
                raise CredentialsRefused(
                    "sessions and keys are taken over TLS alone; anybody on the way could have read this one"
                )
            return await self._bearer(token)
        if node is None or node.role is Role.ENVOY:
            # Taken for Envoy itself, anybody whom it lets through would have the rights of Envoy.
            raise CredentialsMissing("nobody said who calls; send 'authorization: Bearer …' with a session or an API key")
        return _node_principal(node)

    def _node(self, context: Context) -> Peer | None:
        """The node that calls: the connection's, or whose certificate Envoy saw."""
        peer = certified_peer(context)
        if peer is not None and peer.role is Role.ENVOY and (header := forwarded_certificate(context)):
            self._not_revoked(peer)
            peer = peer_of_names(list(forwarded_uris(header)))
        if peer is not None:
            self._not_revoked(peer)
            also_held_by(peer.node_id)
        return peer

    def _not_revoked(self, peer: Peer) -> None:
        if peer.node_id in self._revocations:
            raise refusal_of(peer.node_id)

    async def _bearer(self, token: str) -> Principal:
        kind, now_ms = kind_of(token), int(self._clock.wall_s() * 1000)
        principal = None
        if kind is TokenKind.SESSION:
            principal = await self._bearers.of_session(token_sha256(token), now_ms)
        elif kind is TokenKind.KEY:
            principal = await self._bearers.of_key(token_sha256(token), now_ms)
        if principal is None:
            raise CredentialsRefused("this session or key is unknown or has ended; log in again, or ask for a new key")
        if principal.kind is ActorKind.KEY:
            self._key_used(KeyId(principal.actor_id))
        return principal


def _node_principal(peer: Peer) -> Principal:
    return Principal(
        ActorKind.NODE,
        peer.node_id,
        NODE_SCOPES[peer.role],
        node_role=peer.role,
        node_id=peer.node_id,
        node_tenants=peer.tenants,
    )


def _let_in(principal: Principal, context: Context) -> Principal:
    known = replace(principal, request_id=request_id_of(context))
    entered.set(known)
    return known
