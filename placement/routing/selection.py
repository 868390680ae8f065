"""Whom a route lets in and whom it prefers, among the candidates of one model version and region.

Looking at thousands of seats takes milliseconds, so what was found is kept until the candidates change. Owns those findings,
a bounded number of them; what is not found is looked at again. Never decides who is chosen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from placement.candidates import Candidates, Flags, Floats, Seat
from placement.rules import Route, WorkerSelector
from placement.types import CandidateKey

KEPT = 256
"""Findings at once: at 10,000 candidates each takes 90 kB."""


@dataclass(frozen=True, slots=True)
class Selection:
    """By the candidates' order."""

    allowed: Flags | None
    """None: everybody."""
    preferred: Floats | None
    """1 where a rule prefers the worker, else 0; None: no rule prefers anyone."""

    def denied(self) -> int:
        """How many may not be chosen."""
        return 0 if self.allowed is None else int(len(self.allowed) - np.count_nonzero(self.allowed))


EVERYBODY = Selection(None, None)
Selectors = tuple[WorkerSelector, ...]
Constraints = tuple[Selectors, Selectors, Selectors]


class Selections:
    """What routes came to, the latest used."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[CandidateKey, Constraints], tuple[Candidates, Selection]] = OrderedDict()
        self._at_hand: dict[tuple[int, int], tuple[Candidates, Route, Selection]] = {}
        """By the very objects: telling equal routes from one another takes longer than a decision should."""

    def of(self, candidates: Candidates, route: Route) -> Selection:
        if not (route.deny or route.allow or route.prefer):
            return EVERYBODY
        at_hand = self._at_hand.get((id(candidates), id(route)))
        if at_hand is not None:
            return at_hand[2]
        selection = self._looked_up(candidates, route)
        if len(self._at_hand) >= KEPT:
            self._at_hand.clear()
        self._at_hand[id(candidates), id(route)] = (candidates, route, selection)  # kept, so that no other gets their ids
        return selection

    def forget_at_hand(self) -> None:
        """Other candidates are coming, and those before them should not be kept."""
        self._at_hand.clear()

    def _looked_up(self, candidates: Candidates, route: Route) -> Selection:
        key = (candidates.key, (route.deny, route.allow, route.prefer))
        known = self._found.get(key)
        selection = known[1] if known is not None and known[0] is candidates else selected(candidates.seats, route)
        self._found[key] = (candidates, selection)
        self._found.move_to_end(key)
        if len(self._found) > KEPT:
            self._found.popitem(last=False)
        return selection


def selected(seats: Iterable[Seat], route: Route) -> Selection:
    """Look at each of them."""
    listed = list(seats)
    allowed, preferred = None, None
    if route.deny or route.allow:
        allowed = np.array([is_allowed(seat, route) for seat in listed], dtype=np.bool_)
    if route.prefer:
        preferred = np.array([float(_any(route.prefer, seat)) for seat in listed], dtype=np.float64)
    return Selection(allowed, preferred)


def is_allowed(seat: Seat, route: Route) -> bool:
    """Deny comes before allow; without an allow everybody is who is not denied."""
    return not _any(route.deny, seat) and (not route.allow or _any(route.allow, seat))


def _any(selectors: Selectors, seat: Seat) -> bool:
    return any(selector.matches(seat) for selector in selectors)
