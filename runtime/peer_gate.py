"""Keeps revoked nodes out of one server: no RPC of theirs begins, and the streams that they hold end when they are revoked.

A connection of such a node stays open, and nothing is served over it: grpc.aio cannot close a single one. Unary calls that had
begun are answered. Decides nothing but whether a peer is revoked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import grpc.aio

from runtime.certificates import ROLE_SCHEME
from runtime.ids import NodeId
from runtime.revocations import Revocations, refusal_of

Context = grpc.aio.ServicerContext[Any, Any]
_ROLE_URI = f"{ROLE_SCHEME}://".encode()


class _HeldStream:
    """A stream's handler, and who holds it: the node at the other end, and whoever that one speaks for."""

    __slots__ = ("cut_for", "gate", "nodes", "task")

    def __init__(self, gate: PeerGate, task: asyncio.Task[Any]) -> None:
        self.gate, self.task = gate, task
        self.nodes: set[NodeId] = set()
        self.cut_for: NodeId | None = None


_served: ContextVar[_HeldStream | None] = ContextVar("served", default=None)


class PeerGate:
    """Belongs to one server and its event loop."""

    def __init__(self, revocations: Revocations) -> None:
        self._revocations = revocations
        self._revoked = revocations.nodes
        self._held: dict[NodeId, set[_HeldStream]] = {}

    @contextmanager
    def following(self) -> Iterator[None]:
        """Cut streams while the context lasts."""
        self._revocations.listeners.append(self._cut)
        try:
            yield
        finally:
            self._revocations.listeners.remove(self._cut)

    def check(self, context: Context) -> None:
        """Raises NodeRevoked. Costs next to nothing while nobody is revoked, and a look-up by the peer's name afterwards."""
        if self._revoked and (node_id := caller_of(context)) is not None and node_id in self._revoked:
            raise refusal_of(node_id)

    @contextmanager
    def holding(self, context: Context) -> Iterator[None]:
        """Around a stream's handler: it is cancelled when its peer is revoked, and NodeRevoked leaves the context then."""
        node_id, task = caller_of(context), asyncio.current_task()
        if node_id is None or task is None:
            yield
            return
        stream = _HeldStream(self, task)
        token = _served.set(stream)
        try:
            self.hold(stream, node_id)
            yield
        except asyncio.CancelledError:
            if stream.cut_for is not None and not task.uncancel():  # else the peer went away at the same time: that comes first
                raise refusal_of(stream.cut_for) from None
            raise
        finally:
            _served.reset(token)
            self._let_go(stream)

    def hold(self, stream: _HeldStream, node_id: NodeId) -> None:
        """This node holds it too. Raises NodeRevoked."""
        if node_id in self._revoked:
            raise refusal_of(node_id)
        stream.nodes.add(node_id)
        self._held.setdefault(node_id, set()).add(stream)

    def _let_go(self, stream: _HeldStream) -> None:
        for node_id in stream.nodes:
            streams = self._held[node_id]
            streams.discard(stream)
            if not streams:
                del self._held[node_id]

    def _cut(self, node_id: NodeId) -> None:
        for stream in self._held.get(node_id, ()):
            if stream.cut_for is None:
                stream.cut_for = node_id
                stream.task.cancel()


def also_held_by(node_id: NodeId) -> None:
    """Of the stream that is being served: it is for this node that the peer, an Envoy, speaks. No harm elsewhere.

    Raises NodeRevoked.
    """
    stream = _served.get()
    if stream is not None:
        stream.gate.hold(stream, node_id)


def caller_of(context: Context) -> NodeId | None:
    """The certified caller; None where the port asks for no certificate."""
    for name in context.peer_identities() or ():
        if name.startswith(_ROLE_URI):
            return NodeId(name.rpartition(b"/")[2].decode())
    return None
