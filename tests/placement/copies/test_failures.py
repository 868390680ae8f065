"""Failed loads: counted once each, limited by worker and by version, forgotten in time."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from placement.copies.assign import Shortage, assign
from placement.copies.failures import FailureLimits, Failures, bars, observed
from placement.copies.wishes import AssignedModel, Assignments, Placement
from placement.types import CopyState, Worker
from runtime.ids import WorkerId
from tests.placement.fleets import DIGEST, DIGITS, HERE, V1, copy, worker, worker_named

S = CopyState
FORGET_S = FailureLimits().forget_s


def wish(copies: int = 1, generation: int = 1) -> Placement:
    return Placement(DIGITS, V1, DIGEST, HERE, copies, generation)


def told(names: Iterable[str], generation: int = 1) -> Assignments:
    return {WorkerId(name): (AssignedModel(DIGITS, V1, DIGEST, generation),) for name in names}


def seen(
    states: Iterable[CopyState], *, every_s: float = 10.0, from_s: float = 0.0, before: Failures | None = None
) -> Failures:
    """One worker, told to hold it, that shows these states one after the other."""
    known = before or {}
    for number, state in enumerate(states):
        known = observed(known, [worker("a", copy(state))], told("a"), from_s + number * every_s)
    return known


def test_a_failure_that_stands_counts_once() -> None:
    [known] = seen([S.FAILED] * 5).values()
    assert known.at_s == (0.0,)


def test_each_new_try_that_fails_counts() -> None:
    [known] = seen([S.FAILED, S.LOADING, S.FAILED]).values()
    assert known.at_s == (0.0, 20.0)
    assert not bars(seen([S.FAILED, S.LOADING, S.FAILED]), [wish()]).relieved


def test_who_failed_three_times_is_relieved_until_one_is_forgotten() -> None:
    known = seen([S.FAILED, S.LOADING] * 3)
    assert bars(known, [wish()]).relieved == {("a", DIGEST)}
    later = observed(known, [worker("a")], {}, FORGET_S + 1.0)
    assert not bars(later, [wish()]).relieved


def test_what_loads_after_all_has_a_clean_slate() -> None:
    assert seen([S.FAILED, S.LOADING, S.READY]) == {}


def test_a_failure_that_is_forgotten_and_stands_has_the_worker_let_go_for_once() -> None:
    known = seen([S.FAILED, S.FAILED], every_s=FORGET_S - 1)
    assert not bars(known, [wish()]).relieved
    known = seen([S.FAILED], from_s=FORGET_S, before=known)
    assert bars(known, [wish()]).relieved == {("a", DIGEST)}
    assert observed(known, [worker("a")], {}, FORGET_S + 1) == {}, "it let go: nothing is held against it"


def test_with_a_newer_wish_what_was_before_does_not_count() -> None:
    known = seen([S.FAILED, S.LOADING] * 3)
    assert not bars(known, [wish(generation=2)]).relieved
    again = observed(known, [worker("a", copy(S.FAILED))], told("a", generation=2), 100.0)
    assert again[WorkerId("a"), DIGEST].at_s == (100.0,)


def test_what_nobody_told_it_to_hold_is_its_own_affair() -> None:
    assert observed({}, [worker("a", copy(S.FAILED))], {}, 0.0) == {}


def test_a_version_that_five_workers_failed_at_is_given_to_no_sixth() -> None:
    names = [worker_named(number) for number in range(8)]
    fleet: list[Worker] = [worker(name) for name in names]
    current: Assignments = {}
    known: Failures = {}
    tried: list[int] = []
    for second in range(20):
        known = observed(known, fleet, current, float(second))
        plan = assign([wish()], fleet, current, bars=bars(known, [wish()]))
        current = plan.assignments
        fleet = [worker(name, *([copy(S.FAILED)] if current[name] else [])) for name in names]
        tried.append(sum(bool(models) for models in current.values()))
    assert tried[-1] == max(tried) == 5
    assert [(each.placed, each.reason) for each in plan.shortfalls] == [(0, Shortage.FAILED)]
    mended = assign([wish(generation=2)], fleet, current, bars=bars(known, [wish(generation=2)]))
    assert not mended.shortfalls, "a new wish has them try again"


def test_failures_in_one_region_hold_up_no_other() -> None:
    there = Placement(DIGITS, V1, DIGEST, type(HERE)("there"), 1, 1)
    fleet = [worker(worker_named(number), copy(S.FAILED)) for number in range(6)]
    known = observed({}, fleet, told(worker_named(number) for number in range(6)), 0.0)
    assert bars(known, [wish(), there]).exhausted == {(HERE, DIGEST)}


@given(st.lists(st.sampled_from(S), max_size=30), st.floats(1.0, 400.0))
def test_no_more_is_counted_than_was_tried_and_nothing_for_ever(states: list[CopyState], every_s: float) -> None:
    known = seen(states, every_s=every_s)
    tries = sum(
        state is S.FAILED and (number == 0 or states[number - 1] is not S.FAILED) for number, state in enumerate(states)
    )
    assert sum(len(each.at_s) for each in known.values()) <= tries
    assert observed(known, [], {}, len(states) * every_s + FORGET_S) == {}
