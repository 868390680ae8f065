"""What is asked of the fleet, added up over the gateways that tell of it.

Theory of operation. Each gateway tells about once a second what was asked of it. Its share keeps, for every model version,
rates that fade by themselves as time passes, so that what a gateway tells no more is soon forgotten, and one that comes back
on another stream is not counted twice: the old share fades exactly as the new one grows. The sum over shares is exact
(`math.fsum`), hence the same in every scheduler, in whatever order messages came. Beside the rates it is kept when a version
was last asked for, and how high its concurrency was in the last half hour: both say how long a copy has been idle.

Pure: time is an argument, on any one monotonic clock. Never decides what follows: `placement.copies.scale` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from runtime.ids import ModelName, ModelVersion, Region

DemandKey = tuple[Region, ModelName, ModelVersion]
"""Where, and of what. An empty version: of whichever would have answered; no copy was there to tell."""

SMOOTHING_S = 15.0
"""Time constant of the rates."""

FADED_S = 10 * SMOOTHING_S
"""After so long what a gateway told of a model is e⁻¹⁰ of itself, and is dropped."""

PEAK_BUCKET_S = 300.0
PEAK_BUCKETS = 7
"""Peaks reach back between 30 and 35 minutes."""

MAX_KEYS = 20_000
"""Of one gateway, and of all together; those asked for longest ago are forgotten first."""

KEEP_S = 7 * 24 * 3600.0
"""How long it is remembered when something was last asked for: as long as a wish may let a copy be idle."""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of one gateway for one model version, since it last told."""

    model: ModelName
    version: ModelVersion
    requests: int
    refused: int = 0
    """Of these, found every copy full."""
    missed: int = 0
    """Of these, found no copy ready."""
    busy_s: float = 0.0
    """Time that requests spent at workers, added up."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How much is asked for, averaged over the last moments."""

    requests_per_s: float = 0.0
    concurrency: float = 0.0
    """Requests at workers at once."""
    refused_per_s: float = 0.0
    missed_per_s: float = 0.0

    def faded(self, after_s: float) -> Rate:
        """What is left of it after so long without more."""
        left = math.exp(-max(0.0, after_s) / SMOOTHING_S)
        return Rate(self.requests_per_s * left, self.concurrency * left, self.refused_per_s * left, self.missed_per_s * left)

    def plus(self, asked: Asked, interval_s: float) -> Rate:
        """With what was asked during the interval that ends now."""
        part = -math.expm1(-interval_s / SMOOTHING_S) / interval_s
        return Rate(
            self.requests_per_s + part * asked.requests,
            self.concurrency + part * asked.busy_s,
            self.refused_per_s + part * asked.refused,
            self.missed_per_s + part * asked.missed,
        )


@dataclass(frozen=True, slots=True)
class Told:
    """What one gateway told of one model version, as of `at_s`."""

    rate: Rate
    at_s: float


@dataclass(frozen=True, slots=True)
class Share:
    """One gateway's part of the demand."""

    told: Mapping[DemandKey, Told] = field(default_factory=dict)

    def heard(self, region: Region, interval_s: float, asked: Iterable[Asked], now_s: float) -> Share:
        """With one more message, which covers the interval that ends now."""
        told = {key: each for key, each in self.told.items() if now_s - each.at_s < FADED_S}
        for each in asked:
            key = (region, each.model, each.version)
            known = told.pop(key, None)
            before = known.rate.faded(now_s - known.at_s) if known is not None else Rate()
            told[key] = Told(before.plus(each, interval_s), now_s)
        return Share(_newest(told, {key: each.at_s for key, each in told.items()}))


@dataclass(frozen=True, slots=True)
class Trace:
    """What is remembered of one model version."""

    used_s: float
    """When it was last asked for."""
    peaks: tuple[tuple[int, float], ...] = ()
    """Highest concurrency by numbered stretch of time, the newest first."""

    def peak(self, since_s: float) -> float:
        """The highest concurrency from then on, and up to one stretch before."""
        first = math.floor(since_s / PEAK_BUCKET_S)
        return max((height for number, height in self.peaks if number >= first), default=0.0)


@dataclass(frozen=True, slots=True)
class Demand:
    """All that is asked for."""

    rates: Mapping[DemandKey, Rate] = field(default_factory=dict)
    traces: Mapping[DemandKey, Trace] = field(default_factory=dict)
    since_s: float | None = None
    """Since when gateways have been heard without a break; None: none is. Who was not heard cannot be called idle."""

    def used_s(self, key: DemandKey) -> float | None:
        """When it was last asked for; None: not as long as is remembered."""
        trace = self.traces.get(key)
        return None if trace is None else trace.used_s


def folded(shares: Iterable[Share], before: Demand, now_s: float, *, heard: bool = True) -> Demand:
    """The shares added up. `before` is the sum of a moment ago; `heard`: whether any gateway tells."""
    told: dict[DemandKey, list[Told]] = {}
    for share in shares:
        for key, each in share.told.items():
            if now_s - each.at_s < FADED_S:
                told.setdefault(key, []).append(each)
    rates = {key: _sum(each.rate.faded(now_s - each.at_s) for each in told[key]) for key in sorted(told)}
    traces = {key: trace for key, trace in before.traces.items() if key not in told and now_s - trace.used_s < KEEP_S}
    for key in rates:
        known = before.traces.get(key)
        used_s = max(each.at_s for each in told[key])
        peaks = _peaks(known.peaks if known is not None else (), rates[key].concurrency, now_s)
        traces[key] = Trace(used_s if known is None else max(used_s, known.used_s), peaks)
    since_s = (before.since_s if before.since_s is not None else now_s) if heard else None
    return Demand(rates, _newest(traces, {key: trace.used_s for key, trace in traces.items()}), since_s)


def attributed(demand: Demand, newest: Mapping[tuple[Region, ModelName], ModelVersion]) -> Demand:
    """What was asked for without a version counts for the newest that is wished for."""
    unnamed = [key for key in demand.traces if not key[2] and key[:2] in newest]
    if not unnamed:
        return demand
    rates, traces = dict(demand.rates), dict(demand.traces)
    for key in unnamed:
        meant = (*key[:2], newest[key[:2]])
        known, trace = traces.get(meant), traces.pop(key)
        rates[meant] = _sum((rates.get(meant, Rate()), rates.pop(key, Rate())))
        traces[meant] = trace if known is None else Trace(max(known.used_s, trace.used_s), known.peaks)
    return Demand(rates, traces, demand.since_s)


def _sum(rates: Iterable[Rate]) -> Rate:
    known = list(rates)
    return Rate(
        math.fsum(rate.requests_per_s for rate in known),
        math.fsum(rate.concurrency for rate in known),
        math.fsum(rate.refused_per_s for rate in known),
        math.fsum(rate.missed_per_s for rate in known),
    )


def _peaks(before: tuple[tuple[int, float], ...], concurrency: float, now_s: float) -> tuple[tuple[int, float], ...]:
    number = math.floor(now_s / PEAK_BUCKET_S)
    kept = tuple(each for each in before if number - PEAK_BUCKETS < each[0] < number)
    height = max((each[1] for each in before if each[0] == number), default=0.0)
    return ((number, max(height, concurrency)), *kept)


def _newest(values: dict[DemandKey, Value], at_s: Mapping[DemandKey, float]) -> dict[DemandKey, Value]:
    if len(values) <= MAX_KEYS:
        return values
    return {key: values[key] for key in sorted(values, key=lambda key: (-at_s[key], key))[:MAX_KEYS]}
