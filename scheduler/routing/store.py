"""The routing policy as etcd holds it: one key, replaced whole, each time with the next generation.

Keeps what was last believed: a value that is no policy changes nothing, and neither does an etcd that is away. A policy
outlives an etcd that was wiped or went back in time: what is gone, or has a lower generation than what is known, is written
again. Nobody deletes a policy to end it: one without rules takes its place. Every write is conditional on the key being what
was read, so of several schedulers that mend at once one does, and none undoes a later generation.

Owns the copy and the writing of it. Never decides what a rule comes to: `placement.rules` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog

from placement.rules import RoutingPolicy, checked
from runtime.clock import Clock
from runtime.errors import Aborted, InvalidArgument, PenstockError
from runtime.ids import ROUTING_POLICY_KEY
from runtime.keyvalue import KeyValue, KeyValueStore, Put, Snapshot, Watch, Write, unchanged
from scheduler.routing.codec import policy_bytes, policy_from

MAX_BYTES = 512 * 1024
"""etcd takes requests of up to 1.5 MiB; gateways are told the policy in one message with all else that changed."""

MEND_EVERY_S = 1.0
_ATTEMPTS = 4
_log = structlog.get_logger("penstock.routing")


class RoutingPolicies:
    """The policy in force. Belongs to one event loop."""

    def __init__(self, store: KeyValueStore, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._lost = asyncio.Event()
        self.known: RoutingPolicy | None = None
        """None until etcd was seen."""
        self.on_change: list[Callable[[], None]] = []
        """Called after each change, without arguments."""

    @property
    def current(self) -> RoutingPolicy:
        """What holds now; without rules while nothing is known."""
        return self.known or RoutingPolicy()

    @property
    def is_lost(self) -> bool:
        """Whether etcd lacks what is in force, for now."""
        return self._lost.is_set()

    async def replace(self, policy: RoutingPolicy, expected: int | None = None) -> RoutingPolicy:
        """Put this one in force, with the next generation. `expected`: the generation that it replaces.

        Raises InvalidArgument where it cannot be followed, and Aborted where another is in force than was expected.
        """
        checked(policy)
        for _ in range(_ATTEMPTS):
            stored = await self._store.get(ROUTING_POLICY_KEY)
            latest = max(self.current.generation, _generation_of(stored))
            if expected is not None and expected != latest:
                raise Aborted(f"the routing policy is at generation {latest}, not {expected}; read it and decide again")
            made = replace(policy, generation=latest + 1)
            if await self._write(made, stored):
                self._take(made)
                return made
        raise Aborted("others are replacing the routing policy too; read it and decide again")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the key while the context lasts."""
        async with self._store.watch(ROUTING_POLICY_KEY) as watch, asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._follow(watch), name="routing-policy"),
                group.create_task(self._mend(), name="routing-policy-mending"),
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    async def _follow(self, watch: Watch) -> None:
        async for update in watch:
            if isinstance(update, Snapshot):
                self._see(next((item for item in update.items if item.key == ROUTING_POLICY_KEY), None))
                continue
            for event in update.events:
                if event.key == ROUTING_POLICY_KEY:
                    self._see(event.item if isinstance(event, Put) else None)

    def _see(self, item: KeyValue | None) -> None:
        """The key is so now; None: it is not there."""
        if item is None:
            found = RoutingPolicy()
        else:
            try:
                found = policy_from(item.value)
            except InvalidArgument as error:
                _log.warning("routing_policy_ignored", why=error.message, revision=item.mod_revision)
                return
        if found.generation < self.current.generation:
            _log.warning("routing_policy_lost", known=self.current.generation, found=found.generation)
            self._lost.set()
            return
        self._lost.clear()
        self._take(found)

    def _take(self, policy: RoutingPolicy) -> None:
        if self.known is not None and policy.generation <= self.known.generation:
            return
        self.known = policy
        _log.info("routing_policy", generation=policy.generation, rules=[rule.name for rule in policy.rules][:20])
        for listener in self.on_change:
            listener()

    async def _mend(self) -> None:
        """Write again what etcd has lost."""
        while True:
            await self._lost.wait()
            try:
                await self._rewrite()
            except PenstockError as error:
                _log.warning("routing_policy_not_restored", why=error.message)
            if self._lost.is_set():
                await self._clock.sleep(MEND_EVERY_S)

    async def _rewrite(self) -> None:
        stored, kept = await self._store.get(ROUTING_POLICY_KEY), self.current
        if _generation_of(stored) >= kept.generation or await self._write(kept, stored):
            self._lost.clear()

    async def _write(self, policy: RoutingPolicy, stored: KeyValue | None) -> bool:
        value = policy_bytes(policy)
        if len(value) > MAX_BYTES:
            raise InvalidArgument(f"the policy takes {len(value)} bytes; at most {MAX_BYTES} are kept")
        condition = unchanged(ROUTING_POLICY_KEY, stored.mod_revision if stored is not None else 0)
        return (await self._store.txn([condition], [Write(ROUTING_POLICY_KEY, value)])).succeeded


def _generation_of(stored: KeyValue | None) -> int:
    """0 for what is not there or cannot be read: it is replaced."""
    if stored is None:
        return 0
    try:
        return policy_from(stored.value).generation
    except InvalidArgument:
        return 0
