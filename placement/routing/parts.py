"""What makes up the score of a candidate, by each strategy, and what made another come before it.

Worked out one candidate after another, in the order in which `placement.routing.scoring` adds up, so that the sums are the
same bit for bit. For people; nothing decides by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from placement.routing import scoring, strategies
from placement.routing.contest import Contest
from placement.types import Strategy


@dataclass(frozen=True, slots=True)
class ScorePart:
    """So much times the value is added to the score. A weight of 0: it decides among equals only, or is told for itself."""

    name: str
    weight: float
    value: float


Parts = tuple[ScorePart, ...]


def parts_of(contest: Contest, strategy: Strategy, open_: list[int]) -> dict[int, Parts]:
    """By index, of those that were open."""
    return _PARTS[strategy](contest, open_)


def total(parts: Parts) -> float:
    score = 0.0
    for part in parts:
        score += part.weight * part.value
    return score


def difference(parts: Parts, best: Parts) -> str:
    """By which part a candidate is most behind the best one; empty: by none."""
    theirs = {part.name: part.weight * part.value for part in best}
    behind = [(theirs.get(part.name, 0.0) - part.weight * part.value, part.name) for part in parts]
    mine = {part.name for part in parts}
    behind += [(value, name) for name, value in theirs.items() if name not in mine]
    most, name = max(behind, default=(0.0, ""))
    return name if most > 0.0 else ""


def _weighted(contest: Contest, open_: list[int]) -> dict[int, Parts]:
    weights, state, seats = contest.route.weights, contest.state, contest.candidates.seats
    added, seen = scoring.terms(contest, weights), scoring.prefix_shares(contest, weights)
    key = scoring.session_hash(contest, weights)
    own = -1 if key is None else scoring.own_plain(contest.candidates, open_, key)
    found: dict[int, Parts] = {}
    for index in open_:
        slot = seats[index].slot
        slowness = state.slowness.values[slot] if contest.heard(slot) else 0.0
        parts = [
            ScorePart("occupancy", -weights.occupancy, strategies.occupancy(contest, index)),
            ScorePart("slowness", -weights.slowness, slowness),
            *(ScorePart(term.name, term.weight, float(term.values[index])) for term in added),
        ]
        if contest.request.prefix:
            parts.append(ScorePart("prefix", weights.prefix, seen.get(index, 0.0)))
        if key is not None:
            parts.append(ScorePart("session", weights.session, float(index == own)))
        found[index] = tuple(parts)
    return found


def _by_load(contest: Contest, open_: list[int]) -> dict[int, Parts]:
    return {index: (ScorePart("occupancy", -1.0, strategies.occupancy(contest, index)),) for index in open_}


def _by_latency(contest: Contest, open_: list[int]) -> dict[int, Parts]:
    waits = strategies.waits(contest, open_)
    return {index: (ScorePart("wait_ms", -1.0, wait),) for index, wait in zip(open_, waits, strict=True)}


def _by_cost(contest: Contest, open_: list[int]) -> dict[int, Parts]:
    return {
        index: (
            ScorePart("cost", -1.0, contest.candidates.seats[index].cost),
            ScorePart("occupancy", 0.0, strategies.occupancy(contest, index)),
        )
        for index in open_
    }


def _by_turn(contest: Contest, open_: list[int]) -> dict[int, Parts]:
    count, start = len(contest.candidates.seats), contest.state.turns.start(contest.candidates)
    return {index: (ScorePart("turns_until", 0.0, float((index - start) % count)),) for index in open_}


def _by_capacity(contest: Contest, open_: list[int]) -> dict[int, Parts]:
    owed = contest.state.turns.owed(contest.candidates)
    return {index: (ScorePart("owed", 0.0, float(owed[index]) + contest.candidates.seats[index].capacity),) for index in open_}


_PARTS: dict[Strategy, Callable[[Contest, list[int]], dict[int, Parts]]] = {
    Strategy.AFFINITY: _weighted,
    Strategy.ROUND_ROBIN: _by_turn,
    Strategy.WEIGHTED_ROUND_ROBIN: _by_capacity,
    Strategy.LEAST_LOADED: _by_load,
    Strategy.TWO_CHOICES: _by_load,
    Strategy.LATENCY: _by_latency,
    Strategy.COST: _by_cost,
}
