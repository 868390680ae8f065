"""What is left of an allowance: a bucket that refills, permits that come back, a budget that lasts a day.

Pure: time is an argument. What gateways have in hand is told with each question. A bucket and all hands together never hold
more than its capacity and what comes in a second, which is on its way: nothing that waits in some hand lets more in later.
Never decides who gets what: `placement.limits.pots` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from placement.limits.types import IN_HANDS_S, Kind, Moment, Terms

_AGAIN_S = 0.25
"""When to ask again for a permit, because nobody knows when a request ends, and for a budget that could not be written down."""

_CROWDED_S = 1.0
"""Where many want, nobody is told to stay away for longer than this, unless there is nothing at all."""

CHUNKS = 100
"""So many times a day a budget is written down: what a leader that died had not given out of a chunk is lost for that day."""


class Stock(Protocol):
    """What there is. `held`: units in all hands."""

    terms: Terms

    def refresh(self, moment: Moment, held: int) -> None:
        """It is now: let come back what comes back by itself."""
        ...

    def remaining(self, held: int) -> float:
        """What is left for all; below 0: overdrawn."""
        ...

    def available(self, held: int) -> float:
        """What may be given out now; below 1: nothing."""
        ...

    def give(self, units: int) -> None:
        """It goes into a hand, or was used without ever having been in one."""
        ...

    def put_back(self, units: int) -> None:
        """It comes back from a hand, unused."""
        ...

    def wait_s(self, moment: Moment, wanted: int) -> float:
        """When to come again for so many that were not to be had."""
        ...

    def is_whole(self, held: int) -> bool:
        """Whether forgetting it would change nothing."""
        ...


@dataclass(slots=True)
class Bucket:
    """Of a rate. `level` may be below 0: a debt, paid back by what refills."""

    terms: Terms
    level: float
    at_s: float

    def refresh(self, moment: Moment, held: int) -> None:
        passed_s, self.at_s = max(0.0, moment.now_s - self.at_s), max(moment.now_s, self.at_s)
        waiting = max(0.0, held - self.terms.per_s * IN_HANDS_S)
        self.level = min(self.level + passed_s * self.terms.per_s, max(0.0, self.terms.capacity - waiting))

    def remaining(self, held: int) -> float:
        return self.level

    def available(self, held: int) -> float:
        return self.level

    def give(self, units: int) -> None:
        self.level -= units

    def put_back(self, units: int) -> None:
        self.level += units

    def wait_s(self, moment: Moment, wanted: int) -> float:
        first_s, all_s = ((units - self.level) / self.terms.per_s for units in (1, wanted))
        return max(first_s, min(all_s, _CROWDED_S))

    def is_whole(self, held: int) -> bool:
        return not held and self.level >= self.terms.capacity


@dataclass(slots=True)
class Permits:
    """Of requests at once: what is in hands is all that is gone."""

    terms: Terms

    def refresh(self, moment: Moment, held: int) -> None:
        """Nothing comes back by itself."""

    def remaining(self, held: int) -> float:
        return self.terms.capacity - held

    def available(self, held: int) -> float:
        return self.terms.capacity - held

    def give(self, units: int) -> None:
        """Counted by the hand."""

    def put_back(self, units: int) -> None:
        """Counted by the hand."""

    def wait_s(self, moment: Moment, wanted: int) -> float:
        return _AGAIN_S

    def is_whole(self, held: int) -> bool:
        return not held


@dataclass(slots=True)
class Budget:
    """Of a day. Nothing is given out that was not written down before; what is overdrawn is taken from the next day."""

    terms: Terms
    day: int
    spent: int = 0
    """Given out or used, today."""
    written: int = 0
    """Kept elsewhere: a leader to come takes so much for spent."""

    def refresh(self, moment: Moment, held: int) -> None:
        days = moment.day - self.day
        if days > 0:
            overdrawn = max(0, self.spent - int(self.terms.units) * days)
            self.day, self.spent, self.written = moment.day, overdrawn + held, 0

    def remaining(self, held: int) -> float:
        return self.left

    def available(self, held: int) -> float:
        return min(int(self.terms.units), self.written) - self.spent

    def give(self, units: int) -> None:
        self.spent += units

    def put_back(self, units: int) -> None:
        self.spent = max(0, self.spent - units)

    def wait_s(self, moment: Moment, wanted: int) -> float:
        return moment.left_of_day_s if self.left < 1 else _AGAIN_S

    def is_whole(self, held: int) -> bool:
        return not held and not self.spent and not self.written

    @property
    def left(self) -> int:
        """Below 0: overdrawn."""
        return int(self.terms.units) - self.spent

    def due(self, wanted: int) -> int:
        """What has to be written down before so much may be given out; 0: nothing."""
        if self.written >= self.spent + min(wanted, max(0, self.left)):
            return 0
        chunk = max(1, int(self.terms.units) // CHUNKS)
        return max(self.spent, min(int(self.terms.units), self.spent + wanted + chunk))


def stock_of(terms: Terms, moment: Moment, empty_at_s: float | None = None) -> Stock:
    """A new one, whole; a rate's was empty at `empty_at_s` where that is named."""
    if terms.kind is Kind.CONCURRENT:
        return Permits(terms)
    if terms.kind.is_daily:
        return Budget(terms, moment.day)
    if empty_at_s is not None:
        return Bucket(terms, 0.0, empty_at_s)
    return Bucket(terms, terms.capacity, moment.now_s)
