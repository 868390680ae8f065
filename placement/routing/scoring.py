"""The best of many candidates by a weighted sum, found in two ways: for a handful, in plain Python; for many, over columns.

Both ways give the same worker and the same score, bit for bit: the arithmetic is the same float64 operations in the same order.
A handful costs less in plain Python than numpy's first call; thousands cost less in numpy by two orders of magnitude.

Owns the arithmetic. Never decides who may be a candidate: `placement.routing.contest` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from placement.candidates import Candidates, Flags, Floats, Hashes, hash64
from placement.routing.contest import Contest, distances, eligible_columns, eligible_plain, open_columns, open_plain
from placement.routing.rotation import Credits
from placement.routing.state import HEARD_LIFETIME_S
from placement.types import Weights

_FACTOR_1, _FACTOR_2, _MASK = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, (1 << 64) - 1
"""The multipliers of splitmix64's finaliser (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014)."""

_COLUMN_FACTOR_1, _COLUMN_FACTOR_2, _COLUMN_SHIFT_1, _COLUMN_SHIFT_2 = map(np.uint64, (_FACTOR_1, _FACTOR_2, 32, 29))


@dataclass(frozen=True, slots=True)
class Pick:
    """The best candidate's index, and its score. `own`: it is the session's own worker."""

    index: int
    score: float
    own: bool = False
    credits: Credits | None = None
    """Where turns were taken by capacity."""


@dataclass(frozen=True, slots=True)
class Term:
    """One part of a score that is the same for all requests of a route: added to each one's, so much times its value."""

    name: str
    weight: float
    values: Floats


def affinity_of(worker_hash: int, key_hash: int) -> int:
    """Rendezvous weight of a worker for a session: the worker with the highest one is the session's own.

    Source: Thaler, Ravishankar: Using name-based mappings to increase hit rates, 1998. When a worker leaves, only its own
    sessions move.
    """
    mixed = (worker_hash ^ key_hash) * _FACTOR_1 & _MASK
    mixed = (mixed ^ mixed >> 32) * _FACTOR_2 & _MASK
    return mixed ^ mixed >> 29


def home_of(contest: Contest) -> int:
    """The session's own of those who could be chosen but for room; -1: there is none."""
    key = hash64(contest.request.session_key)
    if contest.is_plain:
        return own_plain(contest.candidates, eligible_plain(contest), key)
    eligible = eligible_columns(contest)
    return own_columns(contest.candidates, eligible, key) if eligible.any() else -1


def terms(contest: Contest, weights: Weights) -> list[Term]:
    """What speaks for and against candidates besides load, session and prefix, in the order in which it is added up."""
    found: list[Term] = []
    if weights.proximity and (far := distances(contest)) is not None:
        found.append(Term("proximity", -weights.proximity, far))
    if weights.gpu:
        found.append(Term("gpu", weights.gpu, contest.candidates.gpu_shares()))
    if weights.cost:
        found.append(Term("cost", -weights.cost, contest.candidates.cost_shares()))
    if weights.preferred and (preferred := contest.selection.preferred) is not None:
        found.append(Term("preferred", weights.preferred, preferred))
    return found


def prefix_shares(contest: Contest, weights: Weights) -> dict[int, float]:
    """How much of the prompt's beginning candidates have seen, by index; those that are not in here have seen none."""
    prefix = contest.request.prefix
    if not prefix or not weights.prefix:
        return {}
    found: dict[int, float] = {}
    for (worker_id, tenure), share in contest.state.prefixes.matches(prefix).items():
        index = contest.candidates.index_of(worker_id)
        if index >= 0 and contest.candidates.seats[index].tenure == tenure:
            found[index] = share
    return found


def session_hash(contest: Contest, weights: Weights) -> int | None:
    key = contest.request.session_key
    return hash64(key) if key and weights.session else None


def weighted(contest: Contest, weights: Weights) -> Pick | None:
    """The one with the highest sum of `weights`. Occupancy = (ours + others' + rows waiting) / capacity."""
    return weighted_plain(contest, weights) if contest.is_plain else weighted_columns(contest, weights)


def weighted_plain(contest: Contest, weights: Weights) -> Pick | None:
    open_ = open_plain(contest)
    if not open_:
        return None
    state, seats, now_s = contest.state, contest.candidates.seats, contest.now_s
    in_flight, heard_at_s = state.in_flight.values, state.heard_at_s.values
    pressure, slowness = state.pressure.values, state.slowness.values
    key, seen = session_hash(contest, weights), prefix_shares(contest, weights)
    added = [(term.weight, term.values.tolist()) for term in terms(contest, weights)]
    own = -1 if key is None else own_plain(contest.candidates, open_, key)
    best, best_score = -1, 0.0
    for index in open_:
        seat = seats[index]
        slot = seat.slot
        taken = in_flight[slot]
        if now_s - heard_at_s[slot] < HEARD_LIFETIME_S:
            score = -((taken + pressure[slot]) * seat.share * weights.occupancy) - slowness[slot] * weights.slowness
        else:
            score = -(taken * seat.share * weights.occupancy)
        for weight, values in added:
            score += weight * values[index]
        if seen and index in seen:
            score += weights.prefix * seen[index]
        if index == own:
            score += weights.session
        if best < 0 or score > best_score:
            best, best_score = index, score
    return Pick(best, best_score, best == own)


def weighted_columns(contest: Contest, weights: Weights) -> Pick | None:
    candidates, state, slots = contest.candidates, contest.state, contest.candidates.slots
    taken: Floats = state.in_flight.array.take(slots)
    open_ = open_columns(contest, taken)
    fresh = contest.fresh()
    # Multiplied by flags in place numpy is several times slower than into a new array.
    taken += state.pressure.array.take(slots) * fresh
    taken *= candidates.shares
    if weights.occupancy != 1.0:
        taken *= weights.occupancy
    scores = np.negative(taken, out=taken)
    if weights.slowness:
        slowness = state.slowness.array.take(slots) * fresh
        slowness *= weights.slowness
        scores -= slowness
    for term in terms(contest, weights):
        scores += term.weight * term.values
    for index, share in prefix_shares(contest, weights).items():
        scores[index] += weights.prefix * share
    own = -1
    if (key := session_hash(contest, weights)) is not None:
        own = own_columns(candidates, open_, key)
        scores[own] += weights.session
    np.putmask(scores, ~open_, -np.inf)
    best = int(scores.argmax())
    score = float(scores[best])
    return Pick(best, score, best == own) if score != -np.inf else None


def own_plain(candidates: Candidates, open_: list[int], key: int) -> int:
    own, own_affinity = -1, -1
    for index in open_:
        affinity = affinity_of(candidates.seats[index].hash64, key)
        if affinity > own_affinity:
            own, own_affinity = index, affinity
    return own


def own_columns(candidates: Candidates, open_: Flags, key: int) -> int:
    mixed: Hashes = candidates.hashes ^ np.uint64(key)
    mixed *= _COLUMN_FACTOR_1
    mixed ^= mixed >> _COLUMN_SHIFT_1
    mixed *= _COLUMN_FACTOR_2
    mixed ^= mixed >> _COLUMN_SHIFT_2
    return int((mixed * open_).argmax())
