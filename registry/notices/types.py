"""The nouns of telling: whom something is about, what the database says of it, what etcd says of it."""

from __future__ import annotations

from dataclasses import dataclass

from registry.notices.outbox import NoticeKind
from runtime.ids import LIMITS_NOTICE_KEY, KeyId, ModelName, NodeId, key_notice_key, model_notice_key, node_notice_key
from runtime.keyvalue import KeyValue


@dataclass(frozen=True, slots=True)
class Subject:
    """What a notice is about."""

    kind: NoticeKind
    name: str
    """Empty for what there is one of."""

    @property
    def key(self) -> str:
        """Where its notice lies in etcd."""
        if self.kind is NoticeKind.MODEL:
            return model_notice_key(ModelName(self.name))
        if self.kind is NoticeKind.KEY:
            return key_notice_key(KeyId(self.name))
        if self.kind is NoticeKind.LIMITS:
            return LIMITS_NOTICE_KEY
        return node_notice_key(NodeId(self.name))


@dataclass(frozen=True, slots=True)
class Waiting:
    """A row of the outbox."""

    notice: int
    subject: Subject | None
    """None: of a kind that this release does not know."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What the mesh is to be told, as the database has it."""

    payload: bytes
    generation: int = 0
    """Of a model, or of all limits; 0 for what has none."""
    until_ms: int = 0
    """From when on nobody needs it any more; 0 = always."""


@dataclass(frozen=True, slots=True)
class Told:
    """What etcd has under a subject's key."""

    item: KeyValue | None = None
    payload: bytes | None = None
    """None: there is nothing, or it is not to be believed."""
    generation: int = 0

    @property
    def mod_revision(self) -> int:
        """What fences a write; 0: the key does not exist."""
        return self.item.mod_revision if self.item is not None else 0
