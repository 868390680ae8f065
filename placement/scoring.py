"""Three ways to find the best of many candidates, each written twice: for a handful, in plain Python; for many, over columns.

Both ways give the same worker and the same score, bit for bit: the arithmetic is the same float64 operations in the same order.
A handful costs less in plain Python than numpy's first call; thousands cost less in numpy by two orders of magnitude.

Owns the arithmetic. Never decides who may be a candidate: `room` says who has room, `placement.policy` passes over the rest.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.candidates import Candidates, Floats, hash64
from placement.state import HEARD_LIFETIME_S, RoutingState
from placement.types import Weights

PLAIN_LIMIT = 24
"""Up to so many candidates the plain way is the faster one (benchmarks/placement.py)."""

_FACTOR_1, _FACTOR_2, _MASK = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, (1 << 64) - 1
"""The multipliers of splitmix64's finaliser (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014)."""


@dataclass(frozen=True, slots=True)
class Pick:
    """The best candidate's index, and its score. `own`: it is the session's own worker."""

    index: int
    score: float
    own: bool = False


def plain(candidates: Candidates) -> bool:
    return len(candidates.seats) <= PLAIN_LIMIT


def next_in_turn(candidates: Candidates, state: RoutingState, blocked: Collection[int]) -> Pick | None:
    """The first with room behind the one whose turn was last, by id, and around."""
    last = state.turns.get(candidates.key)
    start = 0 if last is None else bisect_right(candidates.ids, last) % len(candidates.ids)
    following = _following_plain if plain(candidates) else _following_columns
    return following(candidates, state, blocked, start)


def least_loaded(candidates: Candidates, state: RoutingState, blocked: Collection[int], now_s: float) -> Pick | None:
    """The one with the smallest part of its capacity taken."""
    return weighted(candidates, state, blocked, now_s, "", Weights(session=0.0, occupancy=1.0, slowness=0.0))


def weighted(
    candidates: Candidates, state: RoutingState, blocked: Collection[int], now_s: float, session_key: str, weights: Weights
) -> Pick | None:
    """The one with the highest sum of `weights`. Occupancy = (ours + others' + rows waiting) / capacity."""
    key = hash64(session_key) if session_key and weights.session else None
    if plain(candidates):
        return _weighted_plain(candidates, state, blocked, now_s, key, weights)
    return _weighted_columns(candidates, state, blocked, now_s, key, weights)


def affinity_of(worker_hash: int, key_hash: int) -> int:
    """Rendezvous weight of a worker for a session: the worker with the highest one is the session's own.

    Source: Thaler, Ravishankar: Using name-based mappings to increase hit rates, 1998. When a worker leaves, only its own
    sessions move.
    """
    mixed = (worker_hash ^ key_hash) * _FACTOR_1 & _MASK
    mixed = (mixed ^ mixed >> 32) * _FACTOR_2 & _MASK
    return mixed ^ mixed >> 29


def _weighted_plain(
    candidates: Candidates, state: RoutingState, blocked: Collection[int], now_s: float, key: int | None, weights: Weights
) -> Pick | None:
    in_flight, heard_at_s = state.in_flight.values, state.heard_at_s.values
    pressure, slowness = state.pressure.values, state.slowness.values
    own, own_affinity, best, best_score = -1, -1, -1, 0.0
    if key is not None:
        for index, seat in enumerate(candidates.seats):
            if in_flight[seat.slot] < seat.capacity and index not in blocked:
                affinity = affinity_of(seat.hash64, key)
                if affinity > own_affinity:
                    own, own_affinity = index, affinity
    for index, seat in enumerate(candidates.seats):
        slot = seat.slot
        taken = in_flight[slot]
        if taken >= seat.capacity or index in blocked:
            continue
        if now_s - heard_at_s[slot] < HEARD_LIFETIME_S:
            score = -((taken + pressure[slot]) * seat.share * weights.occupancy) - slowness[slot] * weights.slowness
        else:
            score = -(taken * seat.share * weights.occupancy)
        if index == own:
            score += weights.session
        if best < 0 or score > best_score:
            best, best_score = index, score
    return Pick(best, best_score, best == own) if best >= 0 else None


def _weighted_columns(
    candidates: Candidates, state: RoutingState, blocked: Collection[int], now_s: float, key: int | None, weights: Weights
) -> Pick | None:
    slots = candidates.slots
    taken: Floats = state.in_flight.array.take(slots)
    shut = taken >= candidates.capacities
    fresh = (now_s - state.heard_at_s.array.take(slots)) < HEARD_LIFETIME_S
    taken += state.pressure.array.take(slots) * fresh
    taken *= candidates.shares
    taken *= weights.occupancy
    scores = np.negative(taken, out=taken)
    if weights.slowness:
        scores -= state.slowness.array.take(slots) * fresh * weights.slowness
    scores[shut] = -np.inf
    for index in blocked:
        scores[index] = -np.inf
    own = -1
    if key is not None:
        affinities = _affinities(candidates, key)
        affinities[scores == -np.inf] = 0
        own = int(affinities.argmax())
        scores[own] += weights.session
    best = int(scores.argmax())
    score = float(scores[best])
    return Pick(best, score, best == own) if score != -np.inf else None


def _affinities(candidates: Candidates, key: int) -> NDArray[np.uint64]:
    mixed = candidates.hashes ^ np.uint64(key)
    mixed *= np.uint64(_FACTOR_1)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(_FACTOR_2)
    mixed ^= mixed >> np.uint64(29)
    return mixed


def _following_plain(candidates: Candidates, state: RoutingState, blocked: Collection[int], start: int) -> Pick | None:
    in_flight, count = state.in_flight.values, len(candidates.seats)
    for step in range(count):
        index = (start + step) % count
        seat = candidates.seats[index]
        if in_flight[seat.slot] < seat.capacity and index not in blocked:
            return Pick(index, 0.0)
    return None


def _following_columns(candidates: Candidates, state: RoutingState, blocked: Collection[int], start: int) -> Pick | None:
    open_ = state.in_flight.array.take(candidates.slots) < candidates.capacities
    for index in blocked:
        open_[index] = False
    for first in (start, 0):
        index = first + int(open_[first:].argmax())
        if open_[index]:
            return Pick(index, 0.0)
    return None
