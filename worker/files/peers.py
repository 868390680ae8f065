"""Workers nearby that hold a model, as origins of its files: found in etcd when a load needs them, read over mTLS.

What a record in etcd says is believed if its worker signed it and the mesh certified that worker; what a worker sends is not
believed at all, but verified by who receives it. Reads when asked and never watches. Decides who is asked: a few of those who
will give, in a random order, so that a model that many load at once comes from many.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc.aio
import structlog
from penstock.worker.v1 import worker_pb2, worker_pb2_grpc

from runtime.channel import inner_channel
from runtime.clock import Clock
from runtime.errors import PenstockError
from runtime.identity import NodeIdentity, Role
from runtime.ids import Digest, NodeId, Region, WorkerId, model_key, presence_key
from runtime.keyvalue import KeyValue, KeyValueStore
from runtime.records import RecordVerifier
from runtime.revocations import Revocations
from worker.files.origins import Origin
from worker.files.sharing import may_give
from worker.files.transfers import read_parts
from worker.life.lifecycle import CopyKey
from worker.presence_codec import HeldCopy, Whereabouts, read_held_copy, read_whereabouts

_MESSAGE_BYTES = 4 * 1024 * 1024
_log = structlog.get_logger("penstock.peers")


@dataclass(frozen=True, slots=True)
class PeerRules:
    at_most: int = 3
    """Workers asked for one load."""
    lookup_s: float = 2.0
    silence_s: float = 10.0


class WorkerOrigin:
    """One worker, as a `worker.files.origins.Origin`."""

    def __init__(self, worker_id: WorkerId, channel: grpc.aio.Channel, silence_s: float) -> None:
        self.name = f"worker {worker_id}"
        self._stub = worker_pb2_grpc.WorkerServiceStub(channel)
        self._silence_s = silence_s

    def fetch(self, sha256: Digest, offset_bytes: int) -> AsyncGenerator[bytes, None]:
        call = self._stub.ReadArtifact(worker_pb2.ReadArtifactRequest(sha256=sha256, offset_bytes=offset_bytes))
        return read_parts(
            call,
            worker_pb2.ReadArtifactResponse,
            lambda message: message.data,
            who=self.name,
            what=f"file {sha256}",
            silence_s=self._silence_s,
        )


class NearbyWorkers:
    """Implements `worker.files.origins.Peers` for one worker of a region."""

    def __init__(
        self,
        store: KeyValueStore,
        region: Region,
        identity: NodeIdentity,
        clock: Clock,
        rng: random.Random,
        rules: PeerRules | None = None,
        *,
        revocations: Revocations | None = None,
    ) -> None:
        self._store, self._region, self._identity, self._clock, self._rng = store, region, identity, clock, rng
        self._rules = rules or PeerRules()
        self._verifier = RecordVerifier(identity.authority_pem, revocations=revocations)

    @asynccontextmanager
    async def holding(self, key: CopyKey, digest: Digest) -> AsyncGenerator[Sequence[Origin], None]:
        async with AsyncExitStack() as stack:
            origins: list[Origin] = []
            for worker_id, address in await self._found(key, digest):
                opening = inner_channel(
                    address, self._identity, Role.WORKER, node_id=NodeId(worker_id), message_bytes=_MESSAGE_BYTES
                )
                channel = await stack.enter_async_context(opening)
                origins.append(WorkerOrigin(worker_id, channel, self._rules.silence_s))
            yield origins

    async def _found(self, key: CopyKey, digest: Digest) -> list[tuple[WorkerId, str]]:
        try:
            async with asyncio.timeout(self._rules.lookup_s):
                return await self._looked_up(key, digest)
        except (PenstockError, TimeoutError) as error:
            _log.info("peers_unknown", model=key[0], version=key[1], why=str(error) or "etcd did not answer in time")
            return []

    async def _looked_up(self, key: CopyKey, digest: Digest) -> list[tuple[WorkerId, str]]:
        prefix = model_key(*key, self._region, WorkerId(""))
        items = (await self._store.range(prefix)).items
        copies = [copy for item in items if (copy := self._copy_of(item, key)) is not None]
        others = [copy.worker_id for copy in copies if copy.is_ready and copy.digest == digest]
        others = [worker_id for worker_id in others if worker_id != WorkerId(self._identity.node_id)]
        self._rng.shuffle(others)
        found: list[tuple[WorkerId, str]] = []
        for worker_id in others[: self._rules.at_most]:
            item = await self._store.get(presence_key(self._region, worker_id))
            if item is not None and (where := self._whereabouts_of(item)) is not None and where.address:
                found.append((worker_id, where.address))
        return found

    def _copy_of(self, item: KeyValue, key: CopyKey) -> HeldCopy | None:
        """What the record says, if the worker under whose key it lies signed it."""
        try:
            record = self._verifier.open(item.value, now_wall_s=self._clock.wall_s())
            copy = read_held_copy(record.payload)
        except PenstockError as error:
            _log.warning("record_refused", key=item.key, why=error.message)
            return None
        its_own = record.signer.role is Role.WORKER and WorkerId(record.signer.node_id) == copy.worker_id
        if not may_give(record.signer.tenants, self._identity.certificate.peer.tenants):
            return None
        return copy if its_own and item.key == model_key(*key, self._region, copy.worker_id) else None

    def _whereabouts_of(self, item: KeyValue) -> Whereabouts | None:
        try:
            record = self._verifier.open(item.value, now_wall_s=self._clock.wall_s())
            where = read_whereabouts(record.payload)
        except PenstockError as error:
            _log.warning("record_refused", key=item.key, why=error.message)
            return None
        its_own = record.signer.role is Role.WORKER and WorkerId(record.signer.node_id) == where.worker_id
        return where if its_own and item.key == presence_key(self._region, where.worker_id) else None
