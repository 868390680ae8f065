"""Outliers: who is one, how many at most, and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.routing.outliers import OutlierSettings, OutlierSign, Window, outliers, put_aside_s
from placement.routing.policy import choose
from placement.routing.state import RoutingState
from placement.types import Granted, Outcome, Request, Why
from placement.view import FleetView
from runtime.ids import WorkerId
from tests.placement.fleets import DIGITS, V1, copy, worker

SETTINGS = OutlierSettings()
FAILURES, SUCCESS_RATE, LATENCY = OutlierSign.FAILURES, OutlierSign.SUCCESS_RATE, OutlierSign.LATENCY


def well(requests: int = 100, latency_ms: float = 10.0) -> Window:
    return Window(requests, 0, 0, requests, requests * latency_ms)


def sick(failed: int, requests: int = 100) -> Window:
    return Window(requests - failed, failed, 0, requests - failed, 10.0 * (requests - failed))


def found(*windows: Window, hosts: int | None = None, already: int = 0, rates: bool = True) -> dict[WorkerId, OutlierSign]:
    named = {WorkerId(f"w{number}"): window for number, window in enumerate(windows)}
    return outliers(named, len(windows) if hosts is None else hosts, already, SETTINGS, rates=rates)


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([well()] * 5, {}),
        ([Window(in_a_row=10), *[well()] * 4], {"w0": FAILURES}),
        ([Window(in_a_row=9), *[well()] * 4], {}),
        ([sick(60), *[well()] * 5], {"w0": SUCCESS_RATE}),
        ([sick(60), *[well()] * 3], {}),  # too few to compare
        ([sick(30, requests=49), *[well()] * 5], {}),  # too little of it
        ([sick(20), sick(15), sick(22), sick(18), sick(21), sick(19)], {}),  # all are alike
        ([*[well()] * 5, well(latency_ms=500.0)], {"w5": LATENCY}),
        ([*[well(latency_ms=10.0)] * 9, well(latency_ms=11.0)], {}),  # slower, but not by much
        ([Window(in_a_row=12), Window(in_a_row=30), *[well()] * 6], {"w1": FAILURES}),  # the worst; one at most of eight
    ],
)
def test_who_is_one(windows: list[Window], expected: dict[str, OutlierSign]) -> None:
    assert found(*windows) == expected


def test_rates_wait_for_the_end_of_the_interval_and_failures_do_not() -> None:
    assert found(sick(90), *[well()] * 5, rates=False) == {}
    assert found(Window(in_a_row=10), *[well()] * 5, rates=False) == {"w0": FAILURES}


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 8))
def test_at_most_a_part_and_never_the_last(hosts: int, failing: int, already: int) -> None:
    failing, already = min(failing, hosts), min(already, hosts)
    put_aside = found(*[Window(in_a_row=99)] * failing, hosts=hosts, already=already)
    assert len(put_aside) + already <= max(already, 1, hosts // 10)
    assert not put_aside or len(put_aside) + already < hosts


def test_each_time_is_longer_up_to_a_limit() -> None:
    assert [put_aside_s(times, SETTINGS) for times in (1, 2, 3, 10, 11)] == [30.0, 60.0, 90.0, 300.0, 300.0]


def _fleet(count: int) -> tuple[FleetView, RoutingState]:
    view = FleetView().with_changes(worker(f"w{number}", copy(), capacity=1000) for number in range(count))
    return view, RoutingState(view)


def _run(view: FleetView, state: RoutingState, now_s: float, failing: str, *, requests: int = 60) -> None:
    """So many requests to each; those to one worker fail every second time."""
    for who in view.workers:
        others = frozenset(view.workers.keys() - {who})
        for number in range(requests):
            granted = choose(view, state, Request(DIGITS, V1, exclude=others), now_s=now_s)
            assert isinstance(granted, Granted)
            state.reserve(granted)
            bad = who == failing and number % 3 == 0
            state.release(granted, Outcome.FAILED if bad else Outcome.ANSWERED, now_s=now_s, latency_ms=None if bad else 5.0)


def test_an_outlier_is_passed_over_comes_back_and_goes_for_longer() -> None:
    view, state = _fleet(6)
    assert not state.sweep(0.0)
    _run(view, state, 1.0, "w0")
    assert not state.sweep(5.0), "the interval is not over"
    assert state.sweep(10.0) == {"w0": SUCCESS_RATE}
    assert state.health.shunned(39.9) == {"w0"}
    assert state.health.shunned(40.0) == set()
    only = Request(DIGITS, exclude=frozenset(view.workers.keys() - {WorkerId("w0")}))
    last = choose(view, state, only, now_s=12.0)
    assert isinstance(last, Granted)
    assert (last.worker_id, last.why) == ("w0", Why.LAST_RESORT), "never the last"
    assert not state.sweep(20.0)
    _run(view, state, 41.0, "w0")
    assert state.sweep(42.0) == {"w0": SUCCESS_RATE}
    assert state.health.shunned(101.9) == {"w0"}, "twice as long"


def test_who_behaves_is_forgiven_in_time() -> None:
    view, state = _fleet(6)
    state.sweep(0.0)
    _run(view, state, 1.0, "w0")
    state.sweep(10.0)
    for number in range(5):
        _run(view, state, 40.0 + 10 * number, "")
        state.sweep(41.0 + 10 * number)
    assert not state.health.ejections
    assert not state.health.shuns or not state.health.shunned(100.0)


def test_the_gone_are_forgotten() -> None:
    view, state = _fleet(6)
    state.sweep(0.0)
    _run(view, state, 1.0, "w0")
    state.sweep(10.0)
    view = view.without_worker(WorkerId("w0"))
    state.adopt(view)
    assert not state.health.ejections
    view = view.with_worker(worker("w0", copy(), capacity=1000))
    state.adopt(view)
    assert not state.health.shunned(11.0)
