"""How many retries there may be: a share of the requests, so that a sick fleet is not finished off by its own retries.

Pure: time is an argument. Source: Finagle's RetryBudget (10 s, 20 %, a floor a second).
"""

from __future__ import annotations

WINDOW_S = 10


class RetryBudget:
    """Retries within the window: `share` of its requests, and `floor_per_s` besides, so that quiet times have some too."""

    __slots__ = ("_floor", "_latest", "_requests", "_retries", "_share")

    def __init__(self, share: float = 0.2, floor_per_s: float = 10.0) -> None:
        self._share = share
        self._floor = floor_per_s * WINDOW_S
        self._latest = 0
        self._requests = [0] * WINDOW_S
        self._retries = [0] * WINDOW_S

    def note_request(self, now_s: float) -> None:
        second = int(now_s)
        if second > self._latest:
            self._turn(second)
        self._requests[self._latest % WINDOW_S] += 1

    def take(self, now_s: float) -> bool:
        """Whether there may be one more; it is counted if so."""
        second = int(now_s)
        if second > self._latest:
            self._turn(second)
        if sum(self._retries) + 1 > self._share * sum(self._requests) + self._floor:
            return False
        self._retries[self._latest % WINDOW_S] += 1
        return True

    def _turn(self, second: int) -> None:
        for passed in range(max(self._latest + 1, second - WINDOW_S + 1), second + 1):
            self._requests[passed % WINDOW_S] = self._retries[passed % WINDOW_S] = 0
        self._latest = second
