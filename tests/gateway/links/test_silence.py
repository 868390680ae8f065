"""How long a worker has said nothing, counted in looks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.links.silence import LOOK_S, Silence, Verdict
from gateway.links.types import LinkSettings

SETTINGS = LinkSettings(silent_after_s=2 * LOOK_S, lost_after_s=4 * LOOK_S)
HEARD, FELL, SILENT, LOST = Verdict.HEARD, Verdict.FELL_SILENT, Verdict.SILENT, Verdict.LOST


def looked(*looks: str) -> list[Verdict]:
    """Each look by letters: o = calls are open, h = a message came before it."""
    silence, found = Silence(SETTINGS), []
    for look in looks:
        silence.heard = silence.heard or "h" in look
        found.append(silence.look(is_open="o" in look))
    return found


@pytest.mark.parametrize(
    ("looks", "verdicts"),
    [
        pytest.param(
            ["o"] * 7, [HEARD, HEARD, FELL, SILENT, LOST, LOST, LOST], id="the first look after a call began counts none"
        ),
        pytest.param(["o", "o", "oh", "o", "o", "o"], [HEARD, HEARD, HEARD, HEARD, FELL, SILENT], id="a message begins anew"),
        pytest.param(["", "", "", "o", "o", "o"], [HEARD] * 5 + [FELL], id="who owes nothing is not silent"),
        pytest.param(["o", "o", "o", "", "o", "o", "o"], [HEARD, HEARD, FELL, HEARD, HEARD, HEARD, FELL], id="all calls ended"),
        pytest.param(["oh"] * 9, [HEARD] * 9, id="one that speaks is heard"),
    ],
)
def test_what_each_look_finds(looks: list[str], verdicts: list[Verdict]) -> None:
    assert looked(*looks) == verdicts


@given(st.lists(st.sampled_from(["", "o", "h", "oh"]), max_size=60))
def test_it_falls_silent_once_and_is_lost_only_after_that(looks: list[str]) -> None:
    before = HEARD
    for look, verdict in zip(looks, looked(*looks), strict=True):
        allowed = {HEARD: {HEARD, FELL}, FELL: {HEARD, SILENT}, SILENT: {HEARD, SILENT, LOST}, LOST: {HEARD, LOST}}[before]
        assert verdict in allowed
        assert verdict is HEARD or look == "o"
        before = verdict


def test_by_default_a_second_is_for_others_to_be_preferred_and_three_for_calls_to_go_there() -> None:
    silence = Silence(LinkSettings())
    found = [silence.look(is_open=True) for _ in range(14)]
    assert (found.index(FELL), found.index(LOST)) == (4, 12)
    assert silence.silent_s == 13 * LOOK_S
