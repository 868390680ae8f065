"""What this scheduler's reservations take of the workers, counted in its routing state until each ends.

Pure but for the state it is given: time is an argument. So a scheduler that reserves much spreads it, though workers that
nobody calls are reported by nobody. Reservations of other schedulers are among what workers tell of themselves.
"""

from __future__ import annotations

import heapq
from dataclasses import replace

from placement.routing.state import RoutingState
from placement.types import Granted, Outcome


class Ledger:
    """Reservations that have not ended, by their ids."""

    def __init__(self, state: RoutingState) -> None:
        self._state = state
        self._held: dict[str, tuple[Granted, float]] = {}
        self._ends: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._held)

    def keep(self, reservation_id: str, granted: Granted, until_s: float) -> None:
        """The place is kept until then, or until it is given back."""
        kept = replace(granted, trial=False, turn=None)
        self._state.reserve(kept)
        self._held[reservation_id] = kept, until_s
        heapq.heappush(self._ends, (until_s, reservation_id))

    def give_back(self, reservation_id: str, now_s: float) -> None:
        """It has ended; nothing where it was not kept here."""
        kept, _ = self._held.pop(reservation_id, (None, 0.0))
        if kept is not None:
            self._state.release(kept, Outcome.UNKNOWN, now_s=now_s)

    def expire(self, now_s: float) -> None:
        """Forget those whose time is up."""
        while self._ends and self._ends[0][0] <= now_s:
            until_s, reservation_id = heapq.heappop(self._ends)
            if self._held.get(reservation_id, (None, 0.0))[1] == until_s:
                self.give_back(reservation_id, now_s)
