"""The nouns of limits that hold over many gateways: allowances and their terms, what a gateway asks, what it is given.

Pure. Units are whole: requests, tokens, or permits of requests under way.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple, NewType

AllowanceId = NewType("AllowanceId", str)
"""Of one limit, one subject and one kind; the same at every gateway."""

HolderId = NewType("HolderId", str)
"""One gateway process."""

DAY_S = 86_400

SHARED_S = 0.5
"""A rate's burst is at least what so long allows: less could not be shared out by messages some of which come that late."""

IN_HANDS_S = 1.0
"""What so long allows is on its way to gateways, or used and not told yet, and does not count as waiting in their hands."""


class Kind(enum.Enum):
    """What is counted, and in which period it comes back."""

    REQUESTS = "requests"
    """By the second."""
    TOKENS = "tokens"
    """By the minute."""
    CONCURRENT = "concurrent"
    """When a request ends."""
    REQUESTS_PER_DAY = "requests_per_day"
    TOKENS_PER_DAY = "tokens_per_day"
    """From midnight to midnight, UTC."""

    @property
    def counts_tokens(self) -> bool:
        """Known only when the request has ended; what it is thought to come to is taken before."""
        return self in (Kind.TOKENS, Kind.TOKENS_PER_DAY)

    @property
    def is_daily(self) -> bool:
        return self in (Kind.REQUESTS_PER_DAY, Kind.TOKENS_PER_DAY)


_PERIOD_S = {Kind.REQUESTS: 1.0, Kind.TOKENS: 60.0}


class Moment(NamedTuple):
    """Now, by both of a process's clocks."""

    now_s: float
    """Only grows."""
    wall_s: float

    @property
    def day(self) -> int:
        """Since 1970, UTC."""
        return int(self.wall_s // DAY_S)

    @property
    def left_of_day_s(self) -> float:
        return DAY_S - self.wall_s % DAY_S


@dataclass(frozen=True, slots=True)
class Terms:
    """How much there is of an allowance."""

    kind: Kind
    units: float
    """In a period; for permits, at once."""
    burst: int = 0
    """0: what a period allows."""
    generation: int = 0
    """Those of a lower one are older."""

    @property
    def per_s(self) -> float:
        """What a rate refills by; 0: it does not."""
        period_s = _PERIOD_S.get(self.kind)
        return 0.0 if period_s is None else self.units / period_s

    @property
    def capacity(self) -> float:
        """As much as there ever is at once, in all hands together."""
        if self.kind in _PERIOD_S:
            return max(1.0, self.burst or self.units, self.per_s * SHARED_S)
        return float(int(self.units))

    def divided(self, holders: int) -> Terms:
        """An even part of it, at least one unit at once."""
        if holders <= 1:
            return self
        least = 0.0 if self.kind in _PERIOD_S else 1.0
        return Terms(self.kind, max(least, self.units / holders), max(self.burst and 1, self.burst // holders), self.generation)


@dataclass(frozen=True, slots=True)
class Ask:
    """What one gateway says of one allowance. Times and numbers are since its last ask on this stream."""

    allowance: AllowanceId
    terms: Terms | None = None
    """With the first ask of a stream, and when they changed."""
    held: int = 0
    """With terms: in hand, permits under way included; below 0: used beyond what was given."""
    resumed: bool = False
    """With terms: given some on an earlier stream."""
    used: int = 0
    """Below 0: less than was said before. Not said of permits."""
    returned: int = 0
    wanted: int = 0


@dataclass(frozen=True, slots=True)
class Grant:
    """What it is answered."""

    allowance: AllowanceId
    granted: int
    """To be added to what is in hand; covers what was used beyond it."""
    remaining: int
    """For all, after this; below 0: overdrawn."""
    retry_after_s: float = 0.0
    """Until there is more; 0: there is."""
    holders: int = 1
