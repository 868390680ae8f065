"""Nodes that were put out of the mesh, as far as this process knows. Only ever grows while the process lives."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet

from runtime.errors import Code, PenstockError
from runtime.ids import NodeId


class NodeRevoked(PenstockError, code=Code.PERMISSION_DENIED, reason="NODE_REVOKED"):
    """The node was put out of this mesh, for good."""


def refusal_of(node_id: NodeId) -> NodeRevoked:
    return NodeRevoked(f"node {node_id} was revoked; to come back it has to enrol with a new key")


class Revocations:
    """Belongs to one event loop. Has no length on purpose: an empty one must not pass for none at all."""

    def __init__(self) -> None:
        self._revoked: set[NodeId] = set()
        self.listeners: list[Callable[[NodeId], None]] = []
        """Told of each node once."""

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._revoked

    @property
    def nodes(self) -> AbstractSet[NodeId]:
        """The set itself, which grows; for look-ups where each microsecond counts."""
        return self._revoked

    def add(self, node_id: NodeId) -> None:
        if node_id not in self._revoked:
            self._revoked.add(node_id)
            for told in tuple(self.listeners):
                told(node_id)
