"""Demand: every scheduler hears the same, whatever came first; what is told no more is forgotten; nothing is counted twice."""

from __future__ import annotations

import random
from functools import reduce

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.copies import demand as module
from placement.copies.demand import FADED_S, PEAK_BUCKET_S, SMOOTHING_S, Asked, Demand, Rate, Share, attributed, folded
from runtime.ids import ModelName, ModelVersion
from tests.placement.fleets import DIGITS, HERE, THERE, V1, V2

KEY = (HERE, DIGITS, V1)


def asked(requests: int = 10, *, model: str = DIGITS, version: str = V1, refused: int = 0, busy_s: float = 0.0) -> Asked:
    return Asked(ModelName(model), ModelVersion(version), requests, refused, 0, busy_s)


def steady(share: Share, seconds: int, *, from_s: float, each: Asked) -> Share:
    return reduce(lambda so_far, second: so_far.heard(HERE, 1.0, [each], from_s + second + 1), range(seconds), share)


def rate(shares: list[Share], now_s: float) -> Rate:
    return folded(shares, Demand(), now_s).rates.get(KEY, Rate())


def test_what_is_asked_for_steadily_becomes_the_rate() -> None:
    share = steady(Share(), 120, from_s=0.0, each=asked(10, refused=1, busy_s=2.5))
    found = rate([share], 120.0)
    assert found.requests_per_s == pytest.approx(10, rel=0.001)
    assert found.concurrency == pytest.approx(2.5, rel=0.001)
    assert found.refused_per_s == pytest.approx(1, rel=0.001)


def test_one_long_interval_tells_the_same_as_many_short_ones() -> None:
    many = steady(Share(), 10, from_s=0.0, each=asked(10, busy_s=1.0))
    one = Share().heard(HERE, 10.0, [asked(100, busy_s=10.0)], 10.0)
    assert rate([one], 10.0).concurrency == pytest.approx(rate([many], 10.0).concurrency)


def test_what_is_told_no_more_fades_and_is_dropped() -> None:
    share = steady(Share(), 120, from_s=0.0, each=asked(10))
    assert rate([share], 120.0 + SMOOTHING_S).requests_per_s == pytest.approx(10 / 2.71828, rel=0.01)
    assert KEY not in folded([share], Demand(), 120.0 + FADED_S).rates
    assert not share.heard(HERE, 1.0, [], 120.0 + FADED_S).told


@given(st.integers(1, 60), st.integers(0, 30))
def test_who_comes_back_on_another_stream_is_not_counted_twice(before: int, after: int) -> None:
    old = steady(Share(), before, from_s=0.0, each=asked(10))
    new = steady(Share(), after, from_s=float(before), each=asked(10))
    never_left = steady(old, after, from_s=float(before), each=asked(10))
    now_s = float(before + after)
    assert rate([old, new], now_s).requests_per_s == pytest.approx(rate([never_left], now_s).requests_per_s)


messages = st.tuples(
    st.integers(0, 3),
    st.sampled_from([HERE, THERE]),
    st.floats(0.1, 5.0),
    st.lists(st.builds(asked, st.integers(1, 50), version=st.sampled_from([V1, V2, ""]), busy_s=st.floats(0, 10)), max_size=3),
)


@settings(deadline=None)
@given(st.lists(messages, max_size=12), st.randoms())
def test_the_order_in_which_gateways_are_heard_makes_no_difference(
    told: list[tuple[int, str, float, list[Asked]]], rng: random.Random
) -> None:
    def heard(order: list[int]) -> Demand:
        shares = [Share() for _ in range(4)]
        turns = {gateway: [each for each in told if each[0] == gateway] for gateway in range(4)}
        for gateway in order:
            _, region, interval_s, models = turns[gateway].pop(0)
            shares[gateway] = shares[gateway].heard(region, interval_s, models, 7.0)  # type: ignore[arg-type]
        return folded(rng.sample(shares, len(shares)), Demand(), 9.0)

    order = [gateway for gateway, *_ in told]
    assert heard(order) == heard(rng.sample(order, len(order))), "to the last bit"


def test_it_is_remembered_when_something_was_last_asked_for_and_how_high_it_stood() -> None:
    share = Share().heard(HERE, 1.0, [asked(busy_s=30.0)], 10.0)
    high = folded([share], Demand(), 10.0)
    later = folded([], high, 10.0 + FADED_S)
    trace = later.traces[KEY]
    assert (trace.used_s, later.used_s((HERE, DIGITS, V2))) == (10.0, None)
    assert trace.peak(0.0) == pytest.approx(high.rates[KEY].concurrency)
    assert trace.peak(10.0 + 2 * PEAK_BUCKET_S) == 0.0
    assert not folded([], later, 10.0 + module.KEEP_S).traces


def test_peaks_reach_half_an_hour_back_and_no_further() -> None:
    known = Demand()
    for minute in range(120):
        share = Share().heard(HERE, 1.0, [asked(busy_s=100.0 if minute == 0 else 1.0)], minute * 60.0)
        known = folded([share], known, minute * 60.0)
        assert len(known.traces[KEY].peaks) <= module.PEAK_BUCKETS
    now_s = 119 * 60.0
    assert known.traces[KEY].peak(now_s - 1_800.0) == pytest.approx(rate([share], now_s).concurrency)


def test_since_when_gateways_are_heard() -> None:
    first = folded([Share()], Demand(), 5.0)
    assert first.since_s == 5.0
    assert folded([Share()], first, 9.0).since_s == 5.0
    gone = folded([], first, 9.0, heard=False)
    assert gone.since_s is None
    assert folded([Share()], gone, 11.0).since_s == 11.0


def test_what_named_no_version_counts_for_the_newest_that_is_wished_for() -> None:
    share = Share().heard(HERE, 1.0, [asked(version=""), asked(version=V1, busy_s=1.0)], 3.0)
    known = folded([share], Demand(), 3.0)
    meant = attributed(known, {(HERE, DIGITS): V1})
    assert set(meant.rates) == set(meant.traces) == {KEY}
    assert meant.rates[KEY].requests_per_s == pytest.approx(2 * known.rates[KEY].requests_per_s)
    assert attributed(known, {(HERE, ModelName("sums")): V1}) == known, "for a model that nobody wished for: nothing"


def test_no_more_is_kept_than_allowed_and_the_latest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 3)
    share = Share()
    for second in range(5):
        share = share.heard(HERE, 1.0, [asked(model=f"m{second}")], float(second))
    assert {key[1] for key in share.told} == {"m2", "m3", "m4"}
    other = Share().heard(HERE, 1.0, [asked(model="new")], 9.0)
    assert {key[1] for key in folded([share, other], Demand(), 9.0).traces} == {"m3", "m4", "new"}
