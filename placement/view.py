"""The fleet as one caller knows it: workers by id, and for every model who could answer for it.

An immutable snapshot: a change makes a new view that shares what did not change, so a decision always sees one consistent
fleet. Changes come in batches (`with_changes`), because a batch costs little more than one. Owns who sits in which slot; never
how busy anyone is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from placement.candidates import Candidates, Integers, Seat, candidates_of, seat_of, seated_alike
from placement.types import ANY_REGION, CandidateKey, Copy, CopyState, Worker, newest
from runtime.ids import Digest, ModelName, ModelVersion, Region, WorkerId

NOBODY = 0
"""The tenure of a slot that no worker holds; tenures count from 1."""


@dataclass(frozen=True, slots=True)
class ModelIndex:
    """Everything the fleet says of one model."""

    holders: Mapping[WorkerId, tuple[Copy, ...]]
    """Its copies, in whatever state."""
    ready: Mapping[tuple[ModelVersion, Region], Candidates]
    """Who could answer, by version and region (ANY_REGION: all of them). No entry is empty."""
    newest_ready: Mapping[Region, ModelVersion]

    def versions(self) -> frozenset[ModelVersion]:
        return frozenset(copy.version for copies in self.holders.values() for copy in copies)


@dataclass(frozen=True, slots=True)
class FleetView:
    """Build it with `FleetView()` and `with_changes`; treat what it holds as read-only."""

    workers: Mapping[WorkerId, Worker] = field(default_factory=dict)
    models: Mapping[ModelName, ModelIndex] = field(default_factory=dict)
    seats: Mapping[WorkerId, Seat] = field(default_factory=dict)
    tenures: Integers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """By slot: which stay it is for, or NOBODY."""
    free_slots: tuple[int, ...] = ()
    last_tenure: int = NOBODY
    lineage: object = field(default_factory=object, compare=False)
    """Views made of one another share it: slots and tenures mean the same in all of them."""
    repeatable: Mapping[ModelName, Mapping[ModelVersion, Digest]] = field(default_factory=dict)
    """Of models whose answers may be given again: each version that is so, and what it is."""

    def with_worker(self, worker: Worker) -> FleetView:
        return self.with_changes((worker,))

    def without_worker(self, worker_id: WorkerId) -> FleetView:
        return self.with_changes((), (worker_id,))

    def with_changes(self, changed: Iterable[Worker], removed: Iterable[WorkerId] = ()) -> FleetView:
        """This fleet with some workers as they are now and some gone; who is both is there. Itself, where nothing differs."""
        now = {worker.worker_id: worker for worker in changed}
        arrived = {worker_id: worker for worker_id, worker in now.items() if self.workers.get(worker_id) != worker}
        left = [worker_id for worker_id in dict.fromkeys(removed) if worker_id in self.workers and worker_id not in now]
        return _changed(self, arrived, left) if arrived or left else self

    def replaced_by(self, workers: Iterable[Worker]) -> FleetView:
        """These workers and no others, after a whole snapshot: who stays keeps seat and reservations."""
        present = {worker.worker_id: worker for worker in workers}
        return self.with_changes(present.values(), [worker_id for worker_id in self.workers if worker_id not in present])

    def copies_of(self, model: ModelName) -> tuple[tuple[Worker, Copy], ...]:
        """Every copy of a model with its worker, by worker id."""
        index = self.models.get(model)
        if index is None:
            return ()
        return tuple((self.workers[holder], copy) for holder in sorted(index.holders) for copy in index.holders[holder])


@dataclass(slots=True)
class _Touched:
    """What a batch of changes does to one model."""

    holders: dict[WorkerId, tuple[Copy, ...]] = field(default_factory=dict)
    """An empty tuple: holds none any more."""
    seated: dict[tuple[ModelVersion, Region], dict[WorkerId, Seat]] = field(default_factory=lambda: defaultdict(dict))
    left: dict[tuple[ModelVersion, Region], set[WorkerId]] = field(default_factory=lambda: defaultdict(set))


def _changed(view: FleetView, arrived: dict[WorkerId, Worker], left: list[WorkerId]) -> FleetView:
    workers = {**view.workers, **arrived}
    for worker_id in left:
        del workers[worker_id]
    seats, tenures, free_slots, last_tenure = _reseated(view, arrived, left)
    touched: dict[ModelName, _Touched] = defaultdict(_Touched)
    for worker_id in (*arrived, *left):
        _touch(touched, view.workers.get(worker_id), arrived.get(worker_id), view.seats.get(worker_id), seats.get(worker_id))
    models, repeatable = dict(view.models), dict(view.repeatable)
    for model, change in touched.items():
        index = _reindexed(model, models.get(model), change)
        repeatable.pop(model, None)
        if index is None:
            models.pop(model, None)
        else:
            models[model] = index
            if digests := _repeatable(index):
                repeatable[model] = digests
    return FleetView(workers, models, seats, tenures, free_slots, last_tenure, view.lineage, repeatable)


def _repeatable(index: ModelIndex) -> dict[ModelVersion, Digest]:
    """A version is what its digest says, so one copy's word is enough; versions that have two digests are two things."""
    said = [copy for copies in index.holders.values() for copy in copies if copy.cacheable and copy.digest]
    if not said:
        return {}
    digests: dict[ModelVersion, set[Digest]] = defaultdict(set)
    for copies in index.holders.values():
        for copy in copies:
            digests[copy.version].add(copy.digest)
    return {copy.version: copy.digest for copy in said if len(digests[copy.version]) == 1}


def _reseated(
    view: FleetView, arrived: dict[WorkerId, Worker], left: list[WorkerId]
) -> tuple[dict[WorkerId, Seat], Integers, tuple[int, ...], int]:
    """A seat for each; who stays keeps slot and tenure, so that what was reserved there stays true."""
    seats, free, tenure = dict(view.seats), list(view.free_slots), view.last_tenure
    newcomers = [worker for worker_id, worker in arrived.items() if worker_id not in seats]
    free.extend(seats.pop(worker_id).slot for worker_id in left)
    free.extend(range(len(view.tenures), len(view.tenures) + max(0, len(newcomers) - len(free))))
    tenures = np.zeros(max(len(view.tenures), max(free, default=-1) + 1), dtype=np.int64)
    tenures[: len(view.tenures)] = view.tenures
    tenures[free] = NOBODY
    for worker_id, worker in arrived.items():
        known = seats.get(worker_id)
        if known is None:
            tenure += 1
            slot = free.pop()
            tenures[slot] = tenure
            seats[worker_id] = seat_of(worker, slot, tenure)
        elif not seated_alike(view.workers[worker_id], worker):
            seats[worker_id] = seat_of(worker, known.slot, known.tenure)
    return seats, tenures, tuple(free), tenure


def _touch(
    touched: dict[ModelName, _Touched], before: Worker | None, after: Worker | None, old_seat: Seat | None, seat: Seat | None
) -> None:
    held_before, held_after = _held(before), _held(after)
    for model in held_before.keys() | held_after.keys():
        was, now = held_before.get(model, ()), held_after.get(model, ())
        moved = before is not None and after is not None and before.region != after.region
        if was == now and old_seat is seat and not moved:
            continue
        worker_id = (before or after).worker_id  # type: ignore[union-attr]  # one of them is there
        change = touched[model]
        change.holders[worker_id] = now
        for key in _ready_keys(before, was):
            change.left[key].add(worker_id)
        for key in _ready_keys(after, now):
            if seat is not None:
                change.seated[key][worker_id] = seat


def _held(worker: Worker | None) -> dict[ModelName, tuple[Copy, ...]]:
    held: dict[ModelName, tuple[Copy, ...]] = {}
    for copy in worker.copies if worker is not None else ():
        held[copy.model] = (*held.get(copy.model, ()), copy)
    return held


def _ready_keys(worker: Worker | None, copies: tuple[Copy, ...]) -> list[tuple[ModelVersion, Region]]:
    if worker is None:
        return []
    ready = [copy.version for copy in copies if copy.state is CopyState.READY]
    return [(version, region) for version in ready for region in (worker.region, ANY_REGION)]


def _reindexed(model: ModelName, index: ModelIndex | None, change: _Touched) -> ModelIndex | None:
    holders = {**(index.holders if index is not None else {}), **change.holders}
    for worker_id, copies in change.holders.items():
        if not copies:
            del holders[worker_id]
    if not holders:
        return None
    ready = dict(index.ready) if index is not None else {}
    for key in change.seated.keys() | change.left.keys():
        known = ready.get(key) or candidates_of(CandidateKey(model, *key), ())
        candidates = known.with_changes(change.seated.get(key, {}), change.left.get(key, set()))
        if candidates.seats:
            ready[key] = candidates
        else:
            ready.pop(key, None)
    return ModelIndex(holders, ready, _newest_by_region(ready))


def _newest_by_region(ready: Mapping[tuple[ModelVersion, Region], Candidates]) -> dict[Region, ModelVersion]:
    versions: dict[Region, list[ModelVersion]] = defaultdict(list)
    for version, region in ready:
        versions[region].append(version)
    return {region: newest(numbers) for region, numbers in versions.items()}
