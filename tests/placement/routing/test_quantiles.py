"""How long recent requests took."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.routing.quantiles import MIN_OBSERVATIONS, LatencyQuantiles

durations = st.lists(st.floats(0.02, 1e6), min_size=MIN_OBSERVATIONS, max_size=400)


def observed(*took_ms: float) -> LatencyQuantiles:
    quantiles = LatencyQuantiles()
    for each in took_ms:
        quantiles.observe(each)
    return quantiles


def test_too_few_say_nothing() -> None:
    quantiles = observed(*[5.0] * (MIN_OBSERVATIONS - 1))
    assert quantiles.at(0.95) is None
    quantiles.observe(5.0)
    assert quantiles.at(0.95) == pytest.approx(5.0, rel=1 / 12)


@given(durations, st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_a_quantile_is_at_most_a_twelfth_too_long_and_never_too_short(took_ms: list[float], quantile: float) -> None:
    exact = sorted(took_ms)[math.ceil(quantile * len(took_ms)) - 1]
    found = observed(*took_ms).at(quantile)
    assert found is not None
    assert exact * (1 - 1e-9) <= found <= exact * 13 / 12 * (1 + 1e-9)


@given(durations, st.randoms(use_true_random=False))
def test_the_order_does_not_matter_while_nothing_is_forgotten(took_ms: list[float], rng: Random) -> None:
    shuffled = rng.sample(took_ms, len(took_ms))
    assert observed(*took_ms).at(0.9) == observed(*shuffled).at(0.9)


@given(durations)
def test_a_higher_quantile_is_no_shorter(took_ms: list[float]) -> None:
    quantiles = observed(*took_ms)
    found = [quantiles.at(each) or 0.0 for each in (0.5, 0.75, 0.9, 0.99)]
    assert found == sorted(found)


def test_what_counts_is_recent() -> None:
    quantiles = observed(*[5.0] * 2_000)
    for _ in range(8_000):
        quantiles.observe(50.0)
    assert quantiles.at(0.5) == pytest.approx(50.0, rel=1 / 12)
    assert (quantiles.at(0.05) or 0.0) > 45


def test_a_change_is_seen_soon() -> None:
    quantiles = observed(*[5.0] * 1_000)
    before = quantiles.at(0.5)
    for _ in range(1_100):
        quantiles.observe(50.0)
    assert before is not None
    assert (quantiles.at(0.5) or 0.0) > 5 * before


@pytest.mark.parametrize("took_ms", [0.0, -1.0, 1e-9, 1e12])
def test_absurd_durations_are_kept_within_bounds(took_ms: float) -> None:
    found = observed(*[took_ms] * MIN_OBSERVATIONS).at(0.95)
    assert found is not None
    assert 0 < found < 3e6


def test_asking_for_ever_new_quantiles_fills_nothing() -> None:
    quantiles = observed(*[5.0] * MIN_OBSERVATIONS)
    for number in range(1_000):
        assert quantiles.at(0.5 + number / 2_500) is not None
    assert len(quantiles._kept) <= 16
