"""Decides how many copies of a model version there should be.

A wish says at least how many, and may leave more to demand: none until somebody asks, a second copy for what is busy, more as
they fill up, fewer when they are idle. Up at once and as far as needed; down one copy at a time, and never before the scale
has stood, and the demand has been heard, for as long as a copy may be idle. Between the demand that adds a copy and the one
that gives it up lies a band in which nothing changes, so near-equal numbers do not take turns (petals#389).

What there is now is read from the assignments, so a new leader goes on where the old one was. Remembered is the demand, and
since when a scale has stood; who does not know begins that time anew, which keeps copies longer and never gives one up early.

Pure. Never decides where a copy goes: `placement.copies.assign` does.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from placement.copies.demand import Demand, DemandKey, Rate, Trace
from placement.copies.wishes import Assignments, Placement, was_evicted
from placement.types import CopyState, Worker
from runtime.ids import Region


@dataclass(frozen=True, slots=True)
class ScaleRules:
    """When a copy comes and goes."""

    target: float = 0.7
    """Of what its copies take at once, so much may be in use before there is one more."""
    release: float = 0.6
    """Of that, so much may be in use with one copy fewer for one to be given up."""
    second: float = 0.25
    """What uses so much of one copy gets a second; it is given up at half of it."""
    refused_per_s: float = 0.02
    """More than this is too often: one refusal counts for a quarter of a minute."""
    settle_s: float = 30.0
    """A new copy gets so long to show that it ends refusals, before the next one; so long lies between two that go."""
    idle_s: float = 600.0
    second_idle_s: float = 1_800.0
    """What was busy keeps its second copy longer, as it does in ModelMesh: it is likely to be busy again."""


DEFAULT_RULES = ScaleRules()


class ScaleReason(enum.Enum):
    """Why so many."""

    WISHED = "as many as wished for"
    ASKED = "somebody asks for it"
    BUSY = "a second copy for what is busy"
    FULL = "its copies fill up"
    REFUSED = "requests found every copy full"
    KEPT = "nothing asks for a change"
    UNHEARD = "no gateway tells of demand"
    IDLE = "nobody asked for it for long"
    EASED = "fewer copies would do for long"


@dataclass(frozen=True, slots=True)
class Scale:
    """A decision, and what the next one needs to know of it."""

    copies: int
    reason: ScaleReason
    generation: int
    """Of the wish: with another one its time begins anew."""
    grown_s: float
    """When it last grew, or was first seen."""
    shrunk_s: float = -math.inf
    """When a copy was last given up."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What there is of one version in one region."""

    assigned: int = 0
    """Workers that are told to hold it, and neither failed to nor let go of it for want of memory."""
    ready: int = 0
    capacity: float = 1.0
    """Requests that one copy takes at once."""


def scales(
    placements: Iterable[Placement],
    workers: Iterable[Worker],
    current: Assignments,
    demand: Demand,
    before: Mapping[DemandKey, Scale],
    *,
    now_s: float,
    rules: ScaleRules = DEFAULT_RULES,
) -> dict[DemandKey, Scale]:
    """By key, for every wish that leaves something to demand; of all others there are as many copies as wished for."""
    wishes = {wish.key: wish for wish in placements if wish.max_copies > wish.copies}
    if not wishes:
        return {}
    there = standings(wishes, workers, current)
    return {key: scaled(wish, there[key], demand, before.get(key), now_s=now_s, rules=rules) for key, wish in wishes.items()}


def scaled(
    wish: Placement,
    there: Standing,
    demand: Demand,
    before: Scale | None,
    *,
    now_s: float,
    rules: ScaleRules = DEFAULT_RULES,
) -> Scale:
    """How many copies of one version there should be now."""
    most = max(wish.copies, wish.max_copies)
    present = min(max(there.assigned, wish.copies), most)
    stood = before is not None and before.generation == wish.generation and present <= before.copies
    grown_s = before.grown_s if before is not None and stood else now_s
    shrunk_s = before.shrunk_s if before is not None else -math.inf
    if wish.copies == most:
        return Scale(present, ScaleReason.WISHED, wish.generation, grown_s)
    rate, trace = demand.rates.get(wish.key, Rate()), demand.traces.get(wish.key)
    needed, reason = _needed(wish, there, present, rate, trace, since_grown_s=now_s - grown_s, now_s=now_s, rules=rules)
    if min(needed, most) > present:
        return Scale(min(needed, most), reason, wish.generation, now_s)
    if demand.since_s is None:
        return Scale(present, ScaleReason.UNHEARD, wish.generation, grown_s, shrunk_s)
    fewer = _gives_up(wish, there, present, trace, known_s=max(demand.since_s, grown_s), now_s=now_s, rules=rules)
    if fewer is not None and present > wish.copies and now_s - shrunk_s >= rules.settle_s:
        return Scale(present - 1, fewer, wish.generation, grown_s, now_s)
    return Scale(present, ScaleReason.KEPT, wish.generation, grown_s, shrunk_s)


def standings(
    wishes: Mapping[DemandKey, Placement], workers: Iterable[Worker], current: Assignments
) -> dict[DemandKey, Standing]:
    """What there is of each. The order of what goes in makes no difference."""
    assigned, ready = dict.fromkeys(wishes, 0), dict.fromkeys(wishes, 0)
    regions: dict[Region, list[Worker]] = {}
    for worker in workers:
        regions.setdefault(worker.region, []).append(worker)
        for told in current.get(worker.worker_id, ()):
            wish = wishes.get((worker.region, told.model, told.version))
            if wish is None:
                continue
            copy = worker.copy_of(told.model, told.version)
            state = copy.state if copy is not None and copy.digest == wish.digest else None
            assigned[wish.key] += state is not CopyState.FAILED and (copy is None or not was_evicted(copy))
            ready[wish.key] += state is CopyState.READY
    capacities: dict[tuple[Region, str, frozenset[str]], float] = {}
    for wish in wishes.values():
        kind = (wish.region, wish.tier, wish.labels)
        if kind not in capacities:
            capacities[kind] = _capacity(wish, regions.get(wish.region, ()))
    return {
        key: Standing(assigned[key], ready[key], capacities[wish.region, wish.tier, wish.labels])
        for key, wish in wishes.items()
    }


def _needed(
    wish: Placement,
    there: Standing,
    present: int,
    rate: Rate,
    trace: Trace | None,
    *,
    since_grown_s: float,
    now_s: float,
    rules: ScaleRules,
) -> tuple[int, ScaleReason]:
    """The copies that what is asked for now calls for."""
    if trace is None or now_s - trace.used_s >= (wish.idle_s or rules.idle_s):
        return 0, ScaleReason.KEPT
    refused = rate.refused_per_s > rules.refused_per_s
    by_load = math.ceil(rate.concurrency / (rules.target * there.capacity) - 1e-9)
    if by_load > max(2, present):
        return by_load, ScaleReason.FULL
    if refused and present >= 2 and there.ready >= present and since_grown_s >= rules.settle_s:
        return present + 1, ScaleReason.REFUSED
    if refused or rate.concurrency > rules.second * there.capacity:
        return 2, ScaleReason.BUSY
    return 1, ScaleReason.ASKED


def _gives_up(
    wish: Placement, there: Standing, present: int, trace: Trace | None, *, known_s: float, now_s: float, rules: ScaleRules
) -> ScaleReason | None:
    """Why one copy may go; None: it may not. `known_s`: since when this many copies and the demand have been seen."""
    idle_s = wish.idle_s or (rules.second_idle_s if present == 2 else rules.idle_s)
    if now_s - known_s < idle_s:
        return None
    if trace is None or now_s - trace.used_s >= idle_s:
        return ScaleReason.IDLE
    if present < 2:
        return None
    enough = rules.release * rules.target * (present - 1) if present > 2 else rules.second / 2
    return ScaleReason.EASED if trace.peak(now_s - idle_s) < enough * there.capacity else None


def _capacity(wish: Placement, workers: Iterable[Worker]) -> float:
    """What a worker that could hold it takes at once, on average: the same, whichever of them hold it."""
    fit = [worker.max_in_flight for worker in workers if wish.suits(worker)]
    return max(1.0, sum(fit) / len(fit)) if fit else 1.0
