"""Restart delays grow, are bounded and forgotten after a steady run; the door is closed before the memory."""

from hypothesis import given
from hypothesis import strategies as st

from cli.supervision import LONGEST_DELAY_S, STEADY_S, RestartState, restart_delay_s, stop_waves


def test_delays_double() -> None:
    state, delays = RestartState(started_at_s=0.0), []
    for _ in range(4):
        state, delay_s = restart_delay_s(state, now_s=1.0)
        delays.append(delay_s)
    assert delays == [0.2, 0.4, 0.8, 1.6]


@given(st.integers(0, 1000), st.floats(0, STEADY_S - 1))
def test_delays_are_bounded(failures: int, ran_s: float) -> None:
    _, delay_s = restart_delay_s(RestartState(failures % 500, 0.0), ran_s)
    assert 0 < delay_s <= LONGEST_DELAY_S


def test_a_steady_run_is_forgiven() -> None:
    state, delay_s = restart_delay_s(RestartState(failures=9, started_at_s=0.0), STEADY_S)
    assert (state.failures, delay_s) == (1, 0.2)


def test_children_stop_from_the_door_to_the_memory() -> None:
    names = ["etcd", "registry", "scheduler", "gateway", "worker-1", "worker-2", "envoy"]
    assert stop_waves(names) == [["envoy"], ["gateway"], ["worker-1", "worker-2"], ["scheduler"], ["registry"], ["etcd"]]


def test_an_unknown_child_stops_first() -> None:
    assert stop_waves(["etcd", "extra"]) == [["extra"], ["etcd"]]
