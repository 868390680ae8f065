"""The table of a copy's life, and who hears of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from runtime.ids import Digest, ModelName, ModelVersion
from worker.life import lifecycle
from worker.life.lifecycle import MAX_REASON_CHARACTERS, TRANSITIONS, Copy, Holdings, IllegalTransition, LifeEvent
from worker.types import CopyState, Task


def a_copy(model: str = "digits", version: str = "1") -> Copy:
    return Copy(ModelName(model), ModelVersion(version), Digest("d" * 64), 1)


def test_the_docstring_shows_the_table() -> None:
    shown = {line.strip() for line in (lifecycle.__doc__ or "").splitlines() if "-->" in line}
    rows = {
        f"{before.value} -- {event.value} --> {after.value}"
        for before, moves in TRANSITIONS.items()
        for event, after in moves.items()
    }
    assert shown == rows


def test_every_state_has_a_way_to_ready_and_a_way_to_an_end() -> None:
    assert set(TRANSITIONS) == set(CopyState)
    for start in CopyState:
        reached = {start}
        for _ in CopyState:
            reached |= {after for state in reached for after in TRANSITIONS[state].values()}
        assert {CopyState.READY, CopyState.UNAVAILABLE} <= reached


@pytest.mark.parametrize(("state", "event"), list(itertools.product(CopyState, LifeEvent)), ids=lambda each: each.name)
def test_only_what_the_table_knows_happens(state: CopyState, event: LifeEvent) -> None:
    holdings = Holdings()
    copy = holdings.add(a_copy())
    copy.state = state
    if event in TRANSITIONS[state]:
        holdings.move(copy, event)
        assert copy.state is TRANSITIONS[state][event]
    else:
        with pytest.raises(IllegalTransition, match=event.value):
            holdings.move(copy, event)
        assert copy.state is state


def test_a_copy_that_is_unavailable_again_is_forgotten() -> None:
    holdings = Holdings()
    copy = holdings.add(a_copy())
    for event in (LifeEvent.LOAD_BEGUN, LifeEvent.LOADED, LifeEvent.RETIRED, LifeEvent.DRAINED):
        holdings.move(copy, event)
        assert holdings.get(copy.key) is copy
    holdings.move(copy, LifeEvent.FREED)
    assert len(holdings) == 0


def test_a_reason_stays_until_the_next_event_is_bounded_and_can_be_encoded() -> None:
    holdings = Holdings()
    copy = holdings.add(a_copy())
    holdings.move(copy, LifeEvent.LOAD_BEGUN)
    holdings.move(copy, LifeEvent.LOAD_FAILED, "no file \udcff" + "x" * 1000)
    assert copy.reason.startswith("no file ?x")
    assert len(copy.reason) == MAX_REASON_CHARACTERS
    copy.reason.encode()
    holdings.move(copy, LifeEvent.LOAD_BEGUN)
    assert copy.reason == ""


def test_everyone_who_watches_hears_of_every_change() -> None:
    holdings = Holdings()
    first, second = holdings.watch(), holdings.watch()
    copy = holdings.add(a_copy())
    changes: list[Callable[[], None]] = [
        lambda: holdings.move(copy, LifeEvent.LOAD_BEGUN),
        lambda: holdings.describe(copy, task=Task.CHAT, max_batch_size=4),
        lambda: holdings.explain(copy, "waiting"),
    ]
    for change in changes:
        change()
        assert first.is_set()
        assert second.is_set()
        first.clear()
        second.clear()
    assert (copy.task, copy.max_batch_size, copy.reason) == (Task.CHAT, 4, "waiting")


def test_copies_are_told_in_one_order() -> None:
    holdings = Holdings()
    for model, version in (("b", "1"), ("a", "2"), ("a", "1")):
        holdings.add(a_copy(model, version))
    assert [copy.key for copy in holdings] == [("a", "1"), ("a", "2"), ("b", "1")]
