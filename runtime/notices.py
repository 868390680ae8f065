"""What the registry tells the whole mesh: which versions a model's names mean, what is withdrawn, who is revoked.

The view that a process keeps of the registry's notices in etcd; what they are is `notice_records.py`'s. What was heard is
never forgotten for being gone from etcd: an etcd that is away, empty or cleared gives nobody back a right that was taken. Never
decides what follows from a notice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import structlog

from runtime.clock import Clock, SystemClock
from runtime.errors import PenstockError
from runtime.ids import LIMITS_NOTICE_KEY, REGISTRY_PREFIX, Digest, KeyId, ModelName, NodeId
from runtime.keyvalue import KeyValue, KeyValueStore, Put, Snapshot, Watch
from runtime.notice_records import (
    STABLE,
    AliasTarget,
    KeyNotice,
    LimitsNotice,
    ModelNotice,
    NodeNotice,
    NoticeRefused,
    PendingTarget,
    key_notice_of,
    key_payload,
    limits_notice_of,
    limits_payload,
    model_notice_of,
    model_payload,
    node_notice_of,
    node_payload,
)
from runtime.records import RecordVerifier, VerifiedRecord
from runtime.revocations import Revocations

__all__ = [
    "STABLE",
    "AliasTarget",
    "KeyNotice",
    "LimitsNotice",
    "ModelNotice",
    "NodeNotice",
    "NoticeBoard",
    "NoticeRefused",
    "PendingTarget",
    "key_notice_of",
    "key_payload",
    "limits_notice_of",
    "limits_payload",
    "model_notice_of",
    "model_payload",
    "node_notice_of",
    "node_payload",
]

_KEYS, _MODELS, _NODES = (REGISTRY_PREFIX + kind for kind in ("keys/", "models/", "nodes/"))
_AT_A_TIME = 32
"""Records checked before others get their turn: some 5 ms."""

_log = structlog.get_logger("penstock.notices")


class NoticeBoard:
    """What this process knows of the registry's notices. Belongs to one event loop; listeners must not fail."""

    def __init__(self, revocations: Revocations | None = None) -> None:
        self.revocations = revocations or Revocations()
        self.models: dict[ModelName, ModelNotice] = {}
        self.synced = False
        """Whether etcd was seen at all; before that nothing known means nothing."""
        self.on_model: list[Callable[[ModelName], None]] = []
        self.on_key: list[Callable[[KeyId], None]] = []
        self.limits_generation = 0
        """Of the limits, as far as was heard; 0 = nothing was."""
        self.on_limits: list[Callable[[], None]] = []
        """The limits changed: what keys were resolved with may be old."""
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

    def hear_limits(self, notice: LimitsNotice) -> None:
        """Pass it on, unless it or a newer one was heard."""
        if notice.generation <= self.limits_generation:
            return
        self.limits_generation = notice.generation
        for told in self.on_limits:
            told()

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
        elif key.startswith(_KEYS):  # this kind and the next ones only take away: a registry revoked since may have told them
            self.hear_key(key_notice_of(key, record).key_id)
        elif key.startswith(_NODES):
            self.hear_node(node_notice_of(key, record).node_id)
        elif key == LIMITS_NOTICE_KEY:
            self.hear_limits(limits_notice_of(key, record))
