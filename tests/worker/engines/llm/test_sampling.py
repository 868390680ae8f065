"""How tokens are chosen: greedy, by chance, bounded, penalised; and what is said of how likely they were."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from runtime.errors import InvalidArgument
from worker.engine import Array, EngineFailed, Sampling
from worker.engines.llm.sampling import Choice, Sampler, check_sampling, choice, likeliest, log_probabilities

GREEDY = Choice(temperature=0.0)
ALL_LOGITS = arrays(np.float32, st.integers(2, 40), elements=st.floats(-20, 20, width=32))


def draws(logits: Array, chosen: Choice, count: int, seed: int = 1) -> list[int]:
    sampler = Sampler(chosen, seed, ())
    return [sampler.choose(logits) for _ in range(count)]


@settings(deadline=None)
@given(ALL_LOGITS)
def test_greedy_takes_the_first_of_the_likeliest(logits: Array) -> None:
    assert Sampler(GREEDY, 3, ()).choose(logits) == int(logits.argmax())


@settings(deadline=None)
@given(ALL_LOGITS, st.integers(1, 8), st.floats(0.05, 1.0), st.integers(0, 2**63 - 1))
def test_what_is_drawn_is_among_the_top_k_and_in_the_nucleus(logits: Array, top_k: int, top_p: float, seed: int) -> None:
    token = Sampler(Choice(top_k=top_k, top_p=top_p), seed, ()).choose(logits)
    likelier = logits > logits[token]
    assert likelier.sum() < top_k
    kept = np.sort(np.exp(logits.astype(np.float64)))[::-1][:top_k]
    mass_before = np.exp(logits[likelier].astype(np.float64)).sum() / kept.sum()
    assert mass_before <= top_p + 1e-5


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.lists(st.integers(0, 9), max_size=20))
def test_the_nth_draw_depends_on_the_seed_and_n_alone(seed: int, resumed: list[int]) -> None:
    logits = np.zeros(10, np.float32)
    whole = Sampler(Choice(), seed, ())
    for _ in resumed:
        whole.choose(logits)
    rest = Sampler(Choice(), seed, (), resumed)
    assert [whole.choose(logits) for _ in range(5)] == [rest.choose(logits) for _ in range(5)]


@settings(deadline=None)
@given(ALL_LOGITS, st.data())
def test_a_bias_bans_a_token_or_makes_it_the_only_one(logits: Array, data: st.DataObject) -> None:
    token, before = data.draw(st.integers(0, logits.size - 1)), logits.copy()
    for chosen in (GREEDY, Choice()):
        assert Sampler(chosen, 1, (), bias={token: 100.0}).choose(logits) == token
        assert Sampler(chosen, 1, (), bias={token: -100.0}).choose(logits) != token
    assert (logits == before).all(), "the decoder's own numbers stay as they are"


def test_a_bias_and_a_penalty_add_up() -> None:
    sampler = Sampler(Choice(temperature=0.0, presence_penalty=1.0), 1, (), bias={0: 0.5})
    assert [sampler.choose(np.zeros(3, np.float32)) for _ in range(3)] == [0, 1, 2]


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    counts = Counter(draws(logits, Choice(), 4000))
    assert [counts[token] / 4000 for token in range(4)] == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    sharp = Counter(draws(logits, Choice(temperature=0.5), 4000))
    squares = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    assert [sharp[token] / 4000 for token in range(4)] == pytest.approx(list(squares / squares.sum()), abs=0.03)


def test_without_a_seed_no_two_are_alike() -> None:
    logits = np.zeros(1000, np.float32)
    assert len({Sampler(Choice(), None, ()).choose(logits) for _ in range(20)}) > 1


def test_a_large_vocabulary_with_a_wide_nucleus() -> None:
    """The nucleus reaches beyond the candidates that are looked at first."""
    logits = np.zeros(5000, np.float32)
    drawn = draws(logits, Choice(top_p=0.9), 2000)
    assert 4000 < max(drawn) < 4501
    assert draws(logits, Choice(temperature=1e-9, top_p=0.5), 1)


def test_frequency_and_presence_count_what_was_generated() -> None:
    logits = np.array([1.0, 0.8, 0.0], np.float32)
    sampler = Sampler(Choice(temperature=0.0, frequency_penalty=0.15), None, prompt=(0, 0, 0))
    assert [sampler.choose(logits) for _ in range(4)] == [0, 0, 1, 0]
    present = Sampler(Choice(temperature=0.0, presence_penalty=0.5), None, prompt=(0,))
    assert [present.choose(logits) for _ in range(4)] == [0, 1, 0, 0]
    resumed = Sampler(Choice(temperature=0.0, presence_penalty=0.5), None, prompt=(0,), resumed=(0,))
    assert resumed.choose(logits) == 1


def test_repetition_counts_the_prompt_too() -> None:
    logits = np.array([1.0, 0.8, -0.5], np.float32)
    assert Sampler(Choice(temperature=0.0, repetition_penalty=2.0), None, prompt=(0,)).choose(logits) == 1
    negative = np.array([-1.0, -1.5], np.float32)
    assert Sampler(Choice(temperature=0.0, repetition_penalty=2.0), None, prompt=(0,)).choose(negative) == 1


@settings(deadline=None)
@given(ALL_LOGITS)
def test_penalties_leave_the_models_logits_as_they_are(logits: Array) -> None:
    before = logits.copy()
    sampler = Sampler(Choice(frequency_penalty=1.0, repetition_penalty=1.5), 1, prompt=(0, 1))
    sampler.choose(logits)
    sampler.choose(logits)
    assert np.array_equal(before, logits)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_fail_the_generation(bad: float) -> None:
    with pytest.raises(EngineFailed, match="no numbers"):
        Sampler(GREEDY, None, ()).choose(np.array([0.0, bad], np.float32))


@settings(deadline=None)
@given(ALL_LOGITS, st.integers(1, 20))
def test_log_probabilities_sum_to_one_and_are_told_likeliest_first(logits: Array, count: int) -> None:
    values = log_probabilities(logits)
    assert np.exp(values).sum() == pytest.approx(1.0)
    told = likeliest(values, count)
    assert len(told) == min(count, logits.size) == len(set(told))
    assert [values[token] for token in told] == sorted(values, reverse=True)[:count]


@pytest.mark.parametrize(
    ("sampling", "sentence"),
    [
        (Sampling(temperature=-0.1), "temperature is -0.1"),
        (Sampling(temperature=float("inf")), "temperature is inf"),
        (Sampling(top_p=0.0), "top_p is 0.0"),
        (Sampling(top_p=float("nan")), "top_p is nan"),
        (Sampling(top_k=-1), "top_k is -1"),
        (Sampling(frequency_penalty=2.1), "frequency_penalty is 2.1; it is taken from -2 to 2"),
        (Sampling(presence_penalty=float("nan")), "presence_penalty is nan"),
        (Sampling(repetition_penalty=0.0), "repetition_penalty is 0.0"),
    ],
)
def test_what_is_out_of_range_is_refused(sampling: Sampling, sentence: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_sampling(sampling)
    assert sentence in refused.value.message


def test_the_models_own_choice_where_the_request_says_nothing_of_it() -> None:
    own = Choice(temperature=0.6, top_p=0.9, top_k=40, repetition_penalty=1.1)
    assert choice(Sampling(), own) == own
    assert choice(Sampling(presence_penalty=1.0), own) == Choice(0.6, 0.9, 40, presence_penalty=1.0, repetition_penalty=1.1)
    assert choice(Sampling(top_p=0.5), own) == Choice(1.0, 0.5, 0, repetition_penalty=1.1)
    assert choice(Sampling(temperature=0.0, repetition_penalty=1.0), own).temperature == 0.0
