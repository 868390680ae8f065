"""Pots: never more given than there is, whatever is asked, returned, overdrawn and forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.limits.pots import Pot
from placement.limits.stocks import Budget, stock_of
from placement.limits.types import DAY_S, IN_HANDS_S, AllowanceId, Ask, HolderId, Kind, Moment, Terms

NAME = AllowanceId("l/requests/")
A, B = HolderId("a"), HolderId("b")
NOON_S = 20_000 * DAY_S + DAY_S / 2


def moment(at_s: float) -> Moment:
    return Moment(at_s, NOON_S + at_s)


def pot_of(terms: Terms, empty_at_s: float | None = None) -> Pot:
    pot = Pot(stock_of(terms, moment(0.0), empty_at_s))
    if isinstance(pot.stock, Budget):
        pot.stock.written = int(terms.units)
    return pot


def asked(pot: Pot, holder: HolderId, at_s: float, wanted: int = 0, *, used: int = 0, returned: int = 0) -> int:
    first = holder not in pot.hands
    ask = Ask(NAME, pot.stock.terms if first else None, used=used, returned=returned, wanted=wanted)
    pot.hear(holder, ask, moment(at_s))
    return pot.answer(holder, ask, moment(at_s)).granted


STEPS = st.lists(
    st.tuples(
        st.floats(0, 0.7),
        st.integers(0, 4),
        st.integers(0, 60),
        st.floats(0, 1),
        st.floats(0, 1),
    ),
    max_size=120,
)


@given(st.floats(0.2, 200), st.integers(0, 50), STEPS)
def test_of_a_rate_no_more_is_given_than_its_burst_and_what_refilled_and_what_is_on_its_way(
    per_s: float, burst: int, steps: list[tuple[float, int, int, float, float]]
) -> None:
    terms = Terms(Kind.REQUESTS, per_s, burst)
    pot, now_s, held = pot_of(terms), 0.0, dict.fromkeys(range(5), 0)
    gone = 0
    for gap_s, who, wanted, using, returning in steps:
        now_s += gap_s
        used = int(held[who] * using)
        returned = int((held[who] - used) * returning)
        given = asked(pot, HolderId(str(who)), now_s, wanted, used=used, returned=returned)
        held[who] += given - used - returned
        gone += used
        assert 0 <= given <= wanted
        assert pot.held == sum(held.values())
        assert gone + pot.held <= terms.capacity + per_s * (now_s + IN_HANDS_S) + 1e-6
        assert pot.stock.remaining(pot.held) <= terms.capacity


@given(st.integers(1, 30), STEPS)
def test_no_more_permits_are_out_than_there_are(units: int, steps: list[tuple[float, int, int, float, float]]) -> None:
    pot, now_s, held = pot_of(Terms(Kind.CONCURRENT, units)), 0.0, dict.fromkeys(range(5), 0)
    for gap_s, who, wanted, _, returning in steps:
        now_s += gap_s
        returned = int(held[who] * returning)
        held[who] += asked(pot, HolderId(str(who)), now_s, wanted, returned=returned) - returned
        assert sum(held.values()) == pot.held <= units


@given(st.integers(1, 300), STEPS)
def test_of_a_day_no_more_is_given_than_its_budget_and_never_more_than_was_written_down(
    units: int, steps: list[tuple[float, int, int, float, float]]
) -> None:
    pot, now_s, held, gone = Pot(stock_of(Terms(Kind.REQUESTS_PER_DAY, units), moment(0.0))), 0.0, dict.fromkeys(range(5), 0), 0
    budget = pot.stock
    assert isinstance(budget, Budget)
    for gap_s, who, wanted, using, returning in steps:
        now_s += gap_s
        used = int(held[who] * using)
        returned = int((held[who] - used) * returning)
        holder = HolderId(str(who))
        ask = Ask(NAME, budget.terms if holder not in pot.hands else None, 0, False, used, returned, wanted)
        pot.hear(holder, ask, moment(now_s))
        if due := budget.due(wanted):
            assert due <= units
            budget.written = max(budget.written, due)
        given = pot.answer(holder, ask, moment(now_s)).granted
        held[who] += given - used - returned
        gone += used
        assert gone + sum(held.values()) <= min(units, budget.written)


def test_what_was_used_beyond_what_was_given_is_paid_back_before_anybody_gets_more() -> None:
    pot = pot_of(Terms(Kind.TOKENS, 600))  # ten a second
    assert asked(pot, A, 0.0, 100) == 100
    assert asked(pot, A, 0.0, used=1000) == 900, "covered, so that its hand is empty and not below"
    assert pot.stock.remaining(pot.held) == 600 - 100 - 900
    assert asked(pot, B, 30.0, 50) == 0
    assert asked(pot, B, 45.0, 50) == 50
    assert pot.held == 50


def test_a_refusal_says_when_to_come_again() -> None:
    pot = pot_of(Terms(Kind.REQUESTS, 2.0, burst=1))
    assert asked(pot, A, 0.0, 1) == 1
    ask = Ask(NAME, pot.stock.terms, wanted=1)
    pot.hear(B, ask, moment(0.0))
    grant = pot.answer(B, ask, moment(0.0))
    assert (grant.granted, grant.remaining, grant.retry_after_s, grant.holders) == (0, 0, 0.5, 2)


def test_where_there_is_too_little_each_gets_a_part_that_is_as_its_want() -> None:
    pot = pot_of(Terms(Kind.REQUESTS, 100.0), empty_at_s=0.0)
    for _ in range(2):
        asked(pot, A, 0.0, 300)
        asked(pot, B, 0.0, 100)
    given_a = asked(pot, A, 0.4, 300)
    given_b = asked(pot, B, 0.4, 100)
    assert given_a == 30
    assert given_b == pytest.approx(10, abs=8)


def test_a_want_that_is_not_repeated_keeps_nothing_from_others() -> None:
    pot = pot_of(Terms(Kind.REQUESTS, 100.0), empty_at_s=0.0)
    asked(pot, A, 0.0, 300)
    assert asked(pot, B, 2.0, 100) == 100


def test_permits_of_one_that_is_gone_are_free() -> None:
    pot = pot_of(Terms(Kind.CONCURRENT, 3))
    assert asked(pot, A, 0.0, 3) == 3
    assert asked(pot, B, 0.0, 1) == 0
    pot.drop(A)
    assert asked(pot, B, 0.1, 5) == 3


def test_one_that_comes_back_says_what_it_holds() -> None:
    pot = pot_of(Terms(Kind.CONCURRENT, 10))
    assert asked(pot, A, 0.0, 4) == 4
    again = Ask(NAME, pot.stock.terms, held=6, resumed=True)
    pot.hear(A, again, moment(1.0))
    assert pot.answer(A, again, moment(1.0)).granted == 0
    assert asked(pot, B, 1.0, 10) == 4


def test_one_that_comes_back_overdrawn_is_covered() -> None:
    pot = pot_of(Terms(Kind.TOKENS_PER_DAY, 100))
    again = Ask(NAME, pot.stock.terms, held=-30, resumed=True)
    pot.hear(A, again, moment(1.0))
    grant = pot.answer(A, again, moment(1.0))
    assert (grant.granted, grant.remaining) == (30, 70)


def test_what_is_overdrawn_of_a_day_is_taken_from_the_next() -> None:
    pot = pot_of(Terms(Kind.TOKENS_PER_DAY, 100))
    assert asked(pot, A, 0.0, used=150) == 150
    ask = Ask(NAME, wanted=1)
    pot.hear(A, ask, moment(0.0))
    refused = pot.answer(A, ask, moment(0.0))
    assert (refused.granted, refused.remaining, refused.retry_after_s) == (0, -50, DAY_S / 2)
    budget = pot.stock
    assert isinstance(budget, Budget)
    budget.refresh(moment(DAY_S / 2), pot.held)
    assert (budget.spent, budget.left, budget.written) == (50, 50, 0)


def test_what_is_in_hand_at_midnight_is_of_the_new_day() -> None:
    pot = pot_of(Terms(Kind.REQUESTS_PER_DAY, 100))
    assert asked(pot, A, 0.0, 40) == 40
    pot.stock.refresh(moment(DAY_S / 2), pot.held)
    assert pot.stock.remaining(pot.held) == 60


@pytest.mark.parametrize(("generation", "rate"), [(1, 5.0), (2, 7.0), (3, 7.0)])
def test_newer_terms_replace_older_ones(generation: int, rate: float) -> None:
    pot = pot_of(Terms(Kind.REQUESTS, 5.0, generation=2))
    asked(pot, A, 0.0, 1)
    pot.hear(A, Ask(NAME, Terms(Kind.REQUESTS, 7.0, generation=generation), held=1), moment(0.0))
    assert pot.stock.terms.units == rate


def test_lower_terms_leave_no_more_than_they_allow() -> None:
    pot = pot_of(Terms(Kind.REQUESTS, 100.0))
    pot.hear(A, Ask(NAME, Terms(Kind.REQUESTS, 10.0, generation=1)), moment(0.0))
    assert pot.stock.remaining(0) == 10


@pytest.mark.parametrize(
    ("terms", "capacity"),
    [
        (Terms(Kind.REQUESTS, 0.01), 1),
        (Terms(Kind.REQUESTS, 0.01, burst=2), 2),
        (Terms(Kind.REQUESTS, 100.0), 100),
        (Terms(Kind.REQUESTS, 100.0, burst=1), 50),
        (Terms(Kind.TOKENS, 600.0), 600),
        (Terms(Kind.CONCURRENT, 3.0), 3),
        (Terms(Kind.REQUESTS_PER_DAY, 7.0), 7),
    ],
)
def test_what_there_is_at_most(terms: Terms, capacity: float) -> None:
    assert terms.capacity == capacity


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("units", [1, 7, 1000])
@pytest.mark.parametrize("holders", [1, 3, 50])
def test_an_even_part_is_never_nothing_and_parts_are_the_whole(kind: Kind, units: int, holders: int) -> None:
    part = Terms(kind, units).divided(holders)
    assert part.capacity >= 1
    assert part.units * holders >= units
    assert part.units * holders <= max(units, holders) * (1 + 1e-9)
