"""Decides when an alias may move: once its new target can carry what the old one carries.

Theory of operation. Whose scale counts is the carrier: what the alias points at; where it points at nothing, what `stable`
does; where that does not either, the newest version that is wished for, because that one has the requests that name no
version. In each region where the carrier is wished for, the new target is wished for in as many copies as the carrier has by
now, by wish or by demand, and is warm there when as many of them are READY as of the carrier's, but no more than are wished
for, and one at least: a fleet whose copies are all away for a moment is no reason to move to a version that does not answer.
Where nothing carries, there is nothing to warm; where the carrier waits to be asked for, so will the target.

What demand made of the carrier is asked of the target for as long as the move takes; afterwards demand decides on it as well.

A region whose workers failed to load so many that it cannot get warm any more ends the move at once, and so does a move that
takes too long. Failures that were told of before the target was wished for on behalf of this move do not count: it is tried
anew.

Pure and level-triggered: a move, wishes, workers and what is assigned go in, one step comes out; it never lowers a wish. Never
decides who loads what: `placement.copies.assign` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from placement.copies.wishes import Assignments, Placement
from placement.types import Copy, CopyState, Worker, version_number
from runtime.ids import Digest, ModelName, ModelVersion, Region, WorkerId

MOVE_LIMIT_S = 600.0
"""How long a target may take to get warm."""

MAX_REASON_CHARACTERS = 400
_NAMED_AT_MOST = 3
"""Failed workers that a reason names one by one."""


@dataclass(frozen=True, slots=True)
class Target:
    """A version that a name may mean."""

    version: ModelVersion
    digest: Digest


@dataclass(frozen=True, slots=True)
class Move:
    """A move of an alias that waits for its target to be warm."""

    model: ModelName
    alias: str
    generation: int
    """Of the alias: another one is another move."""
    target: Target
    points_at: Target | None
    """What the alias means until then; None: nothing yet."""
    stable: Target | None
    """What `stable` means, for an alias that points at nothing."""
    waited_s: float
    begun: bool
    """Whether copies were wished for on behalf of this move."""


@dataclass(frozen=True, slots=True)
class Place:
    """These copies have to be wished for first. Their generations are not given yet."""

    wishes: tuple[Placement, ...]
    afterwards: tuple[Placement, ...] = ()
    """What those of them come to once the alias has moved, that ask for more copies than have to be there always."""


@dataclass(frozen=True, slots=True)
class Wait:
    """It is getting warm: what is still missing."""

    why: str


@dataclass(frozen=True, slots=True)
class Switch:
    """The alias may move."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """The alias stays where it is, and why."""

    reason: str


Step = Place | Wait | Switch | Abandon


@dataclass(frozen=True, slots=True)
class FleetIndex:
    """Workers by what they hold, made once for all the moves of one look."""

    sizes: Mapping[Region, int]
    holding: Mapping[ModelName, tuple[Worker, ...]]
    """Who has any copy of the model, in whatever state."""


@dataclass(frozen=True, slots=True)
class Warmth:
    """How far the target is in one region."""

    region: Region
    carrier: Placement
    wished: int
    """Copies of the carrier, by wish or by demand."""
    needed: int
    """READY copies of the target before the alias may move."""
    ready: int
    workers: int
    failed: tuple[tuple[WorkerId, str], ...]
    """Who could not load it for its present wish, and why; by worker id."""
    target: Placement | None
    """The wish for it; None: there is none."""

    @property
    def is_warm(self) -> bool:
        return self.ready >= self.needed

    @property
    def is_hopeless(self) -> bool:
        """Whether too few workers are left that have not failed."""
        return bool(self.failed) and self.workers - len(self.failed) < self.needed


def indexed(workers: Iterable[Worker]) -> FleetIndex:
    """The order of the workers makes no difference to what is decided."""
    sizes: Counter[Region] = Counter()
    holding: dict[ModelName, dict[WorkerId, Worker]] = {}
    for worker in workers:
        sizes[worker.region] += 1
        for copy in worker.copies:
            holding.setdefault(copy.model, {})[worker.worker_id] = worker
    return FleetIndex(sizes, {model: tuple(holders.values()) for model, holders in holding.items()})


def next_step(
    move: Move,
    wishes: Iterable[Placement],
    workers: Iterable[Worker] | FleetIndex,
    assignments: Assignments,
    *,
    limit_s: float = MOVE_LIMIT_S,
) -> Step:
    """What to do about a move now. The order of what goes in makes no difference."""
    regions = warmth(move, wishes, workers, assignments)
    if placed := [each for each in regions if _is_to_be_placed(move, each)]:
        asked = [(_wish(move, each), _afterwards(move, each)) for each in placed]
        return Place(tuple(now for now, _ in asked), tuple(then for now, then in asked if then != now))
    if all(each.is_warm for each in regions):
        return Switch()
    if hopeless := [each for each in regions if each.is_hopeless]:
        return Abandon(_reason(f"version {move.target.version} did not load", hopeless))
    cold = [each for each in regions if not each.is_warm]
    if move.waited_s >= limit_s:
        return Abandon(_reason(f"version {move.target.version} was not warm after {move.waited_s:.0f} s", cold))
    return Wait(_reason(f"version {move.target.version} is getting warm", cold))


def carrier_of(move: Move, wishes: Iterable[Placement]) -> Target | None:
    """The version whose scale the target has to reach; None: there is none."""
    if (known := move.points_at or move.stable) is not None:
        return known
    wished = [Target(wish.version, wish.digest) for wish in wishes if wish.model == move.model and wish.is_wanted]
    return max(wished, key=lambda target: (version_number(target.version), target.digest), default=None)


def warmth(
    move: Move, wishes: Iterable[Placement], workers: Iterable[Worker] | FleetIndex, assignments: Assignments
) -> tuple[Warmth, ...]:
    """How warm the target is in each region that counts, by region."""
    known = [wish for wish in wishes if wish.model == move.model]
    carrier = carrier_of(move, known)
    if carrier is None:
        return ()
    index = workers if isinstance(workers, FleetIndex) else indexed(workers)
    of_target = {wish.region: wish for wish in known if _is_for(wish, move.target)}
    of_carrier = {wish.region: wish for wish in known if _is_for(wish, carrier) and wish.is_wanted}
    return tuple(
        _warmth(move, carrier, of_carrier[region], of_target.get(region), index, assignments) for region in sorted(of_carrier)
    )


def _warmth(
    move: Move,
    carrier: Target,
    wish: Placement,
    target_wish: Placement | None,
    index: FleetIndex,
    assignments: Assignments,
) -> Warmth:
    holders = [worker for worker in index.holding.get(move.model, ()) if worker.region == wish.region]
    failed = sorted(
        (worker.worker_id, copy.reason)
        for worker in holders
        if (copy := _copy_of(worker, move.model, move.target)) is not None
        and copy.state is CopyState.FAILED
        and _was_asked(worker.worker_id, target_wish, assignments)
    )
    wished = max(wish.copies, _by_demand(wish, carrier, holders, assignments))
    return Warmth(
        region=wish.region,
        carrier=wish,
        wished=wished,
        needed=min(wished, max(1, _ready(move.model, carrier, holders))),
        ready=_ready(move.model, move.target, holders),
        workers=index.sizes.get(wish.region, 0),
        failed=tuple(failed),
        target=target_wish,
    )


def _by_demand(wish: Placement, carrier: Target, holders: Iterable[Worker], assignments: Assignments) -> int:
    """Copies that are there because somebody asked: those told to whoever has them, as far as the wish goes."""
    told = (worker for worker in holders if _was_asked(worker.worker_id, replace(wish, generation=0), assignments))
    copies = (_copy_of(worker, wish.model, carrier) for worker in told)
    return min(_most(wish), sum(copy is not None and copy.state is not CopyState.FAILED for copy in copies))


def _is_to_be_placed(move: Move, region: Warmth) -> bool:
    target = region.target
    if target is None or target.copies < region.wished or _most(target) < _most(region.carrier):
        return True
    return not move.begun and not region.is_warm and bool(region.failed)


def _wish(move: Move, region: Warmth) -> Placement:
    """For as long as the move takes: as many copies as the carrier has, and on workers of its kind unless it said of which."""
    return _bounded(_like(move, region), max(region.wished, _least(region)), region)


def _afterwards(move: Move, region: Warmth) -> Placement:
    """Without those that only demand asked for."""
    return _bounded(_like(move, region), _least(region), region)


def _least(region: Warmth) -> int:
    return max(region.carrier.copies, region.target.copies if region.target is not None else 0)


def _like(move: Move, region: Warmth) -> Placement:
    known = region.target if region.target is not None and region.target.is_wanted else region.carrier
    return replace(known, version=move.target.version, digest=move.target.digest, generation=0)


def _bounded(wish: Placement, copies: int, region: Warmth) -> Placement:
    most = max(_most(region.carrier), _most(region.target) if region.target is not None else 0)
    return replace(wish, copies=copies, max_copies=most if most > copies else 0)


def _most(wish: Placement) -> int:
    return max(wish.copies, wish.max_copies)


def _is_for(wish: Placement, target: Target) -> bool:
    return wish.version == target.version and wish.digest == target.digest


def _copy_of(worker: Worker, model: ModelName, target: Target) -> Copy | None:
    copy = worker.copy_of(model, target.version)
    return copy if copy is not None and copy.digest == target.digest else None


def _ready(model: ModelName, target: Target, workers: Iterable[Worker]) -> int:
    copies = (_copy_of(worker, model, target) for worker in workers)
    return sum(copy is not None and copy.state is CopyState.READY for copy in copies)


def _was_asked(who: WorkerId, wish: Placement | None, assignments: Assignments) -> bool:
    """Whether this worker knows the present wish: what it failed at before says nothing about it."""
    return wish is not None and any(
        (held.model, held.version, held.digest) == (wish.model, wish.version, wish.digest)
        and held.generation >= wish.generation
        for held in assignments.get(who, ())
    )


def _reason(what: str, regions: Iterable[Warmth]) -> str:
    told = []
    for region in regions:
        told.append(f"region {region.region!r} has {region.ready} of {region.needed} copies ready")
        told.extend(f"worker {who}: {why or 'it failed'}" for who, why in region.failed[:_NAMED_AT_MOST])
        if (more := len(region.failed) - _NAMED_AT_MOST) > 0:
            told.append(f"{more} more workers failed")
    sentence = f"{what}: {'; '.join(told)}"[:MAX_REASON_CHARACTERS]
    return "".join(character if character.isprintable() else " " for character in sentence)  # workers tell what engines said
