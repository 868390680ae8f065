"""Brings what this worker holds to what it was told to hold.

Watches the worker's own assignment key; every change, of orders or of copies, leads to a new plan (`orders.py`), and its
steps run as tasks. An absent key is not an order: only a written assignment changes what is held, because etcd may come
back empty. Beside the scheduler's orders stand those of LoadModel, which live as long as this process. At most so many loads
run at once. A load whose cause of failure may pass is tried again once in a while; a refused model only when its order's
generation grows or LoadModel asks again. A version that the registry withdrew, or whose signer it revoked, answers nothing that
comes from then on, and is not loaded: its copy is FAILED and says why, for as long as somebody orders it.

Owns the tasks. Never fetches, opens or computes: `loading.py` does, the table holds what answers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Protocol

import structlog

from runtime.backoff import sleep_unless
from runtime.clock import Clock
from runtime.errors import PenstockError
from runtime.identity import node_id_of
from runtime.ids import ModelName, ModelVersion
from runtime.keyvalue import Changes, KeyValueStore, Put, Snapshot, Watch
from runtime.notices import NoticeBoard
from worker.copies import LoadedModel
from worker.files.artifacts import Prepared
from worker.life.lifecycle import Copy, CopyKey, Holdings, LifeEvent
from worker.life.loading import PASSING, Loader, LoadRules, MemoryShort, ModelFiles, OpenModel
from worker.life.local_orders import LocalOrders
from worker.life.machine_memory import read_resident_bytes
from worker.life.memory import Memory, Usage
from worker.life.orders import UNBOUNDED, Begin, Order, OrdersRefused, Plan, is_newer, merged, parse_orders, plan
from worker.life.standing import objection_to
from worker.types import CopyState

_IDLE_S = 3600.0
_SOONEST_S = 0.05
_AFTER_BUG_S = 1.0
_log = structlog.get_logger("penstock.reconcile")


class Table(Protocol):
    """What answers requests: `worker.models.ModelTable`."""

    def add(self, loaded: LoadedModel) -> None: ...

    async def remove(self, model: ModelName, version: ModelVersion, *, grace_s: float | None = None) -> None: ...

    def usage(self) -> Mapping[CopyKey, Usage]: ...


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
        *,
        memory_bytes: int = UNBOUNDED.limit_bytes,
        resident_bytes: Callable[[], int] = read_resident_bytes,
        board: NoticeBoard | None = None,
    ) -> None:
        """`board`: which versions may not be answered for."""
        self._store, self._key, self._files, self._table = store, key, files, table
        self._holdings, self._clock, self._rng = holdings, clock, rng
        self._rules, self._memory_bytes = rules or LoadRules(), memory_bytes
        self._loader = Loader(files, open_model, holdings, clock, rng, self._rules, resident_bytes, self._check)
        self._board = board or NoticeBoard()
        self._board.on_model.append(lambda _: self._dirty.set())
        self._scheduled: tuple[Order, ...] | None = None
        self.local = LocalOrders(holdings, lambda: self._scheduled or (), self._replanned)
        self._round_over = asyncio.Event()
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

    async def _replanned(self) -> None:
        """Return when a round that began after this call is over."""
        over = self._round_over
        self._dirty.set()
        await over.wait()

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
        if orders != self._scheduled:
            _log.info("orders", models=[f"{order.model}:{order.version}" for order in orders])
            self._scheduled = orders
            self._dirty.set()

    def _converge(self, tasks: asyncio.TaskGroup) -> None:
        """Take the plan's steps. Each begins by moving its copy on, so that the next plan sees it."""
        now_s = self._clock.monotonic_s()
        memory = Memory(self._memory_bytes, self._table.usage())
        orders = merged(self._scheduled or (), self.local.orders)
        for order in orders:
            copy = self._holdings.get(order.key)
            if copy is not None and copy.state is CopyState.READY and copy.digest == order.digest:
                copy.generation, copy.asked = order.generation, order.asked  # it is as the newest order wants it
        objections = {copy.key: why for copy in self._holdings if (why := self._objection(copy)) is not None}
        steps = plan(
            orders,
            self._holdings,
            now_s=now_s,
            loads_at_once=self._rules.at_once,
            memory=memory,
            barred=objections.keys(),
        )
        for copy in steps.withdrawals:
            self._withdraw(copy)
        for copy in steps.forgotten:
            self._holdings.forget(copy)
        for copy in steps.unloads:
            objection = objections.get(copy.key)
            self._retire(copy, tasks, objection.message if objection else "", at_once=objection is not None)
        self._make_room(steps, tasks)
        for begin in steps.loads:
            self._begin(begin, tasks)
        for copy in self._holdings:
            if copy.retry_at_s is not None and copy.retry_at_s <= now_s and copy.awaits_room:
                copy.retry_at_s = self._again_at_s()  # nobody can be let go of yet
        self._round_over.set()
        self._round_over = asyncio.Event()

    def _make_room(self, steps: Plan, tasks: asyncio.TaskGroup) -> None:
        rooms = self._loader.rooms
        for eviction in steps.evictions:
            copy, other = eviction.copy, eviction.makes_room_for
            other.may_evict = copy.may_evict = False
            copy.awaits_room = True
            _log.info("model_evicted", model=copy.model, version=copy.version, makes_room_for=f"{other.model}:{other.version}")
            self._retire(copy, tasks, f"unloaded to make room for model {other.model!r} version {other.version}")
        for copy in steps.promises:
            rooms.promise(copy)
        for refusal in steps.refusals:
            rooms.refuse(refusal.copy, refusal.why)
        for copy in steps.grants:
            rooms.give(copy)

    def _begin(self, begin: Begin, tasks: asyncio.TaskGroup) -> None:
        order = begin.order
        copy = self._holdings.get(order.key)
        if copy is None:
            copy = self._holdings.add(Copy(order.model, order.version, order.digest, order.generation))
        elif is_newer(order, copy):
            copy.may_evict = True
        copy.generation, copy.asked, copy.awaits_room, copy.failure = order.generation, order.asked, False, None
        self._holdings.move(copy, LifeEvent.LOAD_BEGUN)
        if (objection := self._objection(copy)) is not None:
            self._fail(copy, objection)
            return
        if begin.promised:
            self._loader.rooms.promise(copy)
        self._loads[copy.key] = tasks.create_task(self._load(copy), name=f"load {copy.model}")

    def _objection(self, copy: Copy) -> PenstockError | None:
        signer_id = node_id_of(copy.signer) if copy.signer else ""
        return objection_to(self._board.model(copy.model), copy.model, copy.version, copy.digest, signer_id)

    def _check(self, copy: Copy) -> None:
        if (objection := self._objection(copy)) is not None:
            raise objection

    def _withdraw(self, copy: Copy) -> None:
        copy.awaits_room = False
        self._holdings.move(copy, LifeEvent.WITHDRAWN)
        loading = self._loads.get(copy.key)
        if loading is None:
            self._holdings.move(copy, LifeEvent.FREED)
        else:
            loading.cancel()

    async def _load(self, copy: Copy) -> None:
        begun_s = self._clock.monotonic_s()
        try:
            loaded, prepared = await self._loader.opened_at_last(copy)
            loaded.statistics.memory_bytes = copy.measured_bytes
            self._table.add(loaded)
            self._prepared[copy.key] = prepared
            self._holdings.move(copy, LifeEvent.LOADED)
            _log.info(
                "model_ready",
                model=copy.model,
                version=copy.version,
                load_s=round(self._clock.monotonic_s() - begun_s, 3),
                memory_bytes=copy.memory_bytes,
                measured_bytes=copy.measured_bytes,
            )
        except asyncio.CancelledError:
            if copy.state is CopyState.LOADING:  # the worker ends; else the plan withdrew it
                self._holdings.move(copy, LifeEvent.WITHDRAWN)
            self._holdings.move(copy, LifeEvent.FREED)
            raise
        except PenstockError as error:
            self._fail(copy, error)
        except Exception as error:
            _log.error("load_broke", model=copy.model, version=copy.version, exc_info=error)
            self._fail(copy, PenstockError("the load broke on a bug; the worker's log has it"))
        finally:
            self._loads.pop(copy.key, None)

    def _fail(self, copy: Copy, error: PenstockError) -> None:
        _log.error("model_failed", model=copy.model, version=copy.version, error=error.message)
        copy.failure, copy.awaits_room = error, isinstance(error, MemoryShort)
        self._holdings.move(copy, LifeEvent.LOAD_FAILED, error.message)
        if error.code in PASSING or copy.awaits_room:
            copy.retry_at_s = self._again_at_s()
        self._holdings.tell()

    def _again_at_s(self) -> float:
        return self._clock.monotonic_s() + self._rules.again_after_s * (1 + 0.2 * self._rng.random())

    def _retire(self, copy: Copy, tasks: asyncio.TaskGroup, reason: str = "", *, at_once: bool = False) -> None:
        """`at_once`: no request that comes from now on is answered; those in flight end."""
        self._holdings.move(copy, LifeEvent.RETIRED, reason)
        grace_s = 0.0 if at_once else self._rules.leave_grace_s
        tasks.create_task(self._unload(copy, reason, grace_s), name=f"unload {copy.model}")

    async def _unload(self, copy: Copy, reason: str, grace_s: float) -> None:
        """Once begun it is finished, also if the loop ends meanwhile: a half unloaded copy could never be loaded again."""
        try:
            if grace_s:
                await self._clock.sleep(grace_s)
        finally:
            await self._let_go(copy, reason)

    async def _let_go(self, copy: Copy, reason: str) -> None:
        try:
            await self._table.remove(copy.model, copy.version, grace_s=self._rules.drain_grace_s)
        except PenstockError as error:
            _log.error("unload_broke", model=copy.model, version=copy.version, exc_info=error)
        self._holdings.move(copy, LifeEvent.DRAINED, reason)
        if (prepared := self._prepared.pop(copy.key, None)) is not None:
            await self._files.release(prepared)
        self._holdings.move(copy, LifeEvent.FREED, reason)
        _log.info("model_unloaded", model=copy.model, version=copy.version)

    def _until_retry_s(self) -> float:
        """Until a failed copy is worth another try; a long time where none is."""
        due_s = min((copy.retry_at_s for copy in self._holdings if copy.retry_at_s is not None), default=None)
        return _IDLE_S if due_s is None else min(_IDLE_S, max(_SOONEST_S, due_s - self._clock.monotonic_s()))
