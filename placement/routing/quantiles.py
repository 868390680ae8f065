"""How long a model's recent requests took, as far as a quantile says it.

Pure: durations in, a duration out. A histogram whose buckets grow by a twelfth each, so that no quantile is more than that too
long, and whose counts are halved again and again, so that what counts is recent. An observation costs a logarithm and an
addition; a quantile is worked out anew after a while only.
"""

from __future__ import annotations

import math
from itertools import accumulate

MIN_OBSERVATIONS = 100
"""Before that nothing is known of a model."""

_HALVED_AFTER = 1_000
"""Observations. What came before the last few thousand hardly counts."""

_RENEWED_AFTER = 50
"""Observations, until a quantile is worked out anew."""

_MAX_KEPT = 16
"""Different quantiles of one model: as many as rules name for it."""

_SHORTEST_MS, _BUCKETS = 0.01, 240
"""The last bucket holds all that took longer than some half an hour."""

_GROWTH = math.log(13 / 12)


class LatencyQuantiles:
    """Of one model version."""

    __slots__ = ("_counts", "_kept", "_observed", "_since_halved", "_since_renewed")

    def __init__(self) -> None:
        self._counts = [0.0] * _BUCKETS
        self._observed = self._since_halved = self._since_renewed = 0
        self._kept: dict[float, float] = {}

    def observe(self, took_ms: float) -> None:
        bucket = int(math.log(took_ms / _SHORTEST_MS) / _GROWTH) + 1 if took_ms > _SHORTEST_MS else 0
        self._counts[min(bucket, _BUCKETS - 1)] += 1.0
        self._observed += 1
        self._since_halved += 1
        self._since_renewed += 1
        if self._since_renewed >= _RENEWED_AFTER:
            self._since_renewed = 0
            self._kept.clear()
        if self._since_halved >= _HALVED_AFTER:
            self._since_halved = 0
            self._counts = [count / 2 for count in self._counts]

    def at(self, quantile: float) -> float | None:
        """So many of the recent requests took at most this long, in ms; None: too few were seen."""
        if self._observed < MIN_OBSERVATIONS:
            return None
        kept = self._kept.get(quantile)
        return kept if kept is not None else self._work_out(quantile)

    def _work_out(self, quantile: float) -> float:
        wanted = quantile * sum(self._counts)
        reached = accumulate(self._counts)
        bucket = next((number for number, seen in enumerate(reached) if seen >= wanted), _BUCKETS - 1)
        found = _SHORTEST_MS * math.exp(bucket * _GROWTH)
        if len(self._kept) < _MAX_KEPT:
            self._kept[quantile] = found
        return found
