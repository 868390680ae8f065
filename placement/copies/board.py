"""One run of `placement.copies.assign`: who holds what so far, and the moves that change it.

Workers are positions in their region's `Pool`. Never decides in which order wishes are served, nor who gives way to whom.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from placement.copies.demand import DemandKey
from placement.copies.pool import Mask, Pool
from placement.copies.wishes import AssignedModel, Assignments, Bars, Callers, Placement, Wanted, was_evicted
from placement.types import Copy, CopyState, Worker, version_number
from runtime.ids import Digest, Region, WorkerId

_WORTH_KEEPING = {
    CopyState.READY: 0,
    CopyState.LOADING: 1,
    CopyState.UNAVAILABLE: 2,
    CopyState.DRAINING: 3,
    CopyState.UNLOADING: 4,
    CopyState.FAILED: 5,
}
_NO_COPY = _WORTH_KEEPING[CopyState.UNAVAILABLE]
"""It was told to, and has not begun."""

_HELD = (CopyState.READY, CopyState.LOADING)
_WITH_FILES = (CopyState.LOADING, CopyState.DRAINING, CopyState.UNLOADING)
_NEVER_S = float("-inf")


@dataclass(slots=True, eq=False)
class Stand:
    """One wish, and how far it is."""

    wish: Placement
    order: int
    wanted: int
    used_s: float
    pool: Pool
    suiting: Mask
    bytes: int = 0
    """What a copy takes where no copy is that says; 0 = unknown."""
    copies: dict[int, Copy] = field(default_factory=dict)
    """What workers hold of it, in whatever state."""
    assigned: dict[int, AssignedModel] = field(default_factory=dict)
    """Who is told to hold it now."""
    placed: set[int] = field(default_factory=set)
    """Who is to hold it."""
    failed: set[int] = field(default_factory=set)
    """Who keeps it without counting: it failed, or let go of it and is waited for."""

    def need_bytes(self, at: int) -> int:
        copy = self.copies.get(at)
        return copy.memory_bytes if copy is not None and copy.memory_bytes else self.bytes

    def holds(self, at: int) -> bool:
        """Whether it is in that worker's memory, or on its way there."""
        return (copy := self.copies.get(at)) is not None and copy.state in _HELD

    def was_evicted(self, at: int) -> bool:
        """Whether that worker let go of it for want of memory."""
        return (copy := self.copies.get(at)) is not None and was_evicted(copy)

    def has_failed(self, at: int) -> bool:
        """Whether it failed at what it is told to hold."""
        told, copy = self.assigned.get(at), self.copies.get(at)
        tried = told is not None and told.generation >= self.wish.generation and told.digest == self.wish.digest
        return tried and copy is not None and copy.state is CopyState.FAILED

    def rank(self, at: int) -> int:
        copy = self.copies.get(at)
        return _NO_COPY if copy is None else _WORTH_KEEPING[copy.state]


class Board:
    """Who holds what so far."""

    def __init__(
        self,
        placements: Iterable[Placement],
        workers: Iterable[Worker],
        current: Assignments,
        callers: Callers,
        wanted: Wanted,
        bars: Bars,
    ) -> None:
        self._bars = bars
        self._relieved: dict[Digest, list[WorkerId]] = {}
        for who, digest in bars.relieved:
            self._relieved.setdefault(digest, []).append(who)
        regions: dict[Region, list[Worker]] = {}
        for worker in workers:
            regions.setdefault(worker.region, []).append(worker)
        self.pools = {region: Pool(regions[region]) for region in sorted(regions)}
        empty = Pool(())
        self.stands: dict[DemandKey, Stand] = {}
        for wish in sorted(placements, key=lambda wish: (wish.region, wish.model, version_number(wish.version))):
            pool = self.pools.get(wish.region, empty)
            self.stands[wish.key] = Stand(
                wish=wish,
                order=len(self.stands),
                wanted=max(wish.copies, wanted.copies.get(wish.key, 0)),
                used_s=wanted.used_s.get(wish.key, _NEVER_S),
                pool=pool,
                suiting=pool.suiting(wish.tier, wish.labels, callers.get(wish.model)),
            )
        self.moves = 0
        """Copies placed and taken."""
        self._given: dict[WorkerId, dict[int, AssignedModel]] = {}
        self._told: Counter[WorkerId] = Counter()
        for pool in self.pools.values():
            for at, worker in enumerate(pool.workers):
                self._read(pool, at, worker, current)
        self._measure()

    def keep(self, stand: Stand) -> None:
        """Leave copies where they are, the best if there are too many. `restore` looks at those let go of for memory."""
        if not stand.wanted:
            return
        staying = [at for at in stand.assigned if stand.suiting[at] and not self.is_barred(stand, at)]
        failed = [at for at in staying if stand.has_failed(at)]
        holders = [at for at in staying if not stand.has_failed(at) and not stand.was_evicted(at)]
        if len(holders) > stand.wanted:
            ids = stand.pool.workers
            holders.sort(key=lambda at: (stand.rank(at), self._told[ids[at].worker_id], at))
        for at in holders[: stand.wanted]:
            self.give(stand, at)
        for at in failed:
            self._hold_on(stand, at)

    def restore(self, stand: Stand) -> None:
        """A copy let go of for memory counts where it fits again; where nobody knows, it waits and counts for nothing."""
        for at in sorted(stand.assigned):
            if not (stand.wanted and stand.suiting[at] and stand.was_evicted(at)) or self.is_barred(stand, at):
                continue
            if not self._is_measured(stand, at):
                self._hold_on(stand, at)
            elif len(stand.placed) < stand.wanted and stand.pool.fits(at, stand.need_bytes(at)):
                self.give(stand, at)

    def add(self, stand: Stand, copies: int) -> None:
        """Place what is missing to so many, as far as it fits."""
        missing = copies - len(stand.placed)
        if missing <= 0 or self.is_exhausted(stand):
            return
        taken = self.taken_mask(stand)
        known = sorted((at for at in stand.copies if not taken[at]), key=lambda at: (self._preference(stand, at), at))
        for at in stand.copies:
            taken[at] = True
        ready = [at for at in known if self._preference(stand, at) < 2 and self._has_room(stand, at)][:missing]
        rest = [at for at in known if self._preference(stand, at) == 2 and self._has_room(stand, at)]
        new = stand.pool.emptiest(~taken, stand.bytes, missing - len(ready)) if len(ready) < missing else []
        for at in (*ready, *new, *rest)[:missing]:  # one that failed before is the last to try
            self.give(stand, at)

    def give(self, stand: Stand, at: int) -> None:
        self.moves += 1
        self._write(stand, at)
        stand.placed.add(at)
        stand.pool.add(at, self._charge(stand, at))

    def take(self, stand: Stand, at: int) -> None:
        """The copy gives way."""
        self.moves += 1
        del self._given[stand.pool.workers[at].worker_id][stand.order]
        stand.placed.remove(at)
        stand.pool.remove(at, stand.need_bytes(at))

    def taken_mask(self, stand: Stand) -> Mask:
        """Who cannot be given one more: it has it, is not of the kind, or is barred."""
        taken = ~stand.suiting
        for at in (*stand.placed, *stand.failed):
            taken[at] = True
        for who in self._relieved.get(stand.wish.digest, ()):
            if (there := stand.pool.positions.get(who)) is not None:
                taken[there] = True
        for at in stand.copies:
            if stand.was_evicted(at) and not self._is_measured(stand, at):
                taken[at] = True
        return taken

    def is_barred(self, stand: Stand, at: int) -> bool:
        return (stand.pool.workers[at].worker_id, stand.wish.digest) in self._bars.relieved

    def is_exhausted(self, stand: Stand) -> bool:
        return (stand.wish.region, stand.wish.digest) in self._bars.exhausted

    def assignments(self, current: Assignments) -> dict[WorkerId, tuple[AssignedModel, ...]]:
        """An entry for every worker; the very tuple it has now, where nothing differs."""
        found: dict[WorkerId, tuple[AssignedModel, ...]] = {}
        for pool in self.pools.values():
            for worker in pool.workers:
                given = self._given[worker.worker_id]
                models = tuple(given[order] for order in sorted(given))
                before = current.get(worker.worker_id)
                found[worker.worker_id] = before if isinstance(before, tuple) and before == models else models
        return found

    def _read(self, pool: Pool, at: int, worker: Worker, current: Assignments) -> None:
        self._given[worker.worker_id] = {}
        told = current.get(worker.worker_id, ())
        self._told[worker.worker_id] = len(told)
        for each in told:
            if (stand := self.stands.get((worker.region, each.model, each.version))) is not None:
                stand.assigned[at] = each
        for copy in worker.copies:
            stand = self.stands.get((worker.region, copy.model, copy.version))
            if stand is not None and stand.wish.digest == copy.digest:
                stand.copies[at] = copy
            if copy.state in _HELD and not any(each.model == copy.model and each.version == copy.version for each in told):
                pool.free_bytes[at] -= copy.memory_bytes  # somebody else asked for it, or it has yet to leave

    def _measure(self) -> None:
        largest: dict[Digest, int] = {}
        for stand in self.stands.values():
            known = max((copy.memory_bytes for copy in stand.copies.values()), default=0)
            largest[stand.wish.digest] = max(known, largest.get(stand.wish.digest, 0))
        for stand in self.stands.values():
            stand.bytes = largest[stand.wish.digest] or stand.wish.memory_bytes

    def _hold_on(self, stand: Stand, at: int) -> None:
        """It keeps its order and counts for nothing: it takes no memory as long as it does not load."""
        self._write(stand, at)
        stand.failed.add(at)
        stand.pool.counts[at] += 1

    def _write(self, stand: Stand, at: int) -> None:
        wish = stand.wish
        told = AssignedModel(wish.model, wish.version, wish.digest, wish.generation)
        before = stand.assigned.get(at)
        self._given[stand.pool.workers[at].worker_id][stand.order] = before if before == told else told

    def _charge(self, stand: Stand, at: int) -> int:
        """Nothing for what is in memory without an assignment: that was counted already."""
        return 0 if at not in stand.assigned and stand.holds(at) else stand.need_bytes(at)

    def _has_room(self, stand: Stand, at: int) -> bool:
        return not stand.need_bytes(at) or bool(stand.pool.free_bytes[at] >= self._charge(stand, at))

    def _is_measured(self, stand: Stand, at: int) -> bool:
        return bool(stand.need_bytes(at)) and stand.pool.says_memory(at)

    def _preference(self, stand: Stand, at: int) -> int:
        """A copy that is in memory already saves a load, files save half of one."""
        state = stand.copies[at].state
        if state is CopyState.READY:
            return 0
        return 1 if state in _WITH_FILES else 2
