"""A circuit breaker as a value: whether one worker is trusted, and what each thing that happens makes of that.

    CLOSED ──── failures in a row, or too large a part of them, or the way there failed ───▶ OPEN
    OPEN ────── its time has passed, and a request tries ─────────────────────────────────▶ HALF_OPEN
    HALF_OPEN ─ the probes were answered ─▶ CLOSED        ─ a probe failed ─▶ OPEN, for twice as long, up to a limit

While it is open or enough probes are out the worker is passed over, but not if nobody else has room: an answer to such a last
resort closes it too. Requests that began before it opened tell nothing of the worker as it is now, except that the way failed.
A closed breaker that has seen no failure is not kept by anyone: counting begins with the first failure.

Pure: time is an argument. Never decides who is chosen instead.
Source: Nygard, Release It!, 2nd ed. 2018, "Circuit Breaker"; 5 s as Dynamo's local worker inhibition (docs/fault-tolerance).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

OPEN_S = 5.0


class BreakerState(enum.Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


class BreakerEvent(enum.Enum):
    """Probes are the requests that were granted while the breaker was not closed."""

    ANSWERED = "answered"
    FAILED = "failed"
    PATH_FAILED = "path failed"
    PROBE_BEGAN = "probe began"
    """Its time has passed."""
    LAST_RESORT_BEGAN = "last resort began"
    """It has not, but nobody else has room. Ends as a probe does."""
    PROBE_ANSWERED = "probe answered"
    PROBE_FAILED = "probe failed"
    PROBE_LOST = "probe lost"
    """Nobody waited for how it ended."""


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    failures_in_a_row: int = 5
    error_rate: float = 0.5
    minimum: int = 20
    """Fewer requests in the window say nothing of a rate."""
    window_s: float = 10.0
    open_s: float = OPEN_S
    open_at_most_s: float = 40.0
    probes: int = 1
    """So many at once, and so many have to be answered."""


@dataclass(frozen=True, slots=True)
class Breaker:
    """One worker's."""

    state: BreakerState = BreakerState.CLOSED
    in_a_row: int = 0
    """Failures since the last answer."""
    answered: int = 0
    failed: int = 0
    window_until_s: float = -math.inf
    open_until_s: float = -math.inf
    open_for_s: float = 0.0
    """How long it was opened for; twice as long the next time."""
    probing: int = 0
    proven: int = 0
    """Probes that were answered since it opened."""

    @property
    def is_closed(self) -> bool:
        return self.state is BreakerState.CLOSED

    @property
    def is_idle(self) -> bool:
        """Closed, and nothing speaks against the worker: need not be kept."""
        return self.is_closed and not self.in_a_row and not self.failed


DEFAULT_SETTINGS = BreakerSettings()
IDLE = Breaker()


def after(breaker: Breaker, event: BreakerEvent, now_s: float, settings: BreakerSettings = DEFAULT_SETTINGS) -> Breaker:
    """What the breaker is once this has happened. What the table does not name changes nothing."""
    step = _TABLE.get((breaker.state, event))
    return breaker if step is None else step(breaker, now_s, settings)


def shuns_until_s(breaker: Breaker, settings: BreakerSettings = DEFAULT_SETTINGS) -> float:
    """Until when the worker is passed over as things are: in the past, if it is not."""
    if breaker.is_closed:
        return -math.inf
    return math.inf if breaker.probing >= settings.probes else breaker.open_until_s


def _answered(breaker: Breaker, now_s: float, settings: BreakerSettings) -> Breaker:
    counted = _in_window(breaker, now_s, settings)
    return replace(counted, in_a_row=0, answered=counted.answered + 1)


def _failed(breaker: Breaker, now_s: float, settings: BreakerSettings) -> Breaker:
    counted = _in_window(breaker, now_s, settings)
    counted = replace(counted, in_a_row=counted.in_a_row + 1, failed=counted.failed + 1)
    volume = counted.answered + counted.failed
    too_many = volume >= settings.minimum and counted.failed >= settings.error_rate * volume
    return _opened(counted, now_s, settings) if too_many or counted.in_a_row >= settings.failures_in_a_row else counted


def _in_window(breaker: Breaker, now_s: float, settings: BreakerSettings) -> Breaker:
    if now_s < breaker.window_until_s:
        return breaker
    return replace(breaker, answered=0, failed=0, window_until_s=now_s + settings.window_s)


def _opened(breaker: Breaker, now_s: float, settings: BreakerSettings) -> Breaker:
    """Open for the first time, or once more for as long as before."""
    length_s = breaker.open_for_s or min(settings.open_s, settings.open_at_most_s)
    return replace(breaker, state=BreakerState.OPEN, open_until_s=now_s + length_s, open_for_s=length_s, proven=0)


def _reopened(breaker: Breaker, now_s: float, settings: BreakerSettings) -> Breaker:
    longer_s = min(2 * breaker.open_for_s, settings.open_at_most_s)
    return _opened(replace(_fewer(breaker), open_for_s=longer_s), now_s, settings)


def _probing(breaker: Breaker, now_s: float, settings: BreakerSettings) -> Breaker:
    return replace(breaker, state=BreakerState.HALF_OPEN, probing=breaker.probing + 1)


def _tried(breaker: Breaker, now_s: float, settings: BreakerSettings) -> Breaker:
    return replace(breaker, probing=breaker.probing + 1)


def _proven(breaker: Breaker, now_s: float, settings: BreakerSettings) -> Breaker:
    fewer = _fewer(breaker)
    return IDLE if breaker.proven + 1 >= settings.probes else replace(fewer, proven=breaker.proven + 1)


def _last_resort_failed(breaker: Breaker, now_s: float, settings: BreakerSettings) -> Breaker:
    return _opened(_fewer(breaker), now_s, settings)


def _probe_lost(breaker: Breaker, now_s: float, settings: BreakerSettings) -> Breaker:
    return _fewer(breaker)


def _fewer(breaker: Breaker) -> Breaker:
    """One probe less is out; without any it is open, though its time has passed."""
    probing = max(0, breaker.probing - 1)
    return replace(breaker, probing=probing, state=breaker.state if probing else BreakerState.OPEN)


_CLOSED, _OPEN, _HALF = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
_TABLE: dict[tuple[BreakerState, BreakerEvent], Callable[[Breaker, float, BreakerSettings], Breaker]] = {
    (_CLOSED, BreakerEvent.ANSWERED): _answered,
    (_CLOSED, BreakerEvent.FAILED): _failed,
    (_CLOSED, BreakerEvent.PATH_FAILED): _opened,
    (_CLOSED, BreakerEvent.PROBE_ANSWERED): _answered,
    (_CLOSED, BreakerEvent.PROBE_FAILED): _failed,
    (_OPEN, BreakerEvent.PATH_FAILED): _opened,
    (_OPEN, BreakerEvent.PROBE_BEGAN): _probing,
    (_OPEN, BreakerEvent.LAST_RESORT_BEGAN): _tried,
    (_OPEN, BreakerEvent.PROBE_ANSWERED): _proven,
    (_OPEN, BreakerEvent.PROBE_FAILED): _last_resort_failed,
    (_OPEN, BreakerEvent.PROBE_LOST): _probe_lost,
    (_HALF, BreakerEvent.PATH_FAILED): _opened,
    (_HALF, BreakerEvent.PROBE_BEGAN): _probing,
    (_HALF, BreakerEvent.LAST_RESORT_BEGAN): _tried,
    (_HALF, BreakerEvent.PROBE_ANSWERED): _proven,
    (_HALF, BreakerEvent.PROBE_FAILED): _reopened,
    (_HALF, BreakerEvent.PROBE_LOST): _probe_lost,
}
