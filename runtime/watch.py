"""Following a prefix for good: through broken streams, restarts, compaction, and a store that came back empty.

Decides whether the history can be followed on from where it broke, or whether everything is read again. It can when the store's
keys at the last revision seen, read from its history, carry the very numbers we hold: then nothing is missing between that
revision and the next change. A wiped store, another cluster or a lost tail fails this test, whatever its revision is by then.
Never talks to a store but through the WatchSource it is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import structlog

from runtime.backoff import DEFAULT_BACKOFF, Backoff
from runtime.clock import Clock
from runtime.errors import PenstockError
from runtime.keyvalue import Changes, KeyValue, Put, RevisionGone, Snapshot

_log = structlog.get_logger("penstock.watch")


class Stamp(NamedTuple):
    """What tells one writing of a key from another without its value."""

    create_revision: int
    mod_revision: int
    version: int
    lease_id: int


def stamp_of(item: KeyValue) -> Stamp:
    return Stamp(item.create_revision, item.mod_revision, item.version, item.lease_id)


class ChangeStream(Protocol):
    async def read(self) -> Changes:
        """The next changes; without events the history has come to `revision` quietly.

        Raises RevisionGone or EtcdUnavailable when the stream is over.
        """
        ...


class WatchSource(Protocol):
    """What a watch needs of a store. Everything may raise EtcdUnavailable."""

    async def range(self, prefix: str) -> Snapshot: ...

    async def stamps_at(self, prefix: str, revision: int) -> Mapping[str, Stamp]:
        """The keys there were at that revision. Raises RevisionGone."""
        ...

    def changes(self, prefix: str, after_revision: int) -> AbstractAsyncContextManager[ChangeStream]:
        """Everything after that revision. Entering returns when the store has agreed."""
        ...


@dataclass(frozen=True, slots=True)
class WatchTiming:
    """How a watch waits. A stream that lived this long ends the row of failures before it."""

    backoff: Backoff = DEFAULT_BACKOFF
    stable_s: float = 1.0
    waiting_updates: int = 64


@asynccontextmanager
async def followed_prefix(
    source: WatchSource, prefix: str, *, clock: Clock, rng: random.Random, timing: WatchTiming
) -> AsyncIterator[ResumingWatch]:
    """Follow while the context lasts."""
    watch = ResumingWatch(source, prefix, clock, rng, timing)
    following = asyncio.create_task(watch.follow(), name=f"watch {prefix}")
    try:
        yield watch
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


class ResumingWatch:
    """The Watch of runtime.keyvalue, over any WatchSource.

    A reader that falls behind by more than the waiting updates holds up the stream, not the memory.
    """

    def __init__(self, source: WatchSource, prefix: str, clock: Clock, rng: random.Random, timing: WatchTiming) -> None:
        self._source, self._prefix, self._clock, self._rng, self._timing = source, prefix, clock, rng, timing
        self._updates: asyncio.Queue[Snapshot | Changes] = asyncio.Queue(timing.waiting_updates)
        self._known: dict[str, Stamp] | None = None
        self._revision = 0
        self._connected_at_s: float | None = None
        self._synced_at_s = float("-inf")

    def __aiter__(self) -> ResumingWatch:
        return self

    async def __anext__(self) -> Snapshot | Changes:
        return await self._updates.get()

    @property
    def connected(self) -> bool:
        return self._connected_at_s is not None

    @property
    def synced_age_s(self) -> float:
        return 0.0 if self.connected else self._clock.monotonic_s() - self._synced_at_s

    async def follow(self) -> None:
        """Run until cancelled. Whatever fails is tried again."""
        failures = 0
        while True:
            connected_at_s: float | None = None
            try:
                await self._catch_up()
                async with self._source.changes(self._prefix, self._revision) as stream:
                    self._connected_at_s = connected_at_s = self._clock.monotonic_s()
                    await self._pass_on(stream)
            except Exception as error:
                failures = self._failed(error, failures, connected_at_s)
            await self._clock.sleep(self._timing.backoff.delay_s(failures, self._rng))

    async def _catch_up(self) -> None:
        if self._known is not None and await self._unbroken(self._known):
            return
        snapshot = await self._source.range(self._prefix)
        self._known = {item.key: stamp_of(item) for item in snapshot.items}
        self._revision = snapshot.revision
        self._synced_at_s = self._clock.monotonic_s()
        await self._updates.put(snapshot)
        _log.info("watch_synced", prefix=self._prefix, revision=snapshot.revision, keys=len(snapshot.items))

    async def _unbroken(self, known: dict[str, Stamp]) -> bool:
        try:
            return await self._source.stamps_at(self._prefix, self._revision) == known
        except RevisionGone:
            return False

    async def _pass_on(self, stream: ChangeStream) -> None:
        known = self._known if self._known is not None else {}
        while True:
            changes = await stream.read()
            self._revision = max(self._revision, changes.revision)
            for event in changes.events:
                if isinstance(event, Put):
                    known[event.key] = stamp_of(event.item)
                else:
                    known.pop(event.key, None)
            if changes.events:
                await self._updates.put(changes)

    def _failed(self, error: Exception, failures: int, connected_at_s: float | None) -> int:
        """Note the break and return the length of the row of failures."""
        now_s = self._clock.monotonic_s()
        self._connected_at_s = None
        if connected_at_s is not None:
            self._synced_at_s = now_s
            if now_s - connected_at_s >= self._timing.stable_s:
                failures = 0
        if failures == 0 and not isinstance(error, PenstockError):
            _log.error("watch_failed", prefix=self._prefix, exc_info=error)
        elif failures == 0 and isinstance(error, PenstockError):
            _log.warning("watch_broken", prefix=self._prefix, reason=error.reason, error=error.message)
        return failures + 1
