"""Rows of the tables of models as nouns, and back. Their seals are `sql.py`'s."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from registry.models.types import (
    AliasMove,
    AliasState,
    Model,
    MoveKind,
    PendingMove,
    SignedBytes,
    Signer,
    StoredVersion,
    VersionSummary,
)
from runtime.ids import Digest, ModelName, NodeId, TenantId


def model_of(row: Row[Any]) -> Model:
    shared_with = frozenset(row.shared_with)
    return Model(ModelName(row.model), TenantId(row.tenant), row.description, shared_with, row.created_at_ms, row.generation)


def version_of(row: Row[Any]) -> StoredVersion:
    summary = VersionSummary(
        model=ModelName(row.model),
        number=row.number,
        digest=Digest(row.digest),
        engine=row.engine,
        task=row.task,
        size_bytes=row.size_bytes,
        published_at_ms=row.published_at_ms,
        signer_id=NodeId(row.signer_id),
        withdrawn_at_ms=row.withdrawn_at_ms,
        withdrawn_because=row.withdrawn_because,
    )
    return StoredVersion(summary, SignedBytes(row.manifest, row.signature, row.ed25519_public_key))


def alias_of(row: Row[Any]) -> AliasState:
    pending = None
    if row.pending_number:
        kind = MoveKind(row.pending_kind)
        pending = PendingMove(
            row.pending_number, row.pending_weight, row.pending_since_ms, kind, row.pending_by, row.pending_promotes
        )
    return AliasState(row.alias, row.number, row.weight, row.generation, row.moved_at_ms, pending)


def alias_row(model: ModelName, state: AliasState) -> dict[str, Any]:
    pending = state.pending
    return {
        "model": model,
        "alias": state.alias,
        "number": state.number,
        "weight": state.weight,
        "generation": state.generation,
        "moved_at_ms": state.moved_at_ms,
        "pending_number": pending.number if pending else 0,
        "pending_weight": pending.weight if pending else 0,
        "pending_since_ms": pending.since_ms if pending else 0,
        "pending_promotes": pending.promotes if pending else "",
        "pending_kind": pending.kind.value if pending else "",
        "pending_by": pending.by if pending else "",
    }


def move_of(row: Row[Any]) -> AliasMove:
    return AliasMove(
        row.alias, row.generation, row.from_number, row.to_number, row.weight, row.at_ms, row.by, MoveKind(row.kind), row.reason
    )


def signer_of(row: Row[Any]) -> Signer:
    return Signer(**{name: getattr(row, name) for name in Signer.__slots__})
