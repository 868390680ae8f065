"""Buckets by name: nobody takes more than its share, and nobody gains by filling the table."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from registry.access.throttle import Throttle


def test_a_name_has_its_burst_and_then_its_rate() -> None:
    throttle = Throttle(burst=2, per_s=0.5)
    assert [throttle.take("a", 0.0) for _ in range(3)] == [0.0, 0.0, 2.0]
    assert throttle.take("b", 0.0) == 0.0, "another name has its own"
    assert throttle.take("a", 1.0) == 1.0, "refusals cost nothing"
    assert throttle.take("a", 2.0) == 0.0
    throttle.give_back("a")
    assert throttle.take("a", 2.0) == 0.0


steps = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.floats(0, 20)), max_size=200)


@given(steps)
def test_no_name_ever_gets_more_than_burst_and_rate(steps: list[tuple[str, float]]) -> None:
    """Whoever else comes: a table of three names, asked for eight. A name has its own bucket, and a newcomer the shared one."""
    throttle, now_s, granted = Throttle(burst=2, per_s=0.1, names=3), 0.0, dict[str, list[float]]()
    for name, wait_s in steps:
        now_s += wait_s
        if not throttle.take(name, now_s):
            granted.setdefault(name, []).append(now_s)
        assert len(throttle) <= 3
    for times in granted.values():
        for first in range(len(times)):
            for last in range(first, len(times)):
                assert last - first + 1 <= 2 * (2 + (times[last] - times[first]) * 0.1) + 1e-6


def test_filling_the_table_with_names_frees_nobody() -> None:
    throttle = Throttle(burst=1, per_s=0.01, names=10)
    assert throttle.take("victim", 0.0) == 0.0
    taken = [throttle.take(f"name-{number}", 1.0) == 0.0 for number in range(1000)]
    assert sum(taken) == 10, "nine of their own, and the one that is shared"
    assert throttle.take("victim", 2.0) > 0


def test_what_is_full_again_makes_room() -> None:
    throttle = Throttle(burst=1, per_s=1.0, names=2)
    assert [throttle.take(name, 0.0) for name in "ab"] == [0.0, 0.0]
    assert [throttle.take(name, 1.0) for name in "cd"] == [0.0, 0.0]
    assert len(throttle) == 2


def test_a_clock_that_goes_back_grants_nothing() -> None:
    throttle = Throttle(burst=1, per_s=1.0)
    assert throttle.take("a", 10.0) == 0.0
    assert throttle.take("a", 5.0) > 0
    assert throttle.take("a", 10.5) > 0
