"""What is under the control keys: wishes (how many copies of a model where) and assignments (what each worker should hold).

A local copy of etcd's, kept by the loop, with the revision of each key for compare-and-swap. Wishes outlive an etcd that was
wiped: those that a new snapshot lacks stay wished and are listed as `lost` until they are written again. Nobody deletes a
wish to end it: its copies become 0.

Owns the copy. Never writes to etcd: `scheduler.placements` and `scheduler.reconcile` do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import structlog

from placement.copies.assign import AssignedModel, Placement
from runtime.errors import InvalidArgument
from runtime.ids import Region, WorkerId, placement_key
from runtime.keyvalue import Event, KeyValue, Put
from scheduler.codec import assignment_from, placement_from

CONTROL_PREFIX = "/penstock/control/"
_log = structlog.get_logger("penstock.control")


@dataclass(frozen=True, slots=True)
class WrittenAssignment:
    """What a worker is told to hold, and by which revision of its key."""

    key: str
    models: tuple[AssignedModel, ...]
    mod_revision: int


class Control:
    """Wishes and assignments as etcd last showed them."""

    def __init__(self) -> None:
        self._wishes: dict[str, Placement] = {}
        self._assignments: dict[WorkerId, WrittenAssignment] = {}
        self._older: dict[str, WrittenAssignment] = {}
        """By key: of workers that have a newer one in another region."""
        self.lost: dict[str, Placement] = {}
        """By key: wishes that etcd has forgotten."""
        self.synced = False

    def wishes(self) -> list[Placement]:
        """In the order of their keys: region, model, version."""
        return [self._wishes[key] for key in sorted(self._wishes)]

    def __len__(self) -> int:
        """How many wishes there are."""
        return len(self._wishes)

    def wish_at(self, key: str) -> Placement | None:
        return self._wishes.get(key)

    @property
    def assignments(self) -> Mapping[WorkerId, WrittenAssignment]:
        return self._assignments

    def replace(self, items: Iterable[KeyValue]) -> bool:
        """Everything that etcd holds now; says whether the wishes differ from before."""
        before, found = dict(self._wishes), list(items)
        here = {item.key for item in found}
        self.lost = {key: wish for key, wish in before.items() if key not in here}
        self._assignments, self._older = {}, {}
        for item in found:
            self._put(item)
        self.synced = True
        return self._wishes != before

    def apply(self, events: Iterable[Event]) -> bool:
        """What happened, in order; says whether the wishes differ from before."""
        before = dict(self._wishes)
        for event in events:
            if isinstance(event, Put):
                self._put(event.item)
            else:
                self._delete(event.key)
        return self._wishes != before

    def strays(self) -> list[tuple[WorkerId, WrittenAssignment]]:
        """Assignments beside the newest one of the same worker: it was in another region before."""
        return [(worker_of(key), written) for key, written in sorted(self._older.items())]

    def written(self, worker_id: WorkerId, assignment: WrittenAssignment) -> None:
        """A write of our own succeeded; its echo is still to come."""
        known = self._assignments.get(worker_id)
        if known is not None and known.key != assignment.key:
            older = min(known, assignment, key=lambda each: each.mod_revision)
            self._older[older.key] = older
            assignment = assignment if older is known else known
        self._older.pop(assignment.key, None)
        self._assignments[worker_id] = assignment

    def removed(self, key: str) -> None:
        """An assignment's key is gone."""
        self._older.pop(key, None)
        who = worker_of(key)
        if (known := self._assignments.get(who)) is not None and known.key == key:
            del self._assignments[who]
            for older in [written for stray, written in self.strays() if stray == who]:
                self.written(who, older)

    def _put(self, item: KeyValue) -> None:
        try:
            match item.key.removeprefix(CONTROL_PREFIX).split("/"):
                case [_, "placements", _, _]:
                    self._put_wish(item)
                case [_, "assignments", worker_id]:
                    known = self._assignments.get(WorkerId(worker_id))
                    if known is None or known.key != item.key or known.mod_revision < item.mod_revision:
                        written = WrittenAssignment(item.key, assignment_from(item.value), item.mod_revision)
                        self.written(WorkerId(worker_id), written)
        except InvalidArgument as error:
            _log.warning("control_key_ignored", key=item.key, why=error.message)

    def _put_wish(self, item: KeyValue) -> None:
        wish = placement_from(item.value)
        if placement_key(wish.region, wish.model, wish.version) != item.key:
            raise InvalidArgument(f"a wish for {wish.model!r} in {wish.region!r} does not belong under this key")
        self._wishes[item.key] = wish
        self.lost.pop(item.key, None)

    def _delete(self, key: str) -> None:
        self._wishes.pop(key, None)
        self.removed(key)


def region_of(key: str) -> Region:
    """Of a control key."""
    return Region(key.removeprefix(CONTROL_PREFIX).partition("/")[0])


def worker_of(key: str) -> WorkerId:
    """Of an assignment's key."""
    return WorkerId(key.rpartition("/")[2])
