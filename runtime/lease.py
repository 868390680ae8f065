"""A lease that keeps itself: renewed at half of what remains, granted anew after a loss, its keys written again.

Decides when to renew, when the lease is lost and which keys have to be written. Level-triggered: `put` and `delete` change what
should be there, one loop brings it about. Never talks to a store but through the LeaseSource it is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from runtime.backoff import DEFAULT_BACKOFF, Backoff, sleep_unless
from runtime.clock import Clock
from runtime.errors import InvalidArgument, PenstockError
from runtime.keyvalue import (
    Aspect,
    Compare,
    EtcdAccessRefused,
    EtcdRequestRefused,
    LeaseFull,
    LeaseNotFound,
    Remove,
    Step,
    TxnResult,
)

LARGEST_TTL_S = 9_000_000_000  # etcd's lessor.go: MaxLeaseTTL
_log = structlog.get_logger("penstock.lease")


@dataclass(frozen=True, slots=True)
class Granted:
    """A lease as the store gave it; the time may be longer than what was asked for."""

    lease_id: int
    ttl_s: float


class LeaseSource(Protocol):
    """What a lease needs of a store. Everything may raise EtcdUnavailable."""

    async def grant_lease(self, ttl_s: int) -> Granted: ...

    async def renew_lease(self, lease_id: int) -> float:
        """Seconds the lease lasts from now. Raises LeaseNotFound."""
        ...

    async def lease_keys(self, lease_id: int) -> frozenset[str]:
        """The keys that go away with it. Raises LeaseNotFound."""
        ...

    async def revoke_lease(self, lease_id: int) -> None: ...

    async def put(self, key: str, value: bytes, *, lease_id: int = 0) -> int: ...

    async def txn(self, compares: Sequence[Compare], success: Sequence[Step], failure: Sequence[Step] = ()) -> TxnResult: ...


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """How a lease is kept. Source for jitter and for half of the remaining time: ai-dynamo/dynamo#4363, #7932."""

    renew_jitter: float = 0.2
    backoff: Backoff = DEFAULT_BACKOFF
    revoke_timeout_s: float = 2.0
    keys: int = 4096


@asynccontextmanager
async def held_lease(
    source: LeaseSource, ttl_s: int, *, clock: Clock, rng: random.Random, timing: LeaseTiming
) -> AsyncIterator[KeptLease]:
    """Keep a lease while the context lasts; leaving stops the loop, then revokes."""
    if not 1 <= ttl_s <= LARGEST_TTL_S:
        raise InvalidArgument(f"a lease cannot last {ttl_s} s; give 1 to {LARGEST_TTL_S}")
    lease = KeptLease(source, ttl_s, clock, rng, timing)
    keeping = asyncio.create_task(lease.keep(), name="lease")
    try:
        yield lease
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        await lease.revoke()


class KeptLease:
    """The Lease of runtime.keyvalue, over any LeaseSource."""

    def __init__(self, source: LeaseSource, ttl_s: int, clock: Clock, rng: random.Random, timing: LeaseTiming) -> None:
        self._source, self._ttl_s, self._clock, self._rng, self._timing = source, ttl_s, clock, rng, timing
        # While there is time, a row of failures leaves some attempts before the lease ends.
        self._backoff = replace(timing.backoff, max_s=min(timing.backoff.max_s, ttl_s / 4))
        self._lease_id = 0
        self._renew_at_s = self._expires_at_s = float("-inf")
        self._wanted: dict[str, bytes] = {}
        self._dirty: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._announced = (0, False, False)
        self._changed = asyncio.Event()

    @property
    def id(self) -> int:
        return self._lease_id

    @property
    def healthy(self) -> bool:
        return self._lease_id != 0 and self._clock.monotonic_s() < self._expires_at_s

    @property
    def settled(self) -> bool:
        return self.healthy and not self._dirty

    def put(self, key: str, value: bytes) -> None:
        if not key:
            raise EtcdRequestRefused("a key under a lease needs a name")
        if key not in self._wanted and len(self._wanted) >= self._timing.keys:
            raise LeaseFull(f"this lease carries {self._timing.keys} keys already; {key} would be one too many")
        self._wanted[key] = value
        self._mark(key)

    def delete(self, key: str) -> None:
        if self._wanted.pop(key, None) is not None:
            self._mark(key)

    async def changed(self) -> None:
        await self._changed.wait()

    async def settle(self) -> None:
        while not self.settled:
            await self._changed.wait()

    async def keep(self) -> None:
        """Run until cancelled. Whatever fails is tried again."""
        failures = losses = 0
        while True:
            try:
                await self._advance()
                failures = losses = 0
            except LeaseNotFound:
                self._lose()
                losses += 1
                failures = losses  # the store answered: how long it was silent before is over
            except Exception as error:
                failures += 1
                self._report(error, failures)
            self._announce()
            await self._pause(failures)

    async def revoke(self) -> None:
        """End the lease now, if the store can be told; else it ends by itself."""
        lease_id, self._lease_id = self._lease_id, 0
        self._announce()
        if lease_id == 0:
            return
        try:
            async with asyncio.timeout(self._timing.revoke_timeout_s):
                await self._source.revoke_lease(lease_id)
        except LeaseNotFound:
            pass
        except (PenstockError, TimeoutError) as error:
            _log.warning("lease_left_to_expire", lease_id=lease_id, ttl_s=self._ttl_s, error=str(error))

    def _mark(self, key: str) -> None:
        self._dirty[key] = None
        self._wake.set()
        self._announce()

    async def _advance(self) -> None:
        """Hold the lease, then write what is to be written. New wishes may come in meanwhile; they set the wake event again."""
        self._wake.clear()
        if self._lease_id == 0:
            await self._grant()
        elif self._clock.monotonic_s() >= self._renew_at_s:
            await self._renew()
        self._announce()
        await self._write_all()

    async def _grant(self) -> None:
        asked_at_s = self._clock.monotonic_s()
        granted = await self._source.grant_lease(self._ttl_s)
        self._lease_id = granted.lease_id
        self._extend(asked_at_s, granted.ttl_s)
        _log.info("lease_granted", lease_id=granted.lease_id, ttl_s=granted.ttl_s, keys=len(self._wanted))

    async def _renew(self) -> None:
        lease_id, asked_at_s = self._lease_id, self._clock.monotonic_s()
        self._extend(asked_at_s, await self._source.renew_lease(lease_id))
        attached = await self._source.lease_keys(lease_id)
        # Somebody deleted a key of ours, or wrote it without our lease: the wish stands, so write it again.
        self._dirty.update((key, None) for key in self._wanted if key not in attached)

    def _extend(self, asked_at_s: float, ttl_s: float) -> None:
        """Count from before the question, so that our clock never gives the lease longer than the store does."""
        early = 1.0 - self._timing.renew_jitter * self._rng.random()
        self._expires_at_s = asked_at_s + ttl_s
        self._renew_at_s = asked_at_s + ttl_s / 2 * early

    async def _write_all(self) -> None:
        refused: PenstockError | None = None
        for key in tuple(self._dirty):
            if self._clock.monotonic_s() >= self._renew_at_s:
                self._wake.set()
                return
            try:
                await self._write(key)
            except (EtcdRequestRefused, EtcdAccessRefused) as error:
                refused = error  # one key that is never taken must not hold up the others
        if refused is not None:
            raise refused

    async def _write(self, key: str) -> None:
        value, lease_id = self._wanted.get(key), self._lease_id
        if value is None:
            # Only what carries our lease: the key may be somebody else's by now.
            await self._source.txn([Compare(key, Aspect.LEASE_ID, lease_id)], [Remove(key)])
        else:
            await self._source.put(key, value, lease_id=lease_id)
        if self._wanted.get(key) is value:
            self._dirty.pop(key, None)

    def _lose(self) -> None:
        _log.warning("lease_lost", lease_id=self._lease_id, keys=len(self._wanted))
        self._lease_id = 0
        self._dirty = dict.fromkeys(self._wanted)

    def _report(self, error: Exception, failures: int) -> None:
        if failures > 1:
            return
        if not isinstance(error, PenstockError):
            _log.error("lease_failed", lease_id=self._lease_id, exc_info=error)
        else:
            _log.warning("lease_waiting", lease_id=self._lease_id, reason=error.reason, error=error.message)

    async def _pause(self, failures: int) -> None:
        """Until the next renewal or a new wish; after a failure for the back-off, which a new wish does not shorten."""
        now_s = self._clock.monotonic_s()
        if failures == 0:
            await sleep_unless(self._clock, self._renew_at_s - now_s, self._wake)
            return
        delay_s = self._backoff.delay_s(failures, self._rng)
        remaining_s = self._expires_at_s - now_s
        if self._lease_id != 0 and 0 < remaining_s < delay_s:
            delay_s = remaining_s  # the moment it may be gone is worth an attempt, and is announced
        await self._clock.sleep(delay_s)
        self._announce()

    def _announce(self) -> None:
        state = (self.id, self.healthy, self.settled)
        if state != self._announced:
            self._announced = state
            self._changed.set()
            self._changed = asyncio.Event()
