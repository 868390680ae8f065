"""The gateway processes of a region, as their records in etcd say: who is there, who takes nothing new.

A record is believed when the mesh certified its signer as a gateway and has not revoked it, it lies under that very process's
key, it names an address that Envoy can take, it is of about now where it comes as a live change, and it is not an older one put
back. While etcd is away the last view stays; who is missing when it is back has a lease's time to come back as well. Never
decides who gets a request: Envoy does.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from gateway.presence_codec import GatewayRecord, read_record
from gateway.xds.types import Endpoint, endpoint_of
from runtime.clock import Clock
from runtime.errors import Code, PenstockError
from runtime.identity import Role
from runtime.ids import NodeId, Region, gateway_key, gateways_prefix
from runtime.keyvalue import Changes, KeyValue, KeyValueStore, Put, Snapshot, Watch
from runtime.records import RecordVerifier
from runtime.revocations import Revocations

MAX_SKEW_S = 60.0
MISSING_S = 20.0
"""Longer than a lease lasts: a gateway that etcd lost together with its memory has written itself again by then."""

_LOOK_S = 1.0
_REMEMBERED = 10_000
"""Processes whose last number is kept."""

_log = structlog.get_logger("penstock.neighbours")


class GatewayRefused(PenstockError, code=Code.PERMISSION_DENIED, reason="GATEWAY_REFUSED"):
    """A presence of a gateway that is not believed."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One gateway process."""

    gateway_id: NodeId
    endpoint: Endpoint
    draining: bool
    http: Endpoint | None = None
    """Where Envoy brings HTTP."""


class NeighbourReader:
    """Decides which records are believed. Remembers the last number of every process, also of those that left."""

    def __init__(self, verifier: RecordVerifier) -> None:
        self._verifier = verifier
        self._last: dict[str, tuple[int, bytes]] = {}

    def read(self, item: KeyValue, *, now_wall_s: float, live: bool) -> Neighbour:
        """Raises a PenstockError: RecordRefused, InvalidArgument, AddressUnusable, GatewayRefused."""
        verified = self._verifier.open(item.value, now_wall_s=now_wall_s)
        if verified.signer.role is not Role.GATEWAY:
            raise GatewayRefused(f"node {verified.signer.node_id} is a {verified.signer.role.value}, no gateway")
        record = read_record(verified.payload)
        self._check(record, item.key, verified.signer.node_id, now_wall_s, live=live)
        endpoint = endpoint_of(record.facts.address)
        http = endpoint_of(record.facts.http_address) if record.facts.http_address else None
        self._number(item.key, record.sequence, hashlib.blake2b(verified.payload, digest_size=16).digest())
        return Neighbour(record.facts.gateway_id, endpoint, record.draining, http)

    def _check(self, record: GatewayRecord, key: str, signer: NodeId, now_wall_s: float, *, live: bool) -> None:
        facts = record.facts
        if facts.gateway_id != signer:
            raise GatewayRefused(f"node {signer} signed a presence of gateway {facts.gateway_id[:64]}")
        if key != gateway_key(facts.region, facts.gateway_id, facts.process):
            raise GatewayRefused(
                f"the presence of process {facts.process} in region {facts.region[:64]!r} lies elsewhere: {key}"
            )
        ahead_s = record.wall_time_s - now_wall_s
        if ahead_s > MAX_SKEW_S or (live and ahead_s < -MAX_SKEW_S):
            raise GatewayRefused(
                f"dated {ahead_s:+.0f} s from now; at most {MAX_SKEW_S:.0f} s are allowed, so set the clocks of both machines"
            )

    def _number(self, key: str, sequence: int, digest: bytes) -> None:
        last, last_digest = self._last.get(key, (0, b""))
        if sequence < last or (sequence == last and digest != last_digest):
            raise GatewayRefused(f"it is past number {last}, and this record is number {sequence}")
        if key not in self._last and len(self._last) >= _REMEMBERED:
            self._last.pop(next(iter(self._last)))
        self._last[key] = (sequence, digest)


class Neighbours:
    """The view of one region. Belongs to one event loop."""

    def __init__(self, region: Region, verifier: RecordVerifier, revocations: Revocations, clock: Clock) -> None:
        self._region, self._reader, self._clock = region, NeighbourReader(verifier), clock
        self._revocations = revocations
        self._known: dict[str, Neighbour] = {}
        self._missing: dict[str, float] = {}
        """When those are let go that etcd had not when it came back."""
        self._synced = asyncio.Event()
        self.on_change: list[Callable[[], None]] = []

    @property
    def known(self) -> Mapping[str, Neighbour]:
        """By key: this process's own record is among them."""
        return self._known

    async def synced(self) -> None:
        """Return once etcd was read. The caller bounds the wait."""
        await self._synced.wait()

    @asynccontextmanager
    async def following(self, store: KeyValueStore) -> AsyncIterator[None]:
        """Keep the view current while the context lasts. Entering does not wait for etcd."""
        self._revocations.listeners.append(self._hear_revoked)
        try:
            async with store.watch(gateways_prefix(self._region)) as watch, asyncio.TaskGroup() as loops:
                tasks = [loops.create_task(self._follow(watch)), loops.create_task(self._forget())]
                try:
                    yield
                finally:
                    for task in tasks:
                        task.cancel()
        finally:
            self._revocations.listeners.remove(self._hear_revoked)

    async def _follow(self, watch: Watch) -> None:
        async for update in watch:
            before = dict(self._known)
            if isinstance(update, Snapshot):
                self._replace(update)
            else:
                self._apply(update)
            self._synced.set()
            self._tell(before)

    def _replace(self, snapshot: Snapshot) -> None:
        there = {item.key for item in snapshot.items}
        gone_at_s = self._clock.monotonic_s() + MISSING_S
        for key in self._known.keys() - there:
            self._missing.setdefault(key, gone_at_s)
        for item in snapshot.items:
            self._hear(item, live=False)

    def _apply(self, changes: Changes) -> None:
        for event in changes.events:
            if isinstance(event, Put):
                self._hear(event.item, live=True)
            else:
                self._known.pop(event.key, None)
                self._missing.pop(event.key, None)

    def _hear(self, item: KeyValue, *, live: bool) -> None:
        try:
            self._known[item.key] = self._reader.read(item, now_wall_s=self._clock.wall_s(), live=live)
            self._missing.pop(item.key, None)
        except PenstockError as error:
            _log.warning("gateway_refused", key=item.key[:300], why=error.message)

    def _hear_revoked(self, node_id: NodeId) -> None:
        before = dict(self._known)
        self._known = {key: each for key, each in before.items() if each.gateway_id != node_id}
        self._tell(before)

    async def _forget(self) -> None:
        """Let those go that were missing for too long."""
        while True:
            await self._clock.sleep(_LOOK_S)
            if not self._missing:
                continue
            now_s, before = self._clock.monotonic_s(), dict(self._known)
            for key in [key for key, gone_at_s in self._missing.items() if gone_at_s <= now_s]:
                del self._missing[key]
                self._known.pop(key, None)
            self._tell(before)

    def _tell(self, before: Mapping[str, Neighbour]) -> None:
        if before != self._known:
            for told in self.on_change:
                told()
