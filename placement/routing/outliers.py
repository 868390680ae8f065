"""Which of a model's candidates do so much worse than the others that they are put aside for a while.

Three signs: failures in a row, a success rate below the others' by so many standard deviations, a latency above it likewise.
Rates are compared only among enough workers with enough requests. At most a part of the candidates is put aside, at least one
may be, never the last. Pure: counts in, names and reasons out.

Source: Envoy's outlier detection (docs, arch_overview/upstream/outlier): mean − factor × stdev, minimum hosts and volume,
maximum ejection percent, base time × times ejected. Latency is ours.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, pstdev

from runtime.ids import WorkerId


class OutlierSign(enum.Enum):
    FAILURES = "failures in a row"
    SUCCESS_RATE = "fewer successes than the others"
    LATENCY = "slower than the others"


@dataclass(frozen=True, slots=True)
class OutlierSettings:
    failures_in_a_row: int = 10
    """More than a breaker needs: who still fails when it has been probed a few times."""
    deviations: float = 1.9
    minimum_hosts: int = 5
    minimum_requests: int = 50
    """Of one worker in one interval."""
    slower_by: float = 1.5
    """A latency is none too long that is not so many times the mean: near-equal workers have near-zero deviation."""
    at_most: float = 0.1
    """Of a model's candidates at once; one may be in any case."""
    interval_s: float = 10.0
    base_s: float = 30.0
    longest_s: float = 300.0


@dataclass(slots=True)
class Window:
    """What one worker did for one model in the current interval."""

    answered: int = 0
    failed: int = 0
    in_a_row: int = 0
    """Failures since the last answer, over all intervals."""
    timed: int = 0
    latency_ms: float = 0.0
    """Of the timed ones, added up."""


def outliers(
    windows: Mapping[WorkerId, Window], hosts: int, already: int, settings: OutlierSettings, *, rates: bool
) -> dict[WorkerId, OutlierSign]:
    """Whom to put aside now, the worst first. `hosts`: the model's candidates; `already`: how many of them are aside.

    `rates`: whether the interval is over, so that rates can be compared.
    """
    room = min(max(1, int(hosts * settings.at_most)) - already, hosts - already - 1)
    if room <= 0:
        return {}
    found: dict[WorkerId, OutlierSign] = {}
    by_failures = sorted((-window.in_a_row, who) for who, window in windows.items())
    for failures, who in by_failures:
        if -failures >= settings.failures_in_a_row:
            found[who] = OutlierSign.FAILURES
    if rates:
        for who in _unreliable(windows, settings):
            found.setdefault(who, OutlierSign.SUCCESS_RATE)
        for who in _slow(windows, settings):
            found.setdefault(who, OutlierSign.LATENCY)
    return dict(list(found.items())[:room])


def put_aside_s(times: int, settings: OutlierSettings) -> float:
    """For how long, the so-manieth time."""
    return min(settings.base_s * times, settings.longest_s)


def _unreliable(windows: Mapping[WorkerId, Window], settings: OutlierSettings) -> list[WorkerId]:
    rates = {
        who: window.answered / (window.answered + window.failed)
        for who, window in windows.items()
        if window.answered + window.failed >= settings.minimum_requests
    }
    if len(rates) < settings.minimum_hosts:
        return []
    least = fmean(rates.values()) - settings.deviations * pstdev(rates.values())
    return [who for rate, who in sorted((rate, who) for who, rate in rates.items()) if rate < least]


def _slow(windows: Mapping[WorkerId, Window], settings: OutlierSettings) -> list[WorkerId]:
    means = {
        who: window.latency_ms / window.timed
        for who, window in windows.items()
        if window.timed and window.timed >= settings.minimum_requests
    }
    if len(means) < settings.minimum_hosts:
        return []
    mean = fmean(means.values())
    most = max(mean + settings.deviations * pstdev(means.values()), settings.slower_by * mean)
    return [who for slow, who in sorted((-latency, who) for who, latency in means.items()) if -slow > most]
