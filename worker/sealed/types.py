"""The nouns of sealed calls: what is told of boxes that came before, and how many are kept in mind."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.errors import Code, PenstockError


class SealedReplayed(PenstockError, code=Code.UNAUTHENTICATED, reason="SEALED_REPLAYED"):
    """This very box came before: each is opened once."""


class ReservationWorn(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="RESERVATION_WORN"):
    """As many calls were made on this reservation as are remembered."""


@dataclass(frozen=True, slots=True)
class SealedLimits:
    """What is kept in mind."""

    boxes: int = 10_000
    """Remembered for one reservation; it takes no further calls then."""
