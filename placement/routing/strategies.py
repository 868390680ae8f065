"""The seven ways to choose among candidates, by name. `affinity` weighs (`placement.routing.scoring`); the others are here.

Each is written twice, for a handful and over columns, and both ways give the same worker and score, bit for bit; the first of
equals is the one with the lowest id. Where rules prefer some workers, the strategies that weigh nothing choose among those
first, and among the others while none of them has room.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from placement.candidates import Flags, Floats
from placement.routing import rotation
from placement.routing.contest import Contest, open_columns, open_plain
from placement.routing.scoring import Pick, weighted
from placement.types import Strategy

_LOW = 0xFFFFFFFF
_UNKNOWN_MS = 1.0
"""The latency of everybody while nobody's is known."""


def pick(contest: Contest, strategy: Strategy) -> Pick | None:
    """The strategy's best of the open candidates; None: none is open."""
    if strategy is Strategy.AFFINITY:
        return weighted(contest, contest.route.weights)
    if contest.is_plain:
        listed = contenders_plain(contest)
        return _PLAIN[strategy](contest, listed) if listed else None
    flags = contenders_columns(contest)
    return _COLUMNS[strategy](contest, flags) if flags.any() else None


def contenders_plain(contest: Contest) -> list[int]:
    """The open ones; of these the preferred alone, if there are any."""
    open_ = open_plain(contest)
    if (preferred := contest.selection.preferred) is not None:
        return [index for index in open_ if preferred[index]] or open_
    return open_


def contenders_columns(contest: Contest) -> Flags:
    open_ = open_columns(contest, contest.state.in_flight.array.take(contest.candidates.slots))
    if (preferred := contest.selection.preferred) is not None:
        first: Flags = open_ & (preferred > 0.0)
        return first if first.any() else open_
    return open_


def drawn(count: int, draw: int) -> tuple[int, int]:
    """Two different of so many, or one twice where there is but one. `draw`: 64 random bits."""
    first = (draw & _LOW) * count >> 32
    second = (draw >> 32 & _LOW) * (count - 1) >> 32
    return first, min(second + (second >= first), count - 1)


def occupancy(contest: Contest, index: int) -> float:
    """(ours + others' + rows waiting) / capacity."""
    seat = contest.candidates.seats[index]
    return contest.pressure(seat.slot) * seat.share


def least_loaded_plain(contest: Contest, open_: list[int]) -> Pick:
    loads = [occupancy(contest, index) for index in open_]
    least = min(loads)
    return Pick(open_[loads.index(least)], -least)


def least_loaded_columns(contest: Contest, open_: Flags) -> Pick:
    loads = pressures(contest)
    loads *= contest.candidates.shares
    np.putmask(loads, ~open_, np.inf)
    best = int(loads.argmin())
    return Pick(best, -float(loads[best]))


def two_choices_plain(contest: Contest, open_: list[int]) -> Pick:
    return _less_loaded(contest, *(open_[each] for each in drawn(len(open_), contest.request.draw)))


def two_choices_columns(contest: Contest, open_: Flags) -> Pick:
    listed = np.flatnonzero(open_)
    return _less_loaded(contest, *(int(listed[each]) for each in drawn(len(listed), contest.request.draw)))


def latency_plain(contest: Contest, open_: list[int]) -> Pick:
    found = waits(contest, open_)
    least = min(found)
    return Pick(open_[found.index(least)], -least)


def waits(contest: Contest, open_: list[int]) -> list[float]:
    """For each the average latency in ms, times how many are there and this one; who is unknown is as good as the best known.

    As Finagle's and linkerd's peak EWMA.
    """
    slots = [contest.candidates.seats[index].slot for index in open_]
    told = [contest.state.latency_ms.values[slot] if contest.heard(slot) else 0.0 for slot in slots]
    unknown = min((latency for latency in told if latency > 0.0), default=_UNKNOWN_MS)
    known = [latency if latency > 0.0 else unknown for latency in told]
    return [latency * (1.0 + contest.pressure(slot)) for latency, slot in zip(known, slots, strict=True)]


def latency_columns(contest: Contest, open_: Flags) -> Pick:
    state, slots = contest.state, contest.candidates.slots
    fresh = contest.fresh()
    told: Floats = state.latency_ms.array.take(slots) * fresh
    known = told > 0.0
    unknown = float(np.where(open_ & known, told, np.inf).min())
    np.putmask(told, ~known, unknown if unknown != np.inf else _UNKNOWN_MS)
    there = pressures(contest, fresh)
    there += 1.0
    told *= there
    np.putmask(told, ~open_, np.inf)
    best = int(told.argmin())
    return Pick(best, -float(told[best]))


def cost_plain(contest: Contest, open_: list[int]) -> Pick:
    costs = [contest.candidates.seats[index].cost for index in open_]
    cheapest = min(costs)
    best = least_loaded_plain(contest, [index for index, cost in zip(open_, costs, strict=True) if cost == cheapest])
    return Pick(best.index, -cheapest)


def cost_columns(contest: Contest, open_: Flags) -> Pick:
    costs = np.where(open_, contest.candidates.costs(), np.inf)
    cheapest = float(costs.min())
    return Pick(least_loaded_columns(contest, costs == cheapest).index, -cheapest)


def round_robin_plain(contest: Contest, open_: list[int]) -> Pick:
    return Pick(rotation.following_plain(open_, contest.state.turns.start(contest.candidates)), 0.0)


def round_robin_columns(contest: Contest, open_: Flags) -> Pick:
    return Pick(rotation.following_columns(open_, contest.state.turns.start(contest.candidates)), 0.0)


def by_capacity_plain(contest: Contest, open_: list[int]) -> Pick:
    index, owed = rotation.by_capacity_plain(contest.candidates, open_, contest.state.turns.owed(contest.candidates))
    return Pick(index, 0.0, credits=owed)


def by_capacity_columns(contest: Contest, open_: Flags) -> Pick:
    index, owed = rotation.by_capacity_columns(contest.candidates, open_, contest.state.turns.owed(contest.candidates))
    return Pick(index, 0.0, credits=owed)


def pressures(contest: Contest, fresh: Flags | None = None) -> Floats:
    """`Contest.pressure` of all. `fresh`: what `Contest.fresh` says."""
    state, slots = contest.state, contest.candidates.slots
    others: Floats = state.pressure.array.take(slots) * (contest.fresh() if fresh is None else fresh)
    others += state.in_flight.array.take(slots)
    return others


def _less_loaded(contest: Contest, one: int, other: int) -> Pick:
    first, second = min(one, other), max(one, other)
    mine, theirs = occupancy(contest, first), occupancy(contest, second)
    return Pick(first, -mine) if mine <= theirs else Pick(second, -theirs)


_PLAIN: dict[Strategy, Callable[[Contest, list[int]], Pick]] = {
    Strategy.ROUND_ROBIN: round_robin_plain,
    Strategy.WEIGHTED_ROUND_ROBIN: by_capacity_plain,
    Strategy.LEAST_LOADED: least_loaded_plain,
    Strategy.TWO_CHOICES: two_choices_plain,
    Strategy.LATENCY: latency_plain,
    Strategy.COST: cost_plain,
}
_COLUMNS: dict[Strategy, Callable[[Contest, Flags], Pick]] = {
    Strategy.ROUND_ROBIN: round_robin_columns,
    Strategy.WEIGHTED_ROUND_ROBIN: by_capacity_columns,
    Strategy.LEAST_LOADED: least_loaded_columns,
    Strategy.TWO_CHOICES: two_choices_columns,
    Strategy.LATENCY: latency_columns,
    Strategy.COST: cost_columns,
}
