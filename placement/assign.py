"""Decides which workers should hold which models.

Pure and level-triggered: wishes, workers and what is assigned now go in, what should be assigned comes out; applied again to
its own result it changes nothing. It moves as little as it can: who holds a copy keeps it while the wish lasts, a missing
copy goes to the worker with the fewest, and nobody is relieved merely because another would be a little better. A worker
whose copy FAILED keeps its assignment, so that it does not try again and again, and another worker stands in for it; when the
wish's generation grows, all may try again. A worker of some tenants alone is given nothing that none of them may call.

Never decides how many copies there should be, and knows nothing of memory yet: a worker says how much it has, not how much a
model takes.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from placement.types import CopyState, Worker, version_number
from runtime.ids import Digest, ModelName, ModelVersion, Region, WorkerId


@dataclass(frozen=True, slots=True)
class Placement:
    """A wish: this many copies of a model version in this region."""

    model: ModelName
    version: ModelVersion
    digest: Digest
    region: Region
    copies: int
    """0 = none any more."""
    generation: int
    """Grows with every wish for this model version and region: who failed to load it tries again."""


@dataclass(frozen=True, slots=True)
class AssignedModel:
    """What one worker should hold."""

    model: ModelName
    version: ModelVersion
    digest: Digest
    generation: int


class Shortage(enum.Enum):
    """Why there are fewer copies than wished."""

    NO_WORKERS = "no worker is in the region"
    OTHERS_WORKERS = "every worker in the region is for other tenants"
    TOO_FEW_WORKERS = "every worker in the region holds one"
    FAILED = "workers failed to load it; wish for it again to have them retry"


@dataclass(frozen=True, slots=True)
class Shortfall:
    placement: Placement
    placed: int
    reason: Shortage


@dataclass(frozen=True, slots=True)
class Plan:
    """`assignments` has an entry for every worker there is, empty where it should hold nothing."""

    assignments: Mapping[WorkerId, tuple[AssignedModel, ...]]
    shortfalls: tuple[Shortfall, ...] = ()


Assignments = Mapping[WorkerId, Collection[AssignedModel]]
Callers = Mapping[ModelName, frozenset[str]]
"""Tenants that may call each model, its owner among them. One that is not in here is given to any worker: it looks itself."""

_WORTH_KEEPING = {
    CopyState.READY: 0,
    CopyState.LOADING: 1,
    CopyState.UNAVAILABLE: 2,
    CopyState.DRAINING: 3,
    CopyState.UNLOADING: 4,
    CopyState.FAILED: 5,
}
_NO_COPY = 2
"""As UNAVAILABLE: it was told to, and has not begun."""


def assign(
    placements: Iterable[Placement], workers: Iterable[Worker], current: Assignments, callers: Callers | None = None
) -> Plan:
    """Who should hold what. The order of what goes in makes no difference to what comes out."""
    fleet = {worker.worker_id: worker for worker in workers}
    board = _Board(fleet, current, callers or {})
    wishes = sorted(placements, key=lambda wish: (wish.region, wish.model, version_number(wish.version)))
    kept = [(wish, board.keep(wish)) for wish in wishes]
    return Plan(*board.filled(kept))


class _Board:
    """One run's scratch: who holds what so far."""

    def __init__(self, fleet: Mapping[WorkerId, Worker], current: Assignments, callers: Callers) -> None:
        self._fleet, self._callers = fleet, callers
        self._is_divided = any(worker.tenants for worker in fleet.values())
        self._current = {
            worker_id: {(held.model, held.version): held for held in current.get(worker_id, ())} for worker_id in fleet
        }
        self._regions: dict[Region, list[WorkerId]] = {}
        for worker_id in sorted(fleet):
            self._regions.setdefault(fleet[worker_id].region, []).append(worker_id)
        self._held: dict[WorkerId, list[AssignedModel]] = {worker_id: [] for worker_id in fleet}
        self._counts: Counter[WorkerId] = Counter({worker_id: len(held) for worker_id, held in self._current.items()})

    def keep(self, wish: Placement) -> int:
        """Leave copies where they are, the best of them if there are too many; returns how many count."""
        failed = [who for who in self._region(wish) if wish.copies and self._failed(wish, who)]
        holders = [who for who in self._region(wish) if self._assigned(wish, who) and who not in failed]
        ranked = sorted(holders, key=lambda who: (self._rank(wish, who), self._counts[who], who))
        for who in (*ranked[: wish.copies], *failed):
            self._give(wish, who)
        return min(wish.copies, len(ranked))

    def filled(
        self, kept: list[tuple[Placement, int]]
    ) -> tuple[dict[WorkerId, tuple[AssignedModel, ...]], tuple[Shortfall, ...]]:
        """Add the missing copies, to the workers with the fewest."""
        shortfalls: list[Shortfall] = []
        for wish, count in kept:
            placed = count + self._add(wish, wish.copies - count)
            if placed < wish.copies:
                shortfalls.append(Shortfall(wish, placed, self._shortage(wish)))
        return {who: tuple(sorted(held, key=_order)) for who, held in self._held.items()}, tuple(shortfalls)

    def _add(self, wish: Placement, missing: int) -> int:
        if missing <= 0:
            return 0
        free = [who for who in self._region(wish) if not any(_same(held, wish) for held in self._held[who])]
        # A copy that is in memory already saves a load; one that failed before is the last to try.
        free.sort(key=lambda who: (self._preference(wish, who), len(self._held[who]), who))
        for who in free[:missing]:
            self._give(wish, who)
        return min(missing, len(free))

    def _give(self, wish: Placement, who: WorkerId) -> None:
        self._held[who].append(AssignedModel(wish.model, wish.version, wish.digest, wish.generation))

    def _region(self, wish: Placement) -> list[WorkerId]:
        """Who is there and may load it."""
        there, callers = self._regions.get(wish.region, []), self._callers.get(wish.model)
        if not self._is_divided or callers is None:
            return there
        return [who for who in there if self._fleet[who].may_load(callers)]

    def _assigned(self, wish: Placement, who: WorkerId) -> AssignedModel | None:
        return self._current[who].get((wish.model, wish.version))

    def _failed(self, wish: Placement, who: WorkerId) -> bool:
        assigned = self._assigned(wish, who)
        tried = assigned is not None and assigned.generation >= wish.generation and assigned.digest == wish.digest
        return tried and self._rank(wish, who) == _WORTH_KEEPING[CopyState.FAILED]

    def _rank(self, wish: Placement, who: WorkerId) -> int:
        copy = self._fleet[who].copy_of(wish.model, wish.version)
        return _NO_COPY if copy is None or copy.digest != wish.digest else _WORTH_KEEPING[copy.state]

    def _preference(self, wish: Placement, who: WorkerId) -> int:
        rank = self._rank(wish, who)
        return {_WORTH_KEEPING[CopyState.READY]: 0, _WORTH_KEEPING[CopyState.FAILED]: 2}.get(rank, 1)

    def _shortage(self, wish: Placement) -> Shortage:
        region = self._region(wish)
        if not region:
            return Shortage.OTHERS_WORKERS if self._regions.get(wish.region) else Shortage.NO_WORKERS
        return Shortage.FAILED if any(self._failed(wish, who) for who in region) else Shortage.TOO_FEW_WORKERS


def _same(held: AssignedModel, wish: Placement) -> bool:
    return held.model == wish.model and held.version == wish.version


def _order(held: AssignedModel) -> tuple[ModelName, tuple[int, str]]:
    return held.model, version_number(held.version)
