"""Token buckets by name, in bounded memory. Pure: time is an argument.

Every bucket of a throttle has the same size and rate, so one that was not touched for as long as it takes to fill is full, and
forgetting it changes nothing. Where all that are remembered still wait, newcomers share one bucket: filling the table with
names frees nobody.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


class Throttle:
    """At most `burst` at once and `per_s` in the long run, for each name."""

    def __init__(self, *, burst: int, per_s: float, names: int = 4096) -> None:
        self._burst, self._per_s, self._names = float(burst), per_s, names
        self._fills_s = burst / per_s
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._shared = _Bucket(self._burst, 0.0)

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, name: str, now_s: float) -> float:
        """0 if a token was taken, else how long until there is one. A refusal costs nothing."""
        bucket = self._bucket(name, now_s)
        bucket.tokens = min(self._burst, bucket.tokens + max(0.0, now_s - bucket.at_s) * self._per_s)
        bucket.at_s = max(now_s, bucket.at_s)
        if bucket.tokens >= 1.0:
            bucket.tokens -= 1.0
            return 0.0
        return (1.0 - bucket.tokens) / self._per_s

    def give_back(self, name: str) -> None:
        """What was taken turned out not to count."""
        if bucket := self._buckets.get(name):
            bucket.tokens = min(self._burst, bucket.tokens + 1.0)

    def _bucket(self, name: str, now_s: float) -> _Bucket:
        known = self._buckets.get(name)
        if known is not None:
            self._buckets.move_to_end(name)
            return known
        if len(self._buckets) >= self._names and not self._forget_one(now_s):
            return self._shared
        return self._buckets.setdefault(name, _Bucket(self._burst, now_s))

    def _forget_one(self, now_s: float) -> bool:
        oldest = next(iter(self._buckets))
        if now_s - self._buckets[oldest].at_s < self._fills_s:
            return False
        del self._buckets[oldest]
        return True
