"""Whose turn is next: one after the other, or as often as capacity says.

Both ways, plain and over columns, give the same worker. Owns the arithmetic of turns and what they leave behind; a decision
carries that along, and `RoutingState.reserve` keeps it.

Source of the weighted kind: nginx, ngx_http_upstream_round_robin.c (smooth weighted balancing): everybody who could be chosen
is owed its weight, the one who is owed most is chosen and pays what all were given. Weights of 5, 1, 1 make a a b a c a a.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from placement.candidates import Candidates, Flags, Floats
from placement.types import CandidateKey, Granted
from runtime.ids import ModelName, WorkerId


@dataclass(frozen=True, slots=True, eq=False)
class Credits:
    """What each of these candidates is owed, in their order. Whole numbers, so sums are exact in any order."""

    candidates: Candidates
    owed: Floats

    def moved_to(self, candidates: Candidates) -> Floats:
        """The same, for other candidates of that name: who was not among these is owed nothing."""
        if candidates is self.candidates:
            return self.owed
        size = 1 + int(max(self.candidates.slots.max(initial=0), candidates.slots.max(initial=0)))
        by_slot, tenures = np.zeros(size), np.zeros(size)
        by_slot[self.candidates.slots], tenures[self.candidates.slots] = self.owed, self.candidates.tenures()
        stayed = tenures.take(candidates.slots) == candidates.tenures()
        owed: Floats = by_slot.take(candidates.slots) * stayed
        return owed


@dataclass(slots=True)
class Rotation:
    """By whose turn it is: the last one, and what everybody is owed."""

    last: dict[CandidateKey, WorkerId] = field(default_factory=dict)
    credits: dict[CandidateKey, Credits] = field(default_factory=dict)

    def move(self, granted: Granted) -> None:
        """This one has had its turn."""
        if granted.turn is None:
            return
        if isinstance(granted.credits, Credits):
            self.credits[granted.turn] = granted.credits
        else:
            self.last[granted.turn] = granted.worker_id

    def keep(self, models: Collection[ModelName]) -> None:
        """Forget the turns of all other models."""
        self.last = {key: who for key, who in self.last.items() if key.model in models}
        self.credits = {key: owed for key, owed in self.credits.items() if key.model in models}

    def start(self, candidates: Candidates) -> int:
        """Who comes behind the last one, by id, and around."""
        last = self.last.get(candidates.key)
        return 0 if last is None else bisect_right(candidates.ids, last) % len(candidates.ids)

    def owed(self, candidates: Candidates) -> Floats:
        known = self.credits.get(candidates.key)
        return np.zeros(len(candidates.seats)) if known is None else known.moved_to(candidates)


def following_plain(open_: Sequence[int], start: int) -> int:
    """The first of the open ones from `start` on, and around. `open_` is not empty, and in order."""
    return next((index for index in open_ if index >= start), open_[0])


def following_columns(open_: Flags, start: int) -> int:
    """The same."""
    index = start + int(open_[start:].argmax())
    return index if open_[index] else int(open_.argmax())


def by_capacity_plain(candidates: Candidates, open_: Sequence[int], owed: Floats) -> tuple[int, Credits]:
    """Who is owed most once all open ones were given their capacity, and what that leaves."""
    left, total, best = owed.tolist(), 0.0, -1
    for index in open_:
        capacity = float(candidates.seats[index].capacity)
        left[index] += capacity
        total += capacity
        if best < 0 or left[index] > left[best]:
            best = index
    left[best] -= total
    return best, Credits(candidates, np.array(left))


def by_capacity_columns(candidates: Candidates, open_: Flags, owed: Floats) -> tuple[int, Credits]:
    """The same."""
    given = candidates.capacities * open_
    left = owed + given
    best = int(np.where(open_, left, -np.inf).argmax())
    left[best] -= given.sum()
    return best, Credits(candidates, left)
