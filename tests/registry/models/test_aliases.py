"""Aliases as a state machine: examples of each command, and what holds whatever is commanded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.models.aliases import (
    MAX_ALIASES,
    Change,
    No,
    Outcome,
    Refused,
    Scene,
    move,
    promote,
    remove,
    roll_back,
    settle,
    withdraw,
)
from registry.models.history import replay, targets
from registry.models.types import STABLE, AliasMove, AliasState, MoveKind


@dataclass
class Line:
    """A model's aliases and their whole history, changed by commands as the tables are."""

    aliases: dict[str, AliasState] = field(default_factory=dict)
    history: list[AliasMove] = field(default_factory=list)
    withdrawn: frozenset[int] = frozenset()
    now_ms: int = 0
    window: int = 1_000

    def scene(self) -> Scene:
        self.now_ms += 1
        names = {step.alias for step in self.history}
        ends = {name: [step for step in self.history if step.alias == name][-self.window :] for name in names}
        return Scene(self.now_ms, "user", dict(self.aliases), ends, self.withdrawn)

    def do(self, outcome: Outcome) -> Change:
        assert isinstance(outcome, Change), outcome
        self.apply(outcome)
        return outcome

    def apply(self, change: Change) -> None:
        for alias, state in change.states.items():
            if state is None:
                del self.aliases[alias]
            else:
                self.aliases[alias] = state
        self.history += change.moves

    def moved(self, alias: str, *numbers: int, weight: int = 0) -> None:
        for number in numbers:
            self.do(move(self.scene(), alias, number, weight, immediate=True))

    def at(self, alias: str) -> int:
        return self.aliases[alias].number

    def kinds(self) -> list[MoveKind]:
        return [step.kind for step in self.history]


def refused(outcome: Outcome, why: No) -> str:
    assert isinstance(outcome, Refused), outcome
    assert outcome.why is why
    return outcome.sentence


@pytest.fixture
def line() -> Line:
    return Line()


def test_a_move_waits_until_it_is_settled(line: Line) -> None:
    line.moved(STABLE, 1)
    line.do(move(line.scene(), STABLE, 2, 0))
    state = line.aliases[STABLE]
    assert (state.number, state.pending and state.pending.number) == (1, 2)
    assert line.kinds() == [MoveKind.MOVED], "nothing was moved yet"
    line.do(settle(line.scene(), STABLE, state.generation))
    assert line.at(STABLE) == 2
    assert line.aliases[STABLE].pending is None
    assert line.history[-1].by == "user"


def test_a_first_target_is_waited_for_too(line: Line) -> None:
    line.do(move(line.scene(), "canary", 3, 10))
    assert line.at("canary") == 0
    line.do(settle(line.scene(), "canary", line.aliases["canary"].generation))
    assert (line.at("canary"), line.aliases["canary"].weight) == (3, 10)


def test_a_weight_changes_at_once(line: Line) -> None:
    line.moved("canary", 3, weight=10)
    line.do(move(line.scene(), "canary", 3, 20))
    assert line.aliases["canary"].weight == 20
    assert targets(line.history) == [3]


def test_what_is_so_already_changes_nothing(line: Line) -> None:
    line.moved("canary", 3, weight=10)
    before = line.aliases["canary"]
    assert line.do(move(line.scene(), "canary", 3, 10)) == Change({}, ())
    line.do(move(line.scene(), "canary", 4, 10))
    underway = line.aliases["canary"]
    assert line.do(move(line.scene(), "canary", 4, 10)) == Change({}, ()), "asked twice is warmed once"
    assert underway.generation == before.generation + 1


def test_a_new_move_takes_the_place_of_one_that_waits(line: Line) -> None:
    line.moved(STABLE, 1)
    line.do(move(line.scene(), STABLE, 2, 0))
    first = line.aliases[STABLE].generation
    line.do(move(line.scene(), STABLE, 3, 0))
    assert line.kinds()[-1] is MoveKind.ABANDONED
    assert "version 3" in line.history[-1].reason
    assert "generation" in refused(settle(line.scene(), STABLE, first), No.CHANGED)
    line.do(settle(line.scene(), STABLE, line.aliases[STABLE].generation))
    assert line.at(STABLE) == 3


def test_a_waiting_move_is_done_at_once_when_asked_so(line: Line) -> None:
    line.moved(STABLE, 1)
    line.do(move(line.scene(), STABLE, 2, 0))
    line.do(move(line.scene(), STABLE, 2, 0, immediate=True))
    assert line.at(STABLE) == 2
    assert line.kinds() == [MoveKind.MOVED, MoveKind.MOVED]


def test_moving_to_where_it_points_gives_up_what_waits(line: Line) -> None:
    line.moved(STABLE, 1)
    line.do(move(line.scene(), STABLE, 2, 0))
    line.do(move(line.scene(), STABLE, 1, 0))
    assert line.aliases[STABLE].pending is None
    assert line.kinds()[-1] is MoveKind.ABANDONED


@pytest.mark.parametrize(
    ("expected", "fits"), [(None, True), (1, True), (0, False), (2, False)], ids=["whatever", "right", "none", "other"]
)
def test_the_expected_target_is_compared(line: Line, expected: int | None, fits: bool) -> None:
    line.moved(STABLE, 1)
    for outcome in (
        move(line.scene(), STABLE, 3, 0, expected=expected),
        remove(line.scene(), STABLE, expected=expected),
    ):
        if fits:
            assert isinstance(outcome, Change)
        else:
            assert "version 1 now" in refused(outcome, No.CHANGED)


def test_nothing_is_expected_where_nothing_is(line: Line) -> None:
    assert "no alias" in refused(move(line.scene(), STABLE, 3, 0, expected=1), No.CHANGED)
    line.do(move(line.scene(), STABLE, 3, 0, expected=0))
    assert "first version" in refused(move(line.scene(), STABLE, 3, 0, expected=0), No.CHANGED)


def test_a_promotion_moves_the_target_and_removes_the_source(line: Line) -> None:
    line.moved(STABLE, 1)
    line.moved("canary", 2, weight=10)
    line.do(promote(line.scene(), "canary", STABLE, expected=1))
    assert line.at("canary") == 2, "it goes on getting its requests meanwhile"
    line.do(settle(line.scene(), STABLE, line.aliases[STABLE].generation))
    assert line.at(STABLE) == 2
    assert line.aliases[STABLE].weight == 0
    assert "canary" not in line.aliases
    assert line.kinds()[-2:] == [MoveKind.PROMOTED, MoveKind.REMOVED]


def test_a_promotion_that_is_given_up_leaves_both(line: Line) -> None:
    line.moved(STABLE, 1)
    line.moved("canary", 2, weight=10)
    line.do(promote(line.scene(), "canary", STABLE))
    line.do(settle(line.scene(), STABLE, line.aliases[STABLE].generation, "no worker has room"))
    assert (line.at(STABLE), line.at("canary")) == (1, 2)
    assert line.history[-1].reason == "no worker has room"


def test_a_source_that_moved_on_meanwhile_stays(line: Line) -> None:
    line.moved(STABLE, 1)
    line.moved("canary", 2, weight=10)
    line.do(promote(line.scene(), "canary", STABLE))
    line.moved("canary", 3, weight=10)
    line.do(settle(line.scene(), STABLE, line.aliases[STABLE].generation))
    assert (line.at(STABLE), line.at("canary")) == (2, 3)


def test_a_source_that_is_on_its_way_elsewhere_stays(line: Line) -> None:
    line.moved(STABLE, 1)
    line.moved("canary", 2, weight=10)
    line.do(promote(line.scene(), "canary", STABLE))
    line.do(move(line.scene(), "canary", 3, 10))
    line.do(settle(line.scene(), STABLE, line.aliases[STABLE].generation))
    assert (line.at(STABLE), line.at("canary")) == (2, 2)
    line.do(settle(line.scene(), "canary", line.aliases["canary"].generation))
    assert line.at("canary") == 3


def test_promoting_what_the_other_has_already_removes_the_source(line: Line) -> None:
    line.moved(STABLE, 2)
    line.moved("canary", 2, weight=10)
    line.do(promote(line.scene(), "canary", STABLE))
    assert set(line.aliases) == {STABLE}


def test_what_is_on_its_way_is_not_promoted(line: Line) -> None:
    line.do(move(line.scene(), "canary", 2, 10))
    assert "version 2" in refused(promote(line.scene(), "canary", STABLE), No.IMPOSSIBLE)
    refused(promote(line.scene(), "nightly", STABLE), No.UNKNOWN)
    line.moved("nightly", 1)
    refused(promote(line.scene(), "nightly", "nightly"), No.IMPOSSIBLE)


def test_a_new_alias_by_promotion_has_no_weight(line: Line) -> None:
    line.moved("canary", 2, weight=90)
    line.do(promote(line.scene(), "canary", "blue", immediate=True))
    assert (line.at("blue"), line.aliases["blue"].weight) == (2, 0)


def test_roll_backs_go_back_one_by_one(line: Line) -> None:
    line.moved(STABLE, 1, 2, 3)
    for expected in (2, 1):
        line.do(roll_back(line.scene(), STABLE, immediate=True))
        assert line.at(STABLE) == expected
    assert "no target before version 1" in refused(roll_back(line.scene(), STABLE, immediate=True), No.IMPOSSIBLE)


def test_a_roll_back_is_no_target_to_return_to(line: Line) -> None:
    line.moved(STABLE, 1, 2, 3)
    line.do(roll_back(line.scene(), STABLE, immediate=True))
    line.moved(STABLE, 4)
    line.do(roll_back(line.scene(), STABLE, immediate=True))
    assert line.at(STABLE) == 2, "3 was rolled back from"


def test_a_version_may_be_returned_to_twice(line: Line) -> None:
    line.moved(STABLE, 1, 2, 1)
    for expected in (2, 1):
        line.do(roll_back(line.scene(), STABLE, immediate=True))
        assert line.at(STABLE) == expected


def test_a_roll_back_keeps_the_weight_and_skips_weights(line: Line) -> None:
    line.moved("canary", 1, weight=5)
    line.moved("canary", 2, weight=10)
    line.moved("canary", 2, weight=20)
    line.do(roll_back(line.scene(), "canary", immediate=True))
    assert (line.at("canary"), line.aliases["canary"].weight) == (1, 20)


def test_a_roll_back_waits_and_asking_twice_is_once(line: Line) -> None:
    line.moved(STABLE, 1, 2, 3)
    line.do(roll_back(line.scene(), STABLE))
    line.do(roll_back(line.scene(), STABLE))
    state = line.aliases[STABLE]
    assert state.pending is not None
    assert (state.number, state.pending.number) == (3, 2)
    line.do(roll_back(line.scene(), STABLE, immediate=True))
    assert line.at(STABLE) == 2
    assert line.kinds()[-1] is MoveKind.ROLLED_BACK


def test_a_roll_back_undoes_a_move_that_still_waits(line: Line) -> None:
    line.moved(STABLE, 1, 2)
    line.do(move(line.scene(), STABLE, 3, 0))
    line.do(roll_back(line.scene(), STABLE))
    assert (line.at(STABLE), line.aliases[STABLE].pending) == (2, None)


def test_a_withdrawn_target_is_not_rolled_back_to(line: Line) -> None:
    line.moved(STABLE, 1, 2)
    line.withdrawn = frozenset({1})
    assert "version 1" in refused(roll_back(line.scene(), STABLE), No.GONE)


def test_a_removed_alias_starts_anew_and_goes_on_counting(line: Line) -> None:
    line.moved("canary", 1, 2)
    line.do(remove(line.scene(), "canary"))
    line.moved("canary", 3)
    assert line.aliases["canary"].generation == 4
    refused(roll_back(line.scene(), "canary"), No.IMPOSSIBLE)


def test_an_alias_that_never_pointed_at_anything_is_removed(line: Line) -> None:
    line.do(move(line.scene(), "canary", 3, 10))
    refused(roll_back(line.scene(), "canary"), No.IMPOSSIBLE)
    line.do(remove(line.scene(), "canary"))
    assert not line.aliases
    assert line.kinds() == [MoveKind.ABANDONED]


def test_an_abandoned_first_move_leaves_no_alias(line: Line) -> None:
    line.do(move(line.scene(), "canary", 3, 10))
    line.do(settle(line.scene(), "canary", 1, "it failed on every worker"))
    assert not line.aliases


def test_a_withdrawn_version_is_left_at_once(line: Line) -> None:
    line.moved(STABLE, 1, 2, 3)
    line.moved("canary", 3, weight=10)
    line.moved("nightly", 2, weight=10)
    line.do(move(line.scene(), "nightly", 3, 10))
    line.withdrawn = frozenset({2})
    line.do(withdraw(line.scene(), 3, "it lies"))
    assert line.at(STABLE) == 1, "2 was withdrawn before"
    assert "canary" not in line.aliases, "it has no other target"
    assert (line.at("nightly"), line.aliases["nightly"].pending) == (2, None)
    assert {step.reason for step in line.history[-3:]} == {"version 3 was withdrawn: it lies"}


def test_an_alias_without_a_target_waits_for_the_move_that_is_under_way(line: Line) -> None:
    line.moved("canary", 1, weight=10)
    line.do(move(line.scene(), "canary", 2, 10))
    line.do(withdraw(line.scene(), 1, ""))
    state = line.aliases["canary"]
    assert (state.number, state.weight, state.pending and state.pending.number) == (0, 0, 2)
    line.do(settle(line.scene(), "canary", state.generation))
    assert (line.at("canary"), line.aliases["canary"].weight) == (2, 10)


def test_weights_share_a_hundred(line: Line) -> None:
    line.moved("canary", 1, weight=60)
    line.do(move(line.scene(), "nightly", 2, 30))
    assert "60" not in refused(move(line.scene(), "blue", 1, 11), No.IMPOSSIBLE).split("weight 11")[0]
    assert "90 of 100" in refused(move(line.scene(), "blue", 1, 11), No.IMPOSSIBLE), "what waits counts"
    line.do(move(line.scene(), "blue", 1, 10))
    line.do(move(line.scene(), STABLE, 1, 0))


def test_aliases_are_bounded(line: Line) -> None:
    for number in range(MAX_ALIASES):
        line.moved(f"a{number}", 1)
    assert str(MAX_ALIASES) in refused(move(line.scene(), "more", 1, 0), No.IMPOSSIBLE)
    refused(promote(line.scene(), "a1", "more"), No.IMPOSSIBLE)
    line.moved("a1", 2)


NAMES = st.sampled_from([STABLE, "canary", "blue"])
NUMBERS = st.integers(1, 5)
WEIGHTS = st.sampled_from([0, 10, 50, 100])
EXPECTED = st.none() | st.integers(0, 5)
Step = Callable[[Line], None]


def moving(alias: str, number: int, weight: int, expected: int | None, immediate: bool) -> Step:
    def step(line: Line) -> None:
        if number not in line.withdrawn:
            done = move(line.scene(), alias, number, 0 if alias == STABLE else weight, expected=expected, immediate=immediate)
            if isinstance(done, Change):
                line.apply(done)

    return step


def promoting(alias: str, to: str, expected: int | None, immediate: bool) -> Step:
    return lambda line: _maybe(line, promote(line.scene(), alias, to, expected=expected, immediate=immediate))


def rolling_back(alias: str, immediate: bool) -> Step:
    return lambda line: _maybe(line, roll_back(line.scene(), alias, immediate=immediate))


def removing(alias: str) -> Step:
    return lambda line: _maybe(line, remove(line.scene(), alias))


def settling(alias: str, because: str, late: bool) -> Step:
    def step(line: Line) -> None:
        state = line.aliases.get(alias)
        generation = (state.generation if state else 0) - late
        _maybe(line, settle(line.scene(), alias, generation, because))

    return step


def withdrawing(number: int) -> Step:
    def step(line: Line) -> None:
        line.apply(withdraw(line.scene(), number, ""))
        line.withdrawn |= {number}

    return step


def _maybe(line: Line, outcome: Outcome) -> None:
    if isinstance(outcome, Change):
        line.apply(outcome)


STEPS = st.lists(
    st.builds(moving, NAMES, NUMBERS, WEIGHTS, EXPECTED, st.booleans())
    | st.builds(promoting, NAMES, NAMES, EXPECTED, st.booleans())
    | st.builds(rolling_back, NAMES, st.booleans())
    | st.builds(removing, NAMES)
    | st.builds(settling, NAMES, st.sampled_from(["", "too slow"]), st.booleans())
    | st.builds(withdrawing, NUMBERS),
    max_size=40,
)


@given(STEPS, st.sampled_from([3, 1_000]))
def test_whatever_is_commanded(steps: list[Step], window: int) -> None:
    line = Line(window=window)
    for step in steps:
        before = dict(line.aliases)
        step(line)
        generations_only_grow(before, line)
        the_history_tells_all(line)
        no_two_lines_of_an_alias_are_of_one_generation(line)
        nothing_points_at_what_is_withdrawn(line)
        weights_fit(line)
        an_alias_may_return_from_where_it_is(line)


def generations_only_grow(before: dict[str, AliasState], line: Line) -> None:
    for alias, state in line.aliases.items():
        old = before.get(alias)
        if old is not None and old != state:
            assert state.generation > old.generation


def the_history_tells_all(line: Line) -> None:
    now = {alias: (state.number, state.weight) for alias, state in line.aliases.items() if state.number}
    assert replay(line.history) == now


def no_two_lines_of_an_alias_are_of_one_generation(line: Line) -> None:
    named = [(step.alias, step.generation) for step in line.history]
    assert len(named) == len(set(named))
    for alias, state in line.aliases.items():
        assert state.generation >= max((step.generation for step in line.history if step.alias == alias), default=0)


def nothing_points_at_what_is_withdrawn(line: Line) -> None:
    for state in line.aliases.values():
        assert state.number not in line.withdrawn
        assert state.pending is None or state.pending.number not in line.withdrawn
        assert state.number or state.pending


def weights_fit(line: Line) -> None:
    heaviest = [max(s.weight, s.pending.weight if s.pending else 0) for s in line.aliases.values()]
    assert sum(heaviest) <= 100
    assert all(s.weight == 0 for s in line.aliases.values() if s.alias == STABLE)


def an_alias_may_return_from_where_it_is(line: Line) -> None:
    for alias, state in line.aliases.items():
        ends = [step for step in line.history if step.alias == alias][-line.window :]
        back = targets(ends)
        assert not state.number or back[-1] == state.number
        assert all(one != other for one, other in pairwise(back))


@given(STEPS)
def test_the_same_commands_come_to_the_same_whatever_the_time(steps: list[Step]) -> None:
    early, late = Line(), Line(now_ms=10**12)
    for step in steps:
        step(early)
        step(late)
    assert [replace(step, at_ms=0) for step in early.history] == [replace(step, at_ms=0) for step in late.history]
