"""Stop strings: nothing of one is ever shown, nothing else is ever lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engines.llm.stopping import StopText


@pytest.mark.parametrize(
    ("pieces", "stops", "shown"),
    [
        (["ab", "cd"], [], ["ab", "cd"]),
        (["ab", "cd", "ef"], ["bc"], ["", "a"]),
        (["ab", "xd"], ["bc"], ["", "abxd"]),
        (["a\n", "\nb"], ["\n\n"], ["", "a"]),
        (["hello"], ["ll", "h"], [""]),
    ],
)
def test_what_is_shown(pieces: list[str], stops: list[str], shown: list[str]) -> None:
    stop, seen = StopText(stops), []
    for piece in pieces:
        seen.append(stop.add(piece))
        if stop.met:
            break
    assert seen == shown


@given(st.lists(st.text("ab", max_size=3), max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3))
def test_the_text_up_to_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    stop, shown = StopText(stops), ""
    given_so_far = ""
    for piece in pieces:
        given_so_far += piece
        shown += stop.add(piece)
        if stop.met:
            break
    else:
        shown += stop.rest()
    ends = [given_so_far.find(text) for text in stops if text in given_so_far]
    assert shown == (given_so_far[: min(ends)] if ends else given_so_far)
    assert stop.met == bool(ends)
