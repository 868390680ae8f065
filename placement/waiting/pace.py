"""How fast a line moves while several wait in it, as the last services show.

Pure: the caller says what time it is. A moving average over services, not over time, so that a slow line is measured as well
as a quick one. Places that came while nobody else waited say nothing of how long one waits behind others; they do not count.
"""

from __future__ import annotations

_MEMORY = 16
"""Services: the weight of each is 15/16 of that of the one after it."""
_KNOWN_FROM = 2


class Pace:
    """Of one line, from when somebody began to wait."""

    def __init__(self, now_s: float) -> None:
        self._since_s = now_s
        self._services = 0
        self._weight = 0.0
        self._spent_s = 0.0

    def served(self, now_s: float) -> None:
        """One was given a place while others went on waiting."""
        kept = 1 - 1 / _MEMORY
        self._weight = self._weight * kept + 1
        self._spent_s = self._spent_s * kept + max(0.0, now_s - self._since_s)
        self._since_s = now_s
        self._services += 1

    @property
    def is_known(self) -> bool:
        return self._services >= _KNOWN_FROM

    def interval_s(self, now_s: float) -> float:
        """Between one service and the next; a line that stands still is the slower the longer it does."""
        waited_s = max(0.0, now_s - self._since_s)
        average_s = self._spent_s / self._weight if self._weight else 0.0
        return max(average_s, (self._spent_s + waited_s) / (self._weight + 1))
