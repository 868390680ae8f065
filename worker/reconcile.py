"""Brings what this worker holds to what it was told to hold.

Watches the worker's own assignment key; every change, of orders or of copies, leads to a new plan (`orders.py`), and its
steps run as tasks. An absent key is not an order: only a written assignment changes what is held, because etcd may come
back empty. At most so many loads run at once. A load whose cause of failure may pass is tried again a few times, then once
in a while; a refused model only when its order's generation grows.

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
from worker.copies import LoadedModel
from worker.engine import ModelRefused
from worker.lifecycle import Copy, CopyKey, Holdings, LifeEvent
from worker.manifest import Description
from worker.orders import Order, OrdersRefused, parse_orders, plan
from worker.types import CopyState, ModelSpec

_PASSING = (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.ABORTED)
_BACKOFF = Backoff(first_s=0.5, max_s=8.0)
_IDLE_S = 3600.0
_SOONEST_S = 0.05
_AFTER_BUG_S = 1.0
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
    backoff: Backoff = _BACKOFF
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
        working = asyncio.create_task(self._keep(), name="reconcile")
        try:
            yield
        finally:
            working.cancel()
            with suppress(asyncio.CancelledError):
                await working

    async def _keep(self) -> None:
        """Begin anew after a bug: what answers goes on answering, and orders are followed again."""
        while True:
            try:
                await self._run()
            except Exception as error:
                _log.error("reconcile_broke", exc_info=error)
            await self._clock.sleep(_AFTER_BUG_S)

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
            _log.info(
                "model_ready", model=copy.model, version=copy.version, load_s=round(self._clock.monotonic_s() - begun_s, 3)
            )
        except asyncio.CancelledError:
            if copy.state is CopyState.LOADING:  # the worker ends; else the plan withdrew it
                self._holdings.move(copy, LifeEvent.WITHDRAWN)
            self._holdings.move(copy, LifeEvent.FREED)
            raise
        except PenstockError as error:
            self._fail(copy, error.message, passing=error.code in _PASSING)
        except Exception as error:
            _log.error("load_broke", model=copy.model, version=copy.version, exc_info=error)
            self._fail(copy, "the load broke on a bug; the worker's log has it", passing=False)
        finally:
            self._loads.pop(copy.key, None)

    def _fail(self, copy: Copy, reason: str, *, passing: bool) -> None:
        _log.error("model_failed", model=copy.model, version=copy.version, error=reason)
        self._holdings.move(copy, LifeEvent.LOAD_FAILED, reason)
        if passing:
            copy.retry_at_s = self._clock.monotonic_s() + self._rules.again_after_s * (1 + 0.2 * self._rng.random())
        self._holdings.tell()

    async def _opened_at_last(self, copy: Copy) -> LoadedModel:
        """Try until it is open, or the attempts are used up, or the cause will not pass. Progress is worth a fresh start."""
        failures = 0
        came_bytes = 0

        def progress(count: int) -> None:
            nonlocal came_bytes
            came_bytes += count

        while True:
            before_bytes = came_bytes
            try:
                return await self._opened(copy, progress)
            except PenstockError as error:
                failures = failures + 1 if came_bytes == before_bytes else 1
                if error.code not in _PASSING or failures >= self._rules.attempts:
                    raise
                delay_s = self._rules.backoff.delay_s(failures, self._rng)
                _log.warning(
                    "load_waiting", model=copy.model, version=copy.version, error=error.message, delay_s=round(delay_s, 2)
                )
                self._holdings.explain(copy, f"waiting to try again: {error.message}")
                await self._clock.sleep(delay_s)

    async def _opened(self, copy: Copy, progress: Progress) -> LoadedModel:
        description = await self._files.describe(copy.digest)
        spec = description.spec
        if (spec.model, spec.version) != copy.key:
            raise ModelRefused(
                f"model {copy.model!r} version {copy.version} was ordered with digest {copy.digest}, which is that of"
                f" {spec.model!r} version {spec.version}"
            )
        self._holdings.describe(copy, task=spec.task, max_batch_size=spec.max_batch_size)
        prepared = await self._files.prepare(description, progress)
        try:
            loaded = await self._open_model(spec, prepared.folder)
        except BaseException:
            await self._files.release(prepared)
            raise
        self._prepared[copy.key] = prepared
        return loaded

    async def _unload(self, copy: Copy) -> None:
        """Once begun it is finished, also if the loop ends meanwhile: a half unloaded copy could never be loaded again."""
        try:
            await self._clock.sleep(self._rules.leave_grace_s)
        finally:
            await self._let_go(copy)

    async def _let_go(self, copy: Copy) -> None:
        try:
            await self._table.remove(copy.model, copy.version, grace_s=self._rules.drain_grace_s)
        except PenstockError as error:
            _log.error("unload_broke", model=copy.model, version=copy.version, exc_info=error)
        self._holdings.move(copy, LifeEvent.DRAINED)
        if (prepared := self._prepared.pop(copy.key, None)) is not None:
            await self._files.release(prepared)
        self._holdings.move(copy, LifeEvent.FREED)
        _log.info("model_unloaded", model=copy.model, version=copy.version)

    def _until_retry_s(self) -> float:
        """Until a failed copy is worth another try; a long time where none is."""
        due_s = min((copy.retry_at_s for copy in self._holdings if copy.retry_at_s is not None), default=None)
        return _IDLE_S if due_s is None else min(_IDLE_S, max(_SOONEST_S, due_s - self._clock.monotonic_s()))
