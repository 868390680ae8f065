"""The book of a leader: who is heard, what a new one begins with, what is forgotten."""

from __future__ import annotations

from placement.limits.book import GRACE_S, SETTLING_S, Book, Spending
from placement.limits.pots import LATELY_S
from placement.limits.stocks import Budget
from placement.limits.types import DAY_S, AllowanceId, Ask, Grant, HolderId, Kind, Moment, Terms

A, B = HolderId("a"), HolderId("b")
RATE, PERMITS, DAY = (AllowanceId(each) for each in ("rate", "permits", "day"))
PER_S = Terms(Kind.REQUESTS, 10.0)
AT_ONCE = Terms(Kind.CONCURRENT, 4)
TODAY = 20_000


def moment(at_s: float) -> Moment:
    return Moment(at_s, TODAY * DAY_S + at_s)


def begun(at_s: float = 0.0, **more: object) -> Book:
    book = Book(at_s, **more)  # type: ignore[arg-type]
    for holder in (A, B):
        book.joined(holder, at_s)
    return book


def told(book: Book, holder: HolderId, at_s: float, *asks: Ask) -> list[Grant]:
    book.hear(holder, asks, moment(at_s))
    book.wrote(book.due(asks))
    return book.answer(holder, asks, moment(at_s))


def test_a_new_leader_hears_everybody_first() -> None:
    book = begun(100.0)
    assert book.settling_s(100.5) == SETTLING_S - 0.5
    assert book.settling_s(100.0 + SETTLING_S) == 0


def test_what_was_given_before_it_began_begins_empty_and_what_is_new_is_whole() -> None:
    book, settled_s = begun(100.0), 100.0 + SETTLING_S
    resumed, new = Ask(RATE, PER_S, 0, True, wanted=10), Ask(AllowanceId("new"), PER_S, wanted=10)
    assert [each.granted for each in told(book, A, settled_s, resumed, new)] == [0, 10]
    assert told(book, A, settled_s + 0.5, Ask(RATE, wanted=10))[0].granted == 5, "it refills from when anybody is answered"


def test_permits_are_what_those_who_come_back_say_that_they_hold() -> None:
    book = begun(100.0)
    book.hear(A, [Ask(PERMITS, AT_ONCE, 3, True)], moment(100.1))
    assert told(book, B, 103.0, Ask(PERMITS, AT_ONCE, 0, True, wanted=4))[0].granted == 1


def test_a_day_goes_on_where_it_was_written_down() -> None:
    book = begun(0.0, spent={DAY: Spending(DAY, TODAY, 90)})
    terms = Terms(Kind.REQUESTS_PER_DAY, 100)
    asks = [Ask(DAY, terms, wanted=30)]
    book.hear(A, asks, moment(3.0))
    assert book.due(asks) == [Spending(DAY, TODAY, 100)]
    assert book.answer(A, asks, moment(3.0))[0].granted == 0, "nothing that is not written down"
    book.wrote(book.due(asks))
    assert book.answer(A, asks, moment(3.0))[0].granted == 10


def test_yesterday_is_over() -> None:
    book = begun(0.0, spent={DAY: Spending(DAY, TODAY - 1, 100)})
    assert told(book, A, 3.0, Ask(DAY, Terms(Kind.REQUESTS_PER_DAY, 100), wanted=100))[0].granted == 100


def test_what_was_not_introduced_is_to_be() -> None:
    book = begun()
    assert told(book, A, 3.0, Ask(RATE, used=3, wanted=1)) == [Grant(RATE, 0, 0, 1.0, 0)]
    assert not book.pots


def test_permits_come_back_some_time_after_a_stream_ended() -> None:
    book = begun()
    told(book, A, 3.0, Ask(PERMITS, AT_ONCE, wanted=4))
    book.left(A, 4.0)
    book.tidy(moment(4.0 + GRACE_S))
    assert told(book, B, 4.0 + GRACE_S, Ask(PERMITS, AT_ONCE, wanted=4))[0].granted == 0
    book.tidy(moment(4.1 + GRACE_S))
    assert told(book, B, 4.1 + GRACE_S, Ask(PERMITS, wanted=4))[0].granted == 4
    assert A not in book.holders


def test_one_that_is_back_in_time_keeps_what_it_speaks_of() -> None:
    book = begun()
    told(book, A, 3.0, Ask(PERMITS, AT_ONCE, wanted=2), Ask(AllowanceId("other"), AT_ONCE, wanted=2))
    book.left(A, 4.0)
    book.joined(A, 5.0)
    told(book, A, 5.1, Ask(PERMITS, AT_ONCE, 2, True))
    book.tidy(moment(5.1 + GRACE_S))
    assert book.pots[PERMITS].held == 2
    assert AllowanceId("other") not in book.pots


def test_what_nobody_uses_is_forgotten_once_it_is_whole_again() -> None:
    book = begun()
    told(book, A, 3.0, Ask(RATE, PER_S, wanted=5))
    told(book, A, 3.1, Ask(RATE, used=5))
    book.tidy(moment(3.2 + LATELY_S / 2))
    assert RATE in book.pots
    book.tidy(moment(3.2 + LATELY_S))
    assert not book.pots


def test_there_is_a_bound_and_what_is_beyond_gets_nothing() -> None:
    book = begun(max_pots=2)
    for number in range(3):
        (grant,) = told(book, A, 3.0, Ask(AllowanceId(str(number)), PER_S, wanted=1))
        assert grant.granted == (number < 2)
    assert grant.retry_after_s > 0
    for number in range(2):
        told(book, A, 3.5, Ask(AllowanceId(str(number)), used=1))
    assert told(book, A, 10.0 + LATELY_S, Ask(AllowanceId("2"), PER_S, wanted=1))[0].granted == 1, "idle ones made room"


def test_a_budget_is_written_down_a_part_at_a_time() -> None:
    book, terms = begun(), Terms(Kind.TOKENS_PER_DAY, 10_000)
    told(book, A, 3.0, Ask(DAY, terms, wanted=50))
    stock = book.pots[DAY].stock
    assert isinstance(stock, Budget)
    assert (stock.spent, stock.written) == (50, 150)
    asks = [Ask(DAY, wanted=50)]
    book.hear(A, asks, moment(3.1))
    assert book.due(asks) == [], "what is ahead will do"
