"""Brings the assignments in etcd to what they should be.

Level-triggered: whatever happened, `touch` it; a round reads the whole world, asks `placement.assign` what should be, and
writes what differs, each key on condition that nobody else wrote it meanwhile. A round that fails, or finds that somebody
did, is done again after a jittered, growing delay. A worker that left keeps its assignment for a while: it may merely have
lost its lease, and goes on serving what it holds.

Never decides who holds what, and writes nothing while etcd has not been seen whole.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Callable

import structlog

from placement.assign import AssignedModel, Plan, Shortfall, assign
from placement.types import CopyState, Worker
from runtime.backoff import Backoff
from runtime.clock import Clock
from runtime.errors import Aborted, PenstockError
from runtime.ids import Digest, ModelName, Region, WorkerId, assignment_key
from runtime.keyvalue import KeyValueStore, Remove, Step, Write, absent, unchanged
from scheduler.codec import assignment_bytes, placement_bytes
from scheduler.control import Control, WrittenAssignment
from scheduler.fleet import Fleet

FORGET_S = 3_600.0
"""How long the assignment of a worker that left is kept."""

SETTLE_S = 0.02
"""Touches that come together, as when a fleet starts, make one round."""

_log = structlog.get_logger("penstock.reconcile")


class Reconciler:
    """One loop over the fleet's assignments."""

    def __init__(
        self,
        store: KeyValueStore,
        fleet: Fleet,
        control: Control,
        clock: Clock,
        rng: random.Random,
        *,
        connected: Callable[[], bool],
        backoff: Backoff | None = None,
        is_withdrawn: Callable[[ModelName, Digest], bool] = lambda _, __: False,
        callers_of: Callable[[ModelName], frozenset[str] | None] = lambda _: None,
    ) -> None:
        """A version for which `is_withdrawn` holds is assigned to nobody, whatever is wished for. `callers_of` says which
        tenants may call a model; None: it is not known.
        """
        self._store, self._fleet, self._control, self._clock, self._rng = store, fleet, control, clock, rng
        self._connected, self._is_withdrawn, self._callers_of = connected, is_withdrawn, callers_of
        self._backoff = backoff or Backoff(first_s=0.1, max_s=3.0)
        self._touched = asyncio.Event()
        self._gone_since_s: dict[WorkerId, float] = {}
        self._told_at: dict[WorkerId, int] = {}
        """The sequence of each worker's presence when it was last told what to hold."""
        self._shortfalls: tuple[Shortfall, ...] = ()
        self.deferred = False
        """A round was due while etcd was not seen."""
        self.writes = 0
        self.failures = 0

    def touch(self) -> None:
        """Something may have changed."""
        self._touched.set()

    async def run(self) -> None:
        """Reconcile whenever touched, until cancelled."""
        failures = 0
        while True:
            await self._touched.wait()
            await self._clock.sleep(SETTLE_S)
            self._touched.clear()
            try:
                await self.round()
                failures = 0
            except PenstockError as error:
                failures += 1
                self.failures += 1
                delay_s = self._backoff.delay_s(failures, self._rng)
                _log.warning("reconcile_failed", why=error.message, failures=failures, again_in_s=round(delay_s, 2))
                await self._clock.sleep(delay_s)
                self.touch()

    async def round(self) -> None:
        """Read the world, write what differs. Raises Aborted where another wrote meanwhile, and whatever the store raises."""
        self.deferred = not (self._fleet.synced and self._control.synced and self._connected())
        if self.deferred:
            return
        await self._restore_wishes()
        workers = {worker.worker_id: self.answered(worker) for worker in self._fleet.workers()}
        current = {who: written.models for who, written in self._control.assignments.items()}
        wishes = [wish for wish in self._control.wishes() if not self._is_withdrawn(wish.model, wish.digest)]
        known = ((model, self._callers_of(model)) for model in {wish.model for wish in wishes})
        plan = assign(wishes, workers.values(), current, {model: callers for model, callers in known if callers is not None})
        self._tell(plan)
        conflicts = 0
        for who in sorted(plan.assignments):
            conflicts += not await self._write(who, workers[who].region, plan.assignments[who])
        conflicts += await self._forget(set(workers))
        if conflicts:
            raise Aborted(f"{conflicts} assignments were written by somebody else meanwhile")

    async def _write(self, who: WorkerId, region: Region, models: tuple[AssignedModel, ...]) -> bool:
        known = self._control.assignments.get(who)
        key = assignment_key(region, who)
        if (known is None and not models) or (known is not None and known.key == key and known.models == models):
            return True
        revision = known.mod_revision if known is not None and known.key == key else 0
        steps: list[Step] = [Write(key, assignment_bytes(models))]
        if known is not None and known.key != key:
            steps.append(Remove(known.key))  # it moved to another region
        sequence = self._fleet.members[who].worker.sequence if who in self._fleet.members else 0
        result = await self._store.txn([unchanged(key, revision)], steps)
        if result.succeeded:
            self.writes += 1
            self._told_at[who] = sequence
            self._control.written(who, WrittenAssignment(key, models, result.revision))
            _log.info("assigned", worker=who, region=region, models=[f"{each.model}/{each.version}" for each in models])
        return result.succeeded

    def answered(self, worker: Worker) -> Worker:
        """The worker, without the failures it told of before it knew its present assignment: it has yet to try again."""
        if worker.sequence > self._told_at.get(worker.worker_id, -1):
            return worker
        copies = tuple(
            dataclasses.replace(copy, state=CopyState.UNAVAILABLE) if copy.state is CopyState.FAILED else copy
            for copy in worker.copies
        )
        return dataclasses.replace(worker, copies=copies)

    async def _restore_wishes(self) -> None:
        for key, wish in list(self._control.lost.items()):
            await self._store.txn([absent(key)], [Write(key, placement_bytes(wish))])
            self._control.lost.pop(key, None)
            _log.warning("wish_restored", model=wish.model, version=wish.version, region=wish.region, copies=wish.copies)

    async def _forget(self, present: set[WorkerId]) -> int:
        """Delete the assignments of those who left long ago; returns how many could not be."""
        now_s, conflicts = self._clock.monotonic_s(), 0
        left = self._control.assignments.keys() - present
        self._gone_since_s = {who: self._gone_since_s.get(who, now_s) for who in left}
        for who in [who for who, since_s in self._gone_since_s.items() if now_s - since_s >= FORGET_S]:
            known = self._control.assignments[who]
            result = await self._store.txn([unchanged(known.key, known.mod_revision)], [Remove(known.key)])
            if result.succeeded:
                self._control.written(who, None)
                self._told_at.pop(who, None)
            conflicts += not result.succeeded
        return conflicts

    def _tell(self, plan: Plan) -> None:
        if plan.shortfalls == self._shortfalls:
            return
        self._shortfalls = plan.shortfalls
        for each in plan.shortfalls:
            wish = each.placement
            _log.warning(
                "copies_short",
                model=wish.model,
                version=wish.version,
                region=wish.region,
                wished=wish.copies,
                placed=each.placed,
                why=each.reason.value,
            )
