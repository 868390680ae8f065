"""Who of several processes leads: the one whose key is the oldest of its group, for as long as its lease holds that key.

Theory of operation. A candidate writes one key under its lease, `/penstock/election/<group>/<lease id>`; the key with the
lowest create-revision leads. A leader that lost its lease lost its key with it, and stands again at the back. Leadership is a
value, a Term, and is proven where it is used: whatever a leader writes is conditional on `Term.fence()`, so that one who was
paused or cut off for longer than it knows writes nothing at all. Before it tries, its own clock must still give it the lease.

A process that was started again need not wait for the lease of its former self: it knows that one by its value, and takes its
key away. If that one lives after all, it finds itself without a key, and stands at the back.

A leader may also claim names. A claim is a key that one leader at a time has, under its lease: others can make their writes
conditional on its absence, as who leads "all the rest" has to.

Owns its key and its claims. Never decides what is led, nor what is done with it.
Source for the idea: etcd client/v3/concurrency/election.go.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import structlog

from runtime.backoff import Backoff, sleep_unless
from runtime.candidates import Candidates, Term, claim_key
from runtime.clock import Clock
from runtime.errors import PenstockError
from runtime.ids import ELECTION_PREFIX, election_prefix
from runtime.keyvalue import (
    Compare,
    KeyValueStore,
    Lease,
    Remove,
    Snapshot,
    Step,
    Write,
    absent,
    created_at,
)

_ECHO_S = 1.0
"""How long what was written may take to be seen here before it is tried again."""

_log = structlog.get_logger("penstock.election")


class Election:
    """One process's view of all groups, and its own place in one of them."""

    def __init__(
        self,
        store: KeyValueStore,
        clock: Clock,
        rng: random.Random,
        group: str,
        claims: Iterable[str] = (),
        *,
        ttl_s: int = 5,
        backoff: Backoff | None = None,
    ) -> None:
        """`claims`: what the leader of this group claims, as soon as nobody else does."""
        self._store, self._clock, self._rng, self._group, self._ttl_s = store, clock, rng, group, ttl_s
        self._claims = tuple(claims)
        self._backoff = backoff or Backoff(first_s=0.05, max_s=1.0)
        self._lease: Lease | None = None
        self._woken = asyncio.Event()
        self.candidates = Candidates()
        self.synced = False
        self.on_change: list[Callable[[], None]] = []
        """Called when somebody came, left or took a claim, and when the lease may have been lost."""

    def term(self) -> Term | None:
        """What this process leads by; None: it does not, or cannot prove now that it does."""
        lease = self._lease
        if lease is None or not lease.healthy:
            return None
        leader = self.candidates.leaders().get(self._group)
        if leader is None or leader.key != self._key(lease.id):
            return None
        return Term(self._group, leader.key, leader.create_revision)

    @asynccontextmanager
    async def standing(self, value: bytes, *, is_former: Callable[[bytes], bool] = lambda _: False) -> AsyncIterator[None]:
        """Stand while the context lasts; leaving gives the lease back, and the next one leads at once.

        `is_former` tells by a value whether this process left it before it was started again.
        """
        async with self._store.lease(ttl_s=self._ttl_s) as lease, asyncio.TaskGroup() as group:
            self._lease = lease
            tasks = [
                group.create_task(self._hear_lease(lease), name="election lease"),
                group.create_task(self._stand(lease, value, is_former), name="election"),
            ]
            try:
                yield
            finally:
                self._lease = None
                self._tell()
                for task in tasks:
                    task.cancel()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Follow every group while the context lasts. Entering does not wait for etcd."""
        async with self._store.watch(ELECTION_PREFIX) as watch, asyncio.TaskGroup() as group:

            async def follow() -> None:
                async for update in watch:
                    if isinstance(update, Snapshot):
                        self.candidates.replace(update.items)
                        self.synced = True
                    else:
                        self.candidates.apply(update.events)
                    self._tell()

            following = group.create_task(follow(), name="election watch")
            try:
                yield
            finally:
                following.cancel()

    def _tell(self) -> None:
        self._woken.set()
        for changed in self.on_change:
            changed()

    def _key(self, lease_id: int) -> str:
        return f"{election_prefix(self._group)}{lease_id:x}"

    async def _hear_lease(self, lease: Lease) -> None:
        while True:
            await lease.changed()
            self._tell()

    async def _stand(self, lease: Lease, value: bytes, is_former: Callable[[bytes], bool]) -> None:
        """Have the key, and the claims that belong to it, until cancelled."""
        failures, former_is_gone = 0, False
        while True:
            self._woken.clear()
            try:
                is_settled = await self._advance(lease, value)
                if not former_is_gone and self.candidates.at(own := self._key(lease.id)) is not None:
                    await self._take_away(is_former, own)
                    former_is_gone = True
                failures = 0
            except PenstockError as error:
                failures += 1
                if failures == 1:
                    _log.warning("election_waits", group=self._group, reason=error.reason, why=error.message)
                await self._clock.sleep(self._backoff.delay_s(failures, self._rng))
                continue
            if is_settled:
                await self._woken.wait()
            else:
                await sleep_unless(self._clock, _ECHO_S, self._woken)

    async def _advance(self, lease: Lease, value: bytes) -> bool:
        """One step; whether nothing is left to be done until something changes. The lease may become another at any moment."""
        lease_id = lease.id
        if lease_id == 0 or not self.synced:
            return True
        key = self._key(lease_id)
        if self.candidates.at(key) is None:
            await self._write(key, value, lease_id, ())
            return False
        if (term := self.term()) is None:
            return True
        wanted = [name for name in self._claims if not self._has_claim(name, term)]
        for name in wanted:
            if self.candidates.at(claim_key(name)) is None:
                await self._write(claim_key(name), key.encode(), lease_id, term.fence())
        return not wanted

    async def _take_away(self, is_former: Callable[[bytes], bool], own: str) -> None:
        """Once this one stands, so that the former one, should it live, stands behind it."""
        standing = [each for each in self.candidates.standing() if each.group == self._group and each.key != own]
        for each in (each for each in standing if is_former(each.value)):
            claimed = [item.key for item in self.candidates.claims().values() if item.value == each.key.encode()]
            steps: list[Step] = [Remove(each.key), *(Remove(key) for key in claimed)]
            await self._store.txn([created_at(each.key, each.create_revision)], steps)

    def _has_claim(self, name: str, term: Term) -> bool:
        held = self.candidates.at(claim_key(name))
        return held is not None and held.value == term.key.encode()

    async def _write(self, key: str, value: bytes, lease_id: int, fence: tuple[Compare, ...]) -> None:
        steps: list[Step] = [Write(key, value, lease_id)]
        await self._store.txn([*fence, absent(key)], steps)
