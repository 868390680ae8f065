"""This worker's place in the fleet: signed records under its lease.

One record of the worker itself, written anew at every heartbeat and as soon as a copy changes; one for each copy, written
when it changes and gone with it. Records are numbered from the wall clock, so that a restarted worker goes on above its
former self. Changes of one loop turn make one record. Leaving revokes the lease, which takes everything away at once.

Owns the records. Never decides what is loaded; whether etcd is there is the lease's business.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import structlog
from penstock.worker.v1 import worker_pb2

from runtime.backoff import sleep_unless
from runtime.clock import Clock
from runtime.identity import NodeIdentity
from runtime.ids import ModelName, ModelVersion, model_key, presence_key
from runtime.keyvalue import Lease
from runtime.records import sign_record
from worker.life.lifecycle import Holdings
from worker.presence_codec import Stamp, WorkerFacts, copy_messages, model_presence_bytes, presence_bytes
from worker.threads import in_thread

_log = structlog.get_logger("penstock.presence")


class LeaseStore(Protocol):
    """What presence needs of the mesh's shared memory."""

    def lease(self, *, ttl_s: int = 15) -> AbstractAsyncContextManager[Lease]: ...


@dataclass(frozen=True, slots=True)
class PresenceTiming:
    lease_ttl_s: int = 15
    heartbeat_s: float = 5.0
    heartbeat_jitter: float = 0.1
    """Up to this part earlier, so that a fleet does not beat as one."""


class Presence:
    """The records of one worker."""

    def __init__(
        self,
        facts: WorkerFacts,
        identity: NodeIdentity,
        holdings: Holdings,
        clock: Clock,
        rng: random.Random,
        *,
        draining: Callable[[], bool] = lambda: False,
        disk_free_bytes: Callable[[], int] | None = None,
        timing: PresenceTiming | None = None,
    ) -> None:
        self._facts, self._identity, self._holdings = facts, identity, holdings
        self._clock, self._rng, self._draining = clock, rng, draining
        self._disk_free_bytes = disk_free_bytes
        self._timing = timing or PresenceTiming()
        self._changed = holdings.watch()
        self._sequence = 0
        self._told: dict[str, bytes] = {}
        """What each copy's key says, without its number and time."""
        self._lease_id = 0

    @asynccontextmanager
    async def joined(self, store: LeaseStore) -> AsyncIterator[Lease]:
        """Be in the fleet while the context lasts."""
        async with store.lease(ttl_s=self._timing.lease_ttl_s) as lease:
            telling = asyncio.create_task(self._tell(lease), name="presence")
            try:
                yield lease
            finally:
                telling.cancel()
                with suppress(asyncio.CancelledError):
                    await telling

    async def _tell(self, lease: Lease) -> None:
        disk_free_bytes = self._facts.hardware.disk_free_bytes
        while True:
            self._changed.clear()
            try:
                if self._disk_free_bytes is not None:
                    disk_free_bytes = await in_thread(self._disk_free_bytes)
                self._put(lease, disk_free_bytes)
            except Exception as error:  # the next heartbeat is another attempt; the fleet would lose this worker otherwise
                _log.error("presence_broke", exc_info=error)
            early_s = self._timing.heartbeat_s * self._timing.heartbeat_jitter * self._rng.random()
            await sleep_unless(self._clock, self._timing.heartbeat_s - early_s, self._changed)

    def _put(self, lease: Lease, disk_free_bytes: int) -> None:
        facts, copies = self._facts, copy_messages(self._holdings, draining=self._draining())
        record = presence_bytes(facts, copies, self._stamp(), disk_free_bytes=disk_free_bytes)
        lease.put(presence_key(facts.region, facts.worker_id), sign_record(self._identity, record))
        if lease.id != self._lease_id:  # granted anew: the old records would be written again with their old time
            self._lease_id, told = lease.id, dict.fromkeys(self._told, b"")
        else:
            told = self._told
        self._told = {self._key(copy): copy.SerializeToString(deterministic=True) for copy in copies}
        for copy in copies:
            key = self._key(copy)
            if told.get(key) != self._told[key]:
                lease.put(key, sign_record(self._identity, model_presence_bytes(facts, copy, self._stamp())))
        for key in told.keys() - self._told.keys():
            lease.delete(key)

    def _key(self, copy: worker_pb2.ModelCopy) -> str:
        return model_key(ModelName(copy.model), ModelVersion(copy.version), self._facts.region, self._facts.worker_id)

    def _stamp(self) -> Stamp:
        wall_ms = int(self._clock.wall_s() * 1000)
        self._sequence = max(self._sequence + 1, wall_ms)
        return Stamp(self._sequence, wall_ms)
