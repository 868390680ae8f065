"""What was asked of each model version in each region since the last count, and how busy workers were kept by it.

Owns the tallies. A request costs a look-up and a few additions; what is counted is drained once a second by `gateway.reports`.
Time is an argument. Only versions that the fleet holds or is to hold are counted, so there are never more tallies than those.
"""

from __future__ import annotations

from collections import defaultdict

from gateway.types import ModelCounts
from runtime.ids import ModelName, ModelVersion, Region


class Tally:
    """One model version's. Long requests count while they last: what is kept is the sum of all ends minus the sum of all
    beginnings, to which those that have not ended yet add the present."""

    __slots__ = ("_in_flight", "_missed", "_refused", "_requests", "_spent_s")

    def __init__(self) -> None:
        self._requests = self._refused = self._missed = self._in_flight = 0
        self._spent_s = 0.0

    def begin(self, now_s: float, requests: int) -> None:
        """A worker is asked; `requests`: 1 for a request that is not counted yet."""
        self._spent_s -= now_s
        self._in_flight += 1
        self._requests += requests

    def end(self, now_s: float) -> None:
        self._spent_s += now_s
        self._in_flight -= 1

    def refuse(self) -> None:
        """A request found every copy full."""
        self._requests += 1
        self._refused += 1

    def miss(self) -> None:
        """A request found no copy ready."""
        self._requests += 1
        self._missed += 1

    def drain(self, now_s: float) -> ModelCounts | None:
        """What was counted since this was asked last; None: nothing, and nothing is under way."""
        if not (self._requests or self._in_flight or self._spent_s):
            return None
        busy_s = max(0.0, self._spent_s + self._in_flight * now_s)
        counts = ModelCounts(self._requests, self._refused, self._missed, busy_s)
        self._requests = self._refused = self._missed = 0
        self._spent_s = -self._in_flight * now_s
        return counts


TallyKey = tuple[Region, ModelName, ModelVersion]
"""The region is that which requests were from; where nobody says any, it is empty."""


class Ledger:
    """`tallies` makes the tally of a version that has none yet."""

    def __init__(self) -> None:
        self.tallies: defaultdict[TallyKey, Tally] = defaultdict(Tally)

    def __len__(self) -> int:
        return len(self.tallies)

    def drain(self, now_s: float) -> dict[TallyKey, ModelCounts]:
        """What was asked since this was asked last. Tallies of which nothing was are dropped."""
        drained = {key: tally.drain(now_s) for key, tally in self.tallies.items()}
        for key in [key for key, counts in drained.items() if counts is None]:
            del self.tallies[key]
        return {key: counts for key, counts in drained.items() if counts is not None}
