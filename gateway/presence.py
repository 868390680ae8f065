"""This gateway process's place among the gateways of its region: a signed record under its lease.

Written when it begins to serve, when it begins to drain, when the lease is granted anew, and every half a minute, so that a
renewed certificate is in it. Numbered from the wall clock, so that a restarted process goes on above its former self. Leaving
revokes the lease, which takes the record away at once. Never decides who is believed: `gateway.neighbours` does.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from gateway.presence_codec import GatewayFacts, GatewayRecord, record_bytes
from runtime.clock import Clock
from runtime.identity import NodeIdentity
from runtime.ids import gateway_key
from runtime.keyvalue import Lease
from runtime.records import sign_record


class LeaseStore(Protocol):
    """What presence needs of the mesh's shared memory."""

    def lease(self, *, ttl_s: int = 15) -> AbstractAsyncContextManager[Lease]: ...


@dataclass(frozen=True, slots=True)
class PresenceTiming:
    lease_ttl_s: int = 15
    again_s: float = 30.0
    again_jitter: float = 0.1
    """Up to this part earlier, so that gateways do not write as one."""


class GatewayPresence:
    """The record of one process. Tells nothing before `begin`."""

    def __init__(
        self, identity: NodeIdentity, lease: Lease, clock: Clock, rng: random.Random, timing: PresenceTiming | None = None
    ) -> None:
        self._identity, self._lease, self._clock, self._rng = identity, lease, clock, rng
        self._timing = timing or PresenceTiming()
        self._facts: GatewayFacts | None = None
        self._draining = False
        self._sequence = 0

    def begin(self, facts: GatewayFacts, *, draining: bool = False) -> None:
        """It serves, there."""
        self._facts, self._draining = facts, draining
        self._write()

    def drain(self, draining: bool = True) -> None:
        """Nothing new is to be sent to it; or, from now on, it is."""
        self._draining = draining
        self._write()

    async def told(self) -> None:
        """Return once etcd has the latest record; at once where there is none. The caller bounds the wait."""
        if self._facts is not None:
            await self._lease.settle()

    async def keep(self) -> None:
        """Write it again, until cancelled."""
        while True:
            early_s = self._timing.again_s * self._timing.again_jitter * self._rng.random()
            await self._clock.sleep(self._timing.again_s - early_s)
            self._write()

    async def renew(self) -> None:
        """A lease that is granted anew would write the old record with its old time: write a new one, until cancelled."""
        lease_id = self._lease.id
        while True:
            await self._lease.changed()
            if self._lease.id not in (0, lease_id):
                lease_id = self._lease.id
                self._write()

    def _write(self) -> None:
        if self._facts is None:
            return
        now_wall_s = self._clock.wall_s()
        self._sequence = max(self._sequence + 1, int(now_wall_s * 1000))
        record = GatewayRecord(self._facts, self._draining, self._sequence, now_wall_s)
        key = gateway_key(self._facts.region, self._facts.gateway_id, self._facts.process)
        self._lease.put(key, sign_record(self._identity, record_bytes(record)))


@asynccontextmanager
async def present(
    store: LeaseStore,
    identity: NodeIdentity,
    clock: Clock,
    rng: random.Random,
    timing: PresenceTiming | None = None,
) -> AsyncIterator[GatewayPresence]:
    """Have a place while the context lasts. Entering does not wait for etcd, nor does anything else but `told`."""
    timing = timing or PresenceTiming()
    async with store.lease(ttl_s=timing.lease_ttl_s) as lease, asyncio.TaskGroup() as loops:
        presence = GatewayPresence(identity, lease, clock, rng, timing)
        tasks = [loops.create_task(presence.keep()), loops.create_task(presence.renew())]
        try:
            yield presence
        finally:
            for task in tasks:
                task.cancel()
