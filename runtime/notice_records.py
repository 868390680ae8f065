"""The registry's notices as values, and as the bytes that a registry signs.

A codec over what lies in etcd under the registry's prefix. A notice is believed if a registry of this mesh signed it and it
lies under the name that it tells of; whether its signer is still of the mesh is for the reader to know. Never decides what
follows from a notice.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError
from penstock.registry.v1 import models_pb2, notices_pb2

from runtime.errors import Code, PenstockError
from runtime.identity import Role
from runtime.ids import (
    EVERY_TENANT,
    LIMITS_NOTICE_KEY,
    Digest,
    KeyId,
    ModelName,
    ModelVersion,
    NodeId,
    TenantId,
    key_notice_key,
    model_notice_key,
    node_notice_key,
)
from runtime.records import VerifiedRecord

STABLE = "stable"
_Message = notices_pb2.ModelNotice | notices_pb2.KeyNotice | notices_pb2.NodeNotice | notices_pb2.LimitsNotice


class NoticeRefused(PenstockError, code=Code.PERMISSION_DENIED, reason="NOTICE_REFUSED"):
    """What lies where a notice should is none, or nobody signed it who may."""


@dataclass(frozen=True, slots=True)
class PendingTarget:
    version: ModelVersion
    digest: Digest
    weight: int
    since_ms: int
    promotes: str = ""


@dataclass(frozen=True, slots=True)
class AliasTarget:
    """A name for a version. `version` is empty while its first target is being warmed."""

    alias: str
    version: ModelVersion
    digest: Digest
    weight: int
    generation: int
    pending: PendingTarget | None = None


@dataclass(frozen=True, slots=True)
class ModelNotice:
    """What routing and loading have to know of a model."""

    model: ModelName
    tenant: TenantId
    shared_with: frozenset[str]
    aliases: tuple[AliasTarget, ...] = ()
    withdrawn: frozenset[Digest] = frozenset()
    withdrawn_versions: frozenset[ModelVersion] = frozenset()
    revoked_signers: frozenset[str] = frozenset()
    generation: int = 0

    @property
    def callers(self) -> frozenset[str]:
        """Tenants that may call the model; EVERY_TENANT among them: all."""
        return self.shared_with | {self.tenant}

    def allows(self, tenant: TenantId) -> bool:
        """Whether this tenant may call the model."""
        return tenant == self.tenant or tenant in self.shared_with or EVERY_TENANT in self.shared_with

    def alias(self, name: str) -> AliasTarget | None:
        return next((target for target in self.aliases if target.alias == name), None)


@dataclass(frozen=True, slots=True)
class KeyNotice:
    """Something about an API key is another now."""

    key_id: KeyId
    changed_at_ms: int


@dataclass(frozen=True, slots=True)
class NodeNotice:
    """A node is out of the mesh."""

    node_id: NodeId
    revoked_at_ms: int


@dataclass(frozen=True, slots=True)
class LimitsNotice:
    """The limits of this mesh are others now."""

    generation: int
    """A notice with a lower one is older."""


def model_payload(notice: ModelNotice) -> bytes:
    """The notice as it is signed; the same notice gives the same bytes. Withdrawn numbers and digests stand by themselves."""
    withdrawn = [notices_pb2.WithdrawnVersion(digest=digest) for digest in sorted(notice.withdrawn)]
    withdrawn += [notices_pb2.WithdrawnVersion(version=version) for version in sorted(notice.withdrawn_versions)]
    return notices_pb2.ModelNotice(
        model=notice.model,
        tenant=notice.tenant,
        shared_with=sorted(notice.shared_with),
        aliases=[_alias_message(target) for target in sorted(notice.aliases, key=lambda target: target.alias)],
        withdrawn=withdrawn,
        revoked_signers=sorted(notice.revoked_signers),
        generation=notice.generation,
    ).SerializeToString(deterministic=True)


def key_payload(notice: KeyNotice) -> bytes:
    return notices_pb2.KeyNotice(key_id=notice.key_id, changed_at_ms=notice.changed_at_ms).SerializeToString()


def node_payload(notice: NodeNotice) -> bytes:
    return notices_pb2.NodeNotice(node_id=notice.node_id, revoked_at_ms=notice.revoked_at_ms).SerializeToString()


def limits_payload(notice: LimitsNotice) -> bytes:
    return notices_pb2.LimitsNotice(generation=notice.generation).SerializeToString()


def model_notice_of(key: str, record: VerifiedRecord) -> ModelNotice:
    """Raises NoticeRefused, also for one that lies under another's name."""
    message = notices_pb2.ModelNotice()
    _read(message, record)
    # A notice about no tenant's model would be one that was signed as something else.
    if not message.tenant or key != model_notice_key(ModelName(message.model)):
        raise NoticeRefused(f"what lies at {key[:300]} tells of model {message.model[:128]!r}")
    return ModelNotice(
        ModelName(message.model),
        TenantId(message.tenant),
        frozenset(message.shared_with),
        tuple(_alias_of(alias) for alias in message.aliases),
        frozenset(Digest(each.digest) for each in message.withdrawn if each.digest),
        frozenset(ModelVersion(each.version) for each in message.withdrawn if each.version),
        frozenset(message.revoked_signers),
        message.generation,
    )


def key_notice_of(key: str, record: VerifiedRecord) -> KeyNotice:
    """Raises NoticeRefused."""
    message = notices_pb2.KeyNotice()
    _read(message, record)
    if key != key_notice_key(KeyId(message.key_id)):
        raise NoticeRefused(f"what lies at {key[:300]} tells of key {message.key_id[:64]!r}")
    return KeyNotice(KeyId(message.key_id), message.changed_at_ms)


def node_notice_of(key: str, record: VerifiedRecord) -> NodeNotice:
    """Raises NoticeRefused."""
    message = notices_pb2.NodeNotice()
    _read(message, record)
    if key != node_notice_key(NodeId(message.node_id)):
        raise NoticeRefused(f"what lies at {key[:300]} tells of node {message.node_id[:64]!r}")
    return NodeNotice(NodeId(message.node_id), message.revoked_at_ms)


def limits_notice_of(key: str, record: VerifiedRecord) -> LimitsNotice:
    """Raises NoticeRefused."""
    message = notices_pb2.LimitsNotice()
    _read(message, record)
    # A notice of no change would be one that was signed as something else.
    if key != LIMITS_NOTICE_KEY or not message.generation:
        raise NoticeRefused(f"what lies at {key[:300]} tells of generation {message.generation} of the limits")
    return LimitsNotice(message.generation)


def _read(message: _Message, record: VerifiedRecord) -> None:
    if record.signer.role is not Role.REGISTRY:
        raise NoticeRefused(f"{record.signer.role.value} {record.signer.node_id} signed this; only a registry's word counts")
    try:
        message.ParseFromString(record.payload)
    except DecodeError as error:
        raise NoticeRefused(
            f"{len(record.payload)} bytes that registry {record.signer.node_id} signed are no notice"
        ) from error


def _alias_message(target: AliasTarget) -> models_pb2.Alias:
    message = models_pb2.Alias(
        alias=target.alias,
        version=target.version,
        digest=target.digest,
        weight=target.weight,
        generation=target.generation,
    )
    if (pending := target.pending) is not None:
        message.pending.CopyFrom(
            models_pb2.PendingMove(
                version=pending.version,
                digest=pending.digest,
                weight=pending.weight,
                since_ms=pending.since_ms,
                promotes=pending.promotes,
            )
        )
    return message


def _alias_of(message: models_pb2.Alias) -> AliasTarget:
    pending = None
    if message.HasField("pending"):
        coming = message.pending
        pending = PendingTarget(
            ModelVersion(coming.version), Digest(coming.digest), coming.weight, coming.since_ms, coming.promotes
        )
    return AliasTarget(
        message.alias, ModelVersion(message.version), Digest(message.digest), message.weight, message.generation, pending
    )
