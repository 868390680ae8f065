"""The KeyValueStore in this process's memory: for loops under test, and for a service that runs alone.

Owns leases' time, by the clock it is given, and outages on request. Its leases and watches are kept by the same code that keeps
etcd's. Nothing outlives the process, and nobody else sees it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Self

from runtime.backoff import sleep_unless
from runtime.clock import Clock, SystemClock
from runtime.keyvalue import (
    Changes,
    Compare,
    EtcdUnavailable,
    KeyValue,
    LeaseNotFound,
    Read,
    Remove,
    Snapshot,
    Step,
    TxnResult,
    Write,
)
from runtime.lease import Granted, KeptLease, LeaseTiming, held_lease
from runtime.memory_history import History
from runtime.watch import ResumingWatch, Stamp, WatchTiming, followed_prefix, stamp_of


class MemoryStore:
    """A KeyValueStore without etcd, open while its context lasts."""

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        lease_timing: LeaseTiming | None = None,
        watch_timing: WatchTiming | None = None,
        kept_revisions: int = 10_000,
    ) -> None:
        self._clock = clock or SystemClock()
        self._rng = rng or random.SystemRandom()
        self._lease_timing = lease_timing or LeaseTiming()
        self._watch_timing = watch_timing or WatchTiming()
        self._kept_revisions = kept_revisions
        self._history = History(kept_revisions)
        self._leases: dict[int, tuple[float, float]] = {}  # id: (ttl_s, expires_at_s)
        self._away = False
        self._connection = 0
        self._moved = asyncio.Event()
        self._leases_moved = asyncio.Event()
        self._reaper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._reaper = asyncio.create_task(self._reap(), name="memory leases")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reaper is not None:
            self._reaper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reaper

    def go_away(self) -> None:
        """Answer nothing and break every watch, as an etcd that is down."""
        self._away = True
        self._connection += 1
        self._move()

    def come_back(self, *, empty: bool = False) -> None:
        """Answer again; empty: as an etcd whose data is lost."""
        if empty:
            self._history = History(self._kept_revisions)
            self._leases.clear()
        self._away = False
        self._move()

    async def compact(self, revision: int) -> None:
        """Forget the history before the revision."""
        (await self._reached()).compact(revision)
        self._move()

    async def get(self, key: str) -> KeyValue | None:
        return (await self.txn((), (Read(key),))).reads[0]

    async def range(self, prefix: str) -> Snapshot:
        history = await self._reached()
        return Snapshot(history.under(prefix), history.revision)

    async def put(self, key: str, value: bytes, *, lease_id: int = 0) -> int:
        return (await self.txn((), (Write(key, value, lease_id),))).revision

    async def delete(self, key: str) -> bool:
        return (await self.txn((), (Read(key), Remove(key)))).reads[0] is not None

    async def delete_prefix(self, prefix: str) -> int:
        history = await self._reached()
        deleted = history.delete(item.key for item in history.under(prefix))
        self._move()
        return deleted

    async def txn(self, compares: Sequence[Compare], success: Sequence[Step], failure: Sequence[Step] = ()) -> TxnResult:
        history = await self._reached()
        succeeded = history.hold(compares)
        steps = tuple(success if succeeded else failure)
        for step in steps:
            if isinstance(step, Write) and step.lease_id:
                self._lease(step.lease_id)
        reads = history.take(steps)
        self._move()
        return TxnResult(succeeded, history.revision, reads)

    def watch(self, prefix: str) -> AbstractAsyncContextManager[ResumingWatch]:
        return followed_prefix(self, prefix, clock=self._clock, rng=self._rng, timing=self._watch_timing)

    def lease(self, *, ttl_s: int = 15) -> AbstractAsyncContextManager[KeptLease]:
        return held_lease(self, ttl_s, clock=self._clock, rng=self._rng, timing=self._lease_timing)

    async def grant_lease(self, ttl_s: int) -> Granted:
        await self._reached()
        lease_id = self._rng.getrandbits(62) + 1
        self._leases[lease_id] = (ttl_s, self._clock.monotonic_s() + ttl_s)
        self._leases_moved.set()
        return Granted(lease_id, ttl_s)

    async def renew_lease(self, lease_id: int) -> float:
        await self._reached()
        ttl_s = self._lease(lease_id)
        self._leases[lease_id] = (ttl_s, self._clock.monotonic_s() + ttl_s)
        return ttl_s

    async def lease_keys(self, lease_id: int) -> frozenset[str]:
        history = await self._reached()
        self._lease(lease_id)
        return history.carrying(lease_id)

    async def revoke_lease(self, lease_id: int) -> None:
        await self._reached()
        self._lease(lease_id)
        self._end_lease(lease_id)

    async def stamps_at(self, prefix: str, revision: int) -> Mapping[str, Stamp]:
        history = await self._reached()
        return {item.key: stamp_of(item) for item in history.under_at(prefix, revision)}

    @asynccontextmanager
    async def changes(self, prefix: str, after_revision: int) -> AsyncIterator[MemoryChanges]:
        history = await self._reached()
        history.since(after_revision, prefix)
        yield MemoryChanges(self, prefix, after_revision, self._connection)

    async def next_changes(self, prefix: str, after_revision: int, connection: int) -> Changes:
        """What happened after the revision, once something has. Raises EtcdUnavailable if the connection broke meanwhile."""
        while True:
            if connection != self._connection:
                raise EtcdUnavailable("the in-memory store went away")
            self._expire()
            changes = self._history.since(after_revision, prefix)
            if changes.revision > after_revision:
                return changes
            await self._moved.wait()

    async def _reached(self) -> History:
        await asyncio.sleep(0)  # as over a network, others get a turn
        if self._away:
            raise EtcdUnavailable("the in-memory store is away")
        self._expire()
        return self._history

    def _lease(self, lease_id: int) -> float:
        """The time the lease was given. Raises LeaseNotFound."""
        if lease_id not in self._leases:
            raise LeaseNotFound(f"there is no lease {lease_id:x}; it has to be granted again")
        return self._leases[lease_id][0]

    def _end_lease(self, lease_id: int) -> None:
        del self._leases[lease_id]
        self._history.delete(self._history.carrying(lease_id))
        self._leases_moved.set()
        self._move()

    def _expire(self) -> None:
        now_s = self._clock.monotonic_s()
        for lease_id in [lease_id for lease_id, (_, expires_at_s) in self._leases.items() if expires_at_s <= now_s]:
            self._end_lease(lease_id)

    async def _reap(self) -> None:
        """End leases when their time is over, also when nobody asks."""
        while True:
            self._leases_moved.clear()
            self._expire()
            next_s = min((expires_at_s for _, expires_at_s in self._leases.values()), default=float("inf"))
            if next_s == float("inf"):
                await self._leases_moved.wait()
            else:
                await sleep_unless(self._clock, next_s - self._clock.monotonic_s(), self._leases_moved)

    def _move(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()


class MemoryChanges:
    """A place in the history that moves on as it is read."""

    def __init__(self, store: MemoryStore, prefix: str, after_revision: int, connection: int) -> None:
        self._store, self._prefix, self._revision, self._connection = store, prefix, after_revision, connection

    async def read(self) -> Changes:
        changes = await self._store.next_changes(self._prefix, self._revision, self._connection)
        self._revision = changes.revision
        return changes
