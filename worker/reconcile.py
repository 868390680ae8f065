"""Brings what this worker holds to what it was told to hold.

Watches the worker's own assignment key; every change, of orders or of copies, leads to a new plan (`orders.py`), and its steps run
as tasks. An absent key is not an order: only a written assignment changes what is held, because etcd may come back empty. At most
so many loads run at once. A load whose cause of failure may pass is tried again a few times, then once in a while; a refused model
only when its order's generation grows.

Owns the tasks. Never fetches and never computes: `artifacts.py` prepares files, the table holds what answers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from runtime.backoff import Backoff, sleep_unless
from runtime.clock import Clock
from runtime.errors import Code, PenstockError
from runtime.ids import Digest, ModelName, ModelVersion
from runtime.keyvalue import Changes, KeyValueStore, Put, Snapshot, Watch
from worker.artifacts import Prepared, Progress
from worker.lifecycle import Copy, CopyKey, Holdings, LifeEvent
from worker.manifest import Description
from worker.models import LoadedModel
from worker.orders import Order, OrdersRefused, parse_orders, plan
from worker.types import ModelSpec

_PASSING = (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.ABORTED)
_log = structlog.get_logger("penstock.reconcile")


class ModelFiles(Protocol):
    """What a load needs of `worker.artifacts`."""

    async def describe(self, digest: Digest) -> Description: ...

    async def prepare(self, description: Description, progress: Progress) -> Prepared: ...

    async def release(self, prepared: Prepared) -> None: ...


class Table(Protocol):
    """What answers requests: `worker.models.ModelTable`."""

    def add(self, loaded: LoadedModel) -> None: ...

    async def remove(self, model: ModelName, version: ModelVersion, *, grace_s: float | None = None) -> None: ...


OpenModel = Callable[[ModelSpec, Path], Awaitable[LoadedModel]]


@dataclass(frozen=True, slots=True)
class LoadRules:
    """How loads and unloads are gone about."""

    at_once: int = 2
    attempts: int = 6
    """In a row without a byte of progress."""
    backoff: Backoff = Backoff(first_s=0.5, max_s=8.0)
    again_after_s: float = 60.0
    """When a load that failed of a passing cause is tried again."""
    leave_grace_s: float = 0.3
    """How long a copy that is to go still answers, so that those who send hear of it first."""
    drain_grace_s: float = 10.0


class Reconciler:
    """The loop of one worker."""

    def __init__(
        self,
        store: KeyValueStore,
        key: str,
        files: ModelFiles,
        table: Table,
        open_model: OpenModel,
        holdings: Holdings,
        clock: Clock,
        rng: random.Random,
        rules: LoadRules | None = None,
    ) -> None:
        self._store, self._key, self._files, self._table = store, key, files, table
        self._open_model, self._holdings, self._clock, self._rng = open_model, holdings, clock, rng
        self._rules = rules or LoadRules()
        self._orders: tuple[Order, ...] | None = None
        self._dirty = holdings.watch()
        self._loads: dict[CopyKey, asyncio.Task[None]] = {}
        self._prepared: dict[CopyKey, Prepared] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Converge while the context lasts. Leaving breaks loads off and leaves in the table what is there."""
        working = asyncio.create_task(self._run(), name="reconcile")
        try:
            yield
        finally:
            working.cancel()
            with suppress(asyncio.CancelledError):
                await working

    async def _run(self) -> None:
        async with self._store.watch(self._key) as watch, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(watch))
            while True:
                self._dirty.clear()
                self._converge(tasks)
                await sleep_unless(self._clock, self._until_retry_s(), self._dirty)

    async def _follow(self, watch: Watch) -> None:
        while True:
            update = await watch.__anext__()
            match update:
                case Snapshot(items=items):
                    written = [item.value for item in items if item.key == self._key]
                case Changes(events=events):
                    written = [event.item.value for event in events if isinstance(event, Put) and event.key == self._key]
            if written:
                self._take(written[-1])

    def _take(self, raw: bytes) -> None:
        try:
            orders = parse_orders(raw)
        except OrdersRefused as error:
            _log.error("orders_refused", key=self._key, error=error.message)
            return
        if orders != self._orders:
            _log.info("orders", models=[f"{order.model}:{order.version}" for order in orders])
            self._orders = orders
            self._dirty.set()

    def _converge(self, tasks: asyncio.TaskGroup) -> None:
        """Take the plan's steps. Each begins by moving its copy on, so that the next plan sees it."""
        if self._orders is None:
            return
        steps = plan(self._orders, self._holdings, now_s=self._clock.monotonic_s(), loads_at_once=self._rules.at_once)
        for copy in steps.withdrawals:
            self._withdraw(copy)
        for copy in steps.unloads:
            self._holdings.move(copy, LifeEvent.RETIRED)
            tasks.create_task(self._unload(copy), name=f"unload {copy.model}")
        for order in steps.loads:
            copy = self._holdings.get(order.key) or self._holdings.add(
                Copy(order.model, order.version, order.digest, order.generation)
            )
            copy.generation = order.generation
            self._holdings.move(copy, LifeEvent.LOAD_BEGUN)
            self._loads[copy.key] = tasks.create_task(self._load(copy), name=f"load {copy.model}")

    def _withdraw(self, copy: Copy) -> None:
        self._holdings.move(copy, LifeEvent.WITHDRAWN)
        loading = self._loads.get(copy.key)
        if loading is None:
            self._holdings.move(copy, LifeEvent.FREED)
        else:
            loading.cancel()

    async def _load(self, copy: Copy) -> None:
        begun_s = self._clock.monotonic_s()
        try:
            loaded = await self._opened_at_last(copy)
            self._table.add(loaded)
            self._holdings.move(copy, LifeEvent.LOADED)
            _log.info("model_ready", model=copy.model, version=copy.version, load_s=round(self._clock.monotonic_s() - begun_s, 3))
        except asyncio.CancelledError:
            await self._let_go(copy)
            if self._holdings.get(copy.key) is copy:
                self._freed(copy)
            raise
        except PenstockError as error:
            await self._failed(copy, error.message, passing=error.code in _PASSING)
        except Exception as error:
            _log.error("load_broke", model=copy.model, version=copy.version, exc_info=error)
            await self._failed(copy, "the load broke on a bug; the worker's log has it", passing=False)
        finally:
            self._loads.pop(copy.key, None)
            self._dirty.set()

    def _freed(self, copy: Copy) -> None:
        """A load was broken off: by the plan, or because the worker ends."""
        with suppress(PenstockError):
            self._holdings.move(copy, LifeEvent.WITHDRAWN)
        self._holdings.move(copy, LifeEvent.FREED)
