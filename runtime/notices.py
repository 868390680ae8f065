"""What the registry tells the whole mesh: which versions a model's names mean, what is withdrawn, who is revoked.

A codec over the registry's notices in etcd, and the view that a process keeps of them. A notice is believed if a registry of
this mesh signed it and it lies under the name that it tells of. What was heard is never forgotten for being gone from etcd: an
etcd that is away, empty or cleared gives nobody back a right that was taken. Never decides what follows from a notice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from google.protobuf.message import DecodeError
from penstock.registry.v1 import models_pb2, notices_pb2

from runtime.clock import Clock, SystemClock
from runtime.errors import Code, PenstockError
from runtime.identity import Role
from runtime.ids import (
    EVERY_TENANT,
    REGISTRY_PREFIX,
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
from runtime.keyvalue import KeyValue, KeyValueStore, Put, Snapshot, Watch
from runtime.records import RecordVerifier, VerifiedRecord
from runtime.revocations import Revocations

STABLE = "stable"
_KEYS, _MODELS, _NODES = (REGISTRY_PREFIX + kind for kind in ("keys/", "models/", "nodes/"))
_AT_A_TIME = 32
"""Records checked before others get their turn: some 5 ms."""

_log = structlog.get_logger("penstock.notices")


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


class NoticeBoard:
    """What this process knows of the registry's notices. Belongs to one event loop; listeners must not fail."""

    def __init__(self, revocations: Revocations | None = None) -> None:
        self.revocations = revocations or Revocations()
        self.models: dict[ModelName, ModelNotice] = {}
        self.synced = False
        """Whether etcd was seen at all; before that nothing known means nothing."""
        self.on_model: list[Callable[[ModelName], None]] = []
        self.on_key: list[Callable[[KeyId], None]] = []
        self.on_resync: list[Callable[[], None]] = []
        """Everything was read anew: of keys that changed meanwhile, some may have gone unheard."""

    def model(self, model: ModelName) -> ModelNotice | None:
        return self.models.get(model)

    def is_withdrawn(self, model: ModelName, digest: Digest) -> bool:
        notice = self.models.get(model)
        return notice is not None and digest in notice.withdrawn

    def hear_model(self, notice: ModelNotice) -> None:
        """Take it over, unless a newer one is known."""
        known = self.models.get(notice.model)
        if known is not None and known.generation > notice.generation:
            return
        self.models[notice.model] = notice
        for told in self.on_model:
            told(notice.model)

    def hear_key(self, key_id: KeyId) -> None:
        for told in self.on_key:
            told(key_id)

    def hear_node(self, node_id: NodeId) -> None:
        self.revocations.add(node_id)

    @asynccontextmanager
    async def following(
        self, store: KeyValueStore, verifier: RecordVerifier, clock: Clock | None = None
    ) -> AsyncIterator[None]:
        """Hear what is told while the context lasts. Entering does not wait for etcd; losing it leaves the last view."""
        async with store.watch(REGISTRY_PREFIX) as watch:
            task = asyncio.create_task(self._follow(watch, verifier, clock or SystemClock()), name="notices")
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _follow(self, watch: Watch, verifier: RecordVerifier, clock: Clock) -> None:
        async for update in watch:
            if isinstance(update, Snapshot):
                # Nodes first: what a revoked registry signed is not to be believed for a moment.
                await self._hear(sorted(update.items, key=lambda item: not item.key.startswith(_NODES)), verifier, clock)
                self.synced = True
                for resynced in self.on_resync:
                    resynced()
                _log.info("notices_synced", models=len(self.models), revision=update.revision)
            else:
                await self._hear((event.item for event in update.events if isinstance(event, Put)), verifier, clock)

    async def _hear(self, items: Iterable[KeyValue], verifier: RecordVerifier, clock: Clock) -> None:
        for number, item in enumerate(items, 1):
            try:
                self._hear_one(item.key, verifier.open(item.value, now_wall_s=clock.wall_s()))
            except PenstockError as error:
                _log.warning("notice_refused", key=item.key[:300], why=error.message)
            except Exception as error:  # a listener failed: that must not keep anybody from hearing of a revocation
                _log.error("notice_not_taken", key=item.key[:300], exc_info=error)
            if number % _AT_A_TIME == 0:
                await asyncio.sleep(0)

    def _hear_one(self, key: str, record: VerifiedRecord) -> None:
        if key.startswith(_MODELS):
            notice = model_notice_of(key, record)
            if record.signer.node_id in self.revocations:
                raise NoticeRefused(f"node {record.signer.node_id}, which signed this, was revoked")
            self.hear_model(notice)
        elif key.startswith(_KEYS):  # this kind and the next only take away: a registry revoked since may have told them
            self.hear_key(key_notice_of(key, record).key_id)
        elif key.startswith(_NODES):
            self.hear_node(node_notice_of(key, record).node_id)


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


def _read(message: notices_pb2.ModelNotice | notices_pb2.KeyNotice | notices_pb2.NodeNotice, record: VerifiedRecord) -> None:
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
