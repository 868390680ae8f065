"""The breaker: its table, its times, and what no history may make of it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.routing.breaker import (
    DEFAULT_SETTINGS,
    IDLE,
    Breaker,
    BreakerEvent,
    BreakerSettings,
    BreakerState,
    after,
    shuns_until_s,
)

ANSWERED, FAILED, PATH_FAILED = BreakerEvent.ANSWERED, BreakerEvent.FAILED, BreakerEvent.PATH_FAILED
PROBE_BEGAN, PROBE_FAILED, PROBE_LOST = BreakerEvent.PROBE_BEGAN, BreakerEvent.PROBE_FAILED, BreakerEvent.PROBE_LOST
PROBE_ANSWERED, LAST_RESORT = BreakerEvent.PROBE_ANSWERED, BreakerEvent.LAST_RESORT_BEGAN
CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def history(
    *events: BreakerEvent, at_s: float = 0.0, breaker: Breaker = IDLE, settings: BreakerSettings = DEFAULT_SETTINGS
) -> Breaker:
    for event in events:
        breaker = after(breaker, event, at_s, settings)
    return breaker


@pytest.mark.parametrize(
    ("events", "state", "until_s"),
    [
        ([], CLOSED, -math.inf),
        ([FAILED] * 4, CLOSED, -math.inf),
        ([FAILED] * 4 + [ANSWERED] + [FAILED] * 4, CLOSED, -math.inf),
        ([FAILED] * 5, OPEN, 5.0),
        ([PATH_FAILED], OPEN, 5.0),
        ([FAILED, ANSWERED] * 9, CLOSED, -math.inf),
        ([ANSWERED, FAILED] * 10, OPEN, 5.0),
        ([ANSWERED, ANSWERED, FAILED] * 20, CLOSED, -math.inf),
        ([PATH_FAILED, ANSWERED], OPEN, 5.0),
        ([PATH_FAILED, FAILED, FAILED], OPEN, 5.0),
        ([PATH_FAILED, PROBE_BEGAN], HALF_OPEN, math.inf),
        ([PATH_FAILED, PROBE_BEGAN, PROBE_ANSWERED], CLOSED, -math.inf),
        ([PATH_FAILED, PROBE_BEGAN, PROBE_LOST], OPEN, 5.0),
        ([PATH_FAILED, PROBE_BEGAN, PROBE_FAILED], OPEN, 10.0),
        ([PATH_FAILED, PROBE_BEGAN, FAILED, ANSWERED], HALF_OPEN, math.inf),
        ([PATH_FAILED, LAST_RESORT], OPEN, math.inf),
        ([PATH_FAILED, LAST_RESORT, PROBE_ANSWERED], CLOSED, -math.inf),
        ([PATH_FAILED, LAST_RESORT, PROBE_FAILED], OPEN, 5.0),
        ([PROBE_ANSWERED], CLOSED, -math.inf),
    ],
)
def test_histories(events: list[BreakerEvent], state: BreakerState, until_s: float) -> None:
    breaker = history(*events)
    assert breaker.state is state
    assert shuns_until_s(breaker) == until_s


def test_each_failed_probe_doubles_the_time_up_to_a_limit_and_trust_resets_it() -> None:
    breaker, now_s, waits = history(PATH_FAILED), 0.0, []
    for _ in range(6):
        waits.append(breaker.open_until_s - now_s)
        now_s = breaker.open_until_s
        breaker = history(PROBE_BEGAN, PROBE_FAILED, breaker=breaker, at_s=now_s)
    assert waits == [5.0, 10.0, 20.0, 40.0, 40.0, 40.0]
    breaker = history(PROBE_BEGAN, PROBE_ANSWERED, breaker=breaker, at_s=now_s)
    assert breaker == IDLE
    assert history(PATH_FAILED, breaker=breaker).open_until_s == 5.0


def test_old_failures_do_not_count() -> None:
    settings = BreakerSettings(failures_in_a_row=99, minimum=4)
    breaker = history(FAILED, FAILED, ANSWERED, settings=settings)
    later = history(FAILED, FAILED, ANSWERED, breaker=breaker, at_s=11.0, settings=settings)
    assert later.is_closed
    assert not history(FAILED, breaker=breaker, at_s=9.0, settings=settings).is_closed


def test_a_quiet_breaker_need_not_be_kept() -> None:
    failed_once = history(FAILED)
    assert not history(ANSWERED, breaker=failed_once, at_s=1.0).is_idle, "its window still counts"
    assert history(ANSWERED, breaker=failed_once, at_s=11.0).is_idle


def test_several_probes_must_all_be_answered() -> None:
    settings = BreakerSettings(probes=2)
    breaker = history(PATH_FAILED, PROBE_BEGAN, settings=settings)
    assert shuns_until_s(breaker, settings) == 5.0, "one more may go"
    breaker = history(PROBE_BEGAN, breaker=breaker, settings=settings)
    assert shuns_until_s(breaker, settings) == math.inf
    breaker = history(PROBE_ANSWERED, breaker=breaker, settings=settings)
    assert not breaker.is_closed
    assert history(PROBE_ANSWERED, breaker=breaker, settings=settings).is_closed
    assert not history(PROBE_FAILED, breaker=breaker, settings=settings).is_closed


@given(st.lists(st.tuples(st.sampled_from(BreakerEvent), st.floats(0, 20)), max_size=60), st.integers(1, 3))
def test_whatever_happens(steps: list[tuple[BreakerEvent, float]], probes: int) -> None:
    """It is never shut for ever without a probe out, never longer than the limit, and half open only with a probe out."""
    settings, breaker, now_s = BreakerSettings(probes=probes), IDLE, 0.0
    for event, passed_s in steps:
        now_s += passed_s
        breaker = after(breaker, event, now_s, settings)
        until_s = shuns_until_s(breaker, settings)
        assert breaker.probing >= 0
        assert (until_s == math.inf) is (not breaker.is_closed and breaker.probing >= probes)
        assert breaker.is_closed or breaker.open_until_s <= now_s + settings.open_at_most_s
        assert breaker.state is not HALF_OPEN or breaker.probing > 0
        assert not breaker.is_closed or breaker.in_a_row < settings.failures_in_a_row
