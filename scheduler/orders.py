"""Writes down what each worker is to hold, and knows whether it has heard of it.

Each key is written on condition that nobody else wrote it meanwhile, and that this scheduler leads the region still. A worker
that left keeps its assignment for a while: it may merely have lost its lease, and goes on serving what it holds. Until a worker
has shown itself again after it was told something, what it says of a failure is about what it was told before.

Never decides who holds what.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

import structlog

from placement.copies.wishes import AssignedModel
from placement.types import CopyState, Worker
from runtime.clock import Clock
from runtime.ids import Digest, ModelName, ModelVersion, Region, WorkerId, assignment_key
from runtime.keyvalue import Compare, KeyValueStore, Remove, Step, Write, unchanged
from scheduler.codec import assignment_bytes
from scheduler.control import Control, WrittenAssignment, region_of

FORGET_S = 3_600.0
"""How long the assignment of a worker that left is kept."""

_AT_ONCE = 16
"""Writes under way together."""

_log = structlog.get_logger("penstock.orders")

Leads = Callable[[Region], Sequence[Compare] | None]
"""The conditions of a write for a region; None: another scheduler leads it."""

Entry = tuple[WorkerId, ModelName, ModelVersion]


class Orders:
    """The assignments of those regions that this scheduler leads."""

    def __init__(self, store: KeyValueStore, control: Control, clock: Clock, leads: Leads) -> None:
        self._store, self._control, self._clock, self._leads = store, control, clock, leads
        self._seen: dict[WorkerId, WrittenAssignment] = {}
        self._began = False
        self._told_at: dict[Entry, int] = {}
        """The sequence of a worker's presence when it was last told something else of this version."""
        self._gone_since_s: dict[WorkerId, float] = {}
        self.writes = 0

    def notice(self, sequences: Mapping[WorkerId, int]) -> None:
        """Take in what was written since, by whomever. What is seen for the first time is as old as the fleet."""
        self._told_at = {
            entry: told_at for entry, told_at in self._told_at.items() if sequences.get(entry[0], told_at + 1) <= told_at
        }
        for who, written in self._control.assignments.items():
            known = self._seen.get(who)
            if known is None and not self._began:
                self._seen[who] = written
            elif known is None or known.models != written.models:
                self._see(who, written, sequences.get(who, 0))
        self._began = True

    def answered(self, worker: Worker) -> Worker:
        """The worker, without the failures it told of before it knew its present assignment: it has yet to try again."""
        if not any(self._is_stale(worker, copy.model, copy.version) for copy in worker.copies):
            return worker
        copies = tuple(
            dataclasses.replace(copy, state=CopyState.UNAVAILABLE, reason="")
            if copy.state is CopyState.FAILED and self._is_stale(worker, copy.model, copy.version)
            else copy
            for copy in worker.copies
        )
        return dataclasses.replace(worker, copies=copies)

    def relieved(self, worker: Worker) -> Iterable[tuple[WorkerId, Digest]]:
        """What it failed at and was relieved of, without having heard of it: told anew at once, it would not try anew."""
        for copy in worker.copies:
            if copy.state is CopyState.FAILED and self._is_stale(worker, copy.model, copy.version):
                told = self._control.assignments.get(worker.worker_id)
                if told is None or not any((held.model, held.version) == (copy.model, copy.version) for held in told.models):
                    yield worker.worker_id, copy.digest

    async def write(self, assignments: Mapping[WorkerId, tuple[AssignedModel, ...]], workers: Mapping[WorkerId, Worker]) -> int:
        """Write what differs; how many were written by somebody else meanwhile. Raises whatever the store does."""
        due = (who for who in sorted(assignments) if self._differs(who, workers[who].region, assignments[who]))
        conflicts = 0
        while chunk := list(islice(due, _AT_ONCE)):
            writes = (self._write(workers[who], assignments[who]) for who in chunk)
            for outcome in await asyncio.gather(*writes, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
                conflicts += not outcome
        return conflicts

    async def forget(self, regions: Mapping[WorkerId, Region]) -> int:
        """Delete the assignments of those who left long ago, or to another region; how many could not be."""
        now_s, conflicts = self._clock.monotonic_s(), 0
        assigned = self._control.assignments
        self._gone_since_s = {who: self._gone_since_s.get(who, now_s) for who in assigned if who not in regions}
        due = [assigned[who] for who, since_s in self._gone_since_s.items() if now_s - since_s >= FORGET_S]
        moved = [
            written for who, written in self._control.strays() if who in regions and region_of(written.key) != regions[who]
        ]
        for written in (*due, *moved):
            fence = self._leads(region_of(written.key))
            if fence is None:
                continue
            result = await self._store.txn([*fence, unchanged(written.key, written.mod_revision)], [Remove(written.key)])
            if result.succeeded:
                self._control.removed(written.key)
            conflicts += not result.succeeded
        for who in self._seen.keys() - assigned.keys():
            del self._seen[who]
        return conflicts

    def _differs(self, who: WorkerId, region: Region, models: tuple[AssignedModel, ...]) -> bool:
        known = self._control.assignments.get(who)
        if known is None:
            return bool(models)
        return known.models != models or known.key != assignment_key(region, who)

    async def _write(self, worker: Worker, models: tuple[AssignedModel, ...]) -> bool:
        who, region = worker.worker_id, worker.region
        if (fence := self._leads(region)) is None:
            return True  # whoever leads it by now does it
        known, key = self._control.assignments.get(who), assignment_key(region, who)
        revision = known.mod_revision if known is not None and known.key == key else 0
        conditions, steps = [*fence, unchanged(key, revision)], list[Step]([Write(key, assignment_bytes(models))])
        if known is not None and known.key != key and (other := self._leads(region_of(known.key))) is not None:
            conditions += other
            steps.append(Remove(known.key))  # it moved here from another region of ours
        result = await self._store.txn(conditions, steps)
        if result.succeeded:
            self.writes += 1
            written = WrittenAssignment(key, models, result.revision)
            if len(steps) > 1 and known is not None:
                self._control.removed(known.key)
            self._control.written(who, written)
            self._see(who, written, worker.sequence)
            _log.info("assigned", worker=who, region=region, models=[f"{each.model}/{each.version}" for each in models])
        return result.succeeded

    def _see(self, who: WorkerId, written: WrittenAssignment, sequence: int) -> None:
        before = self._seen[who].models if who in self._seen else ()
        for each in set(before) ^ set(written.models):
            self._told_at[who, each.model, each.version] = sequence
        self._seen[who] = written

    def _is_stale(self, worker: Worker, model: ModelName, version: ModelVersion) -> bool:
        return self._told_at.get((worker.worker_id, model, version), -1) >= worker.sequence
