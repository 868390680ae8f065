"""What one gateway holds, and what it asks for."""

from __future__ import annotations

import pytest

from gateway.limits.holding import Holding
from gateway.limits.types import Limit
from placement.limits.types import AllowanceId, Grant, Kind, Terms

REST_OF_DAY_S = 40_000.0
ID = AllowanceId("l")


@pytest.mark.parametrize(("left", "stays_away"), [(5, False), (0, True)])
def test_who_was_told_to_wait_for_tomorrow_hears_what_others_gave_back(left: int, *, stays_away: bool) -> None:
    holding = Holding(ID, Limit("l", requests_per_day=10), Terms(Kind.REQUESTS_PER_DAY, 10), introduced=True)
    holding.waiting = 1
    assert holding.ask(0.0) is not None
    holding.grant(Grant(ID, 0, 0, REST_OF_DAY_S, 2), 0.0)
    holding.waiting = 0
    assert holding.ask(10.0) is None, "nobody was refused meanwhile"
    holding.asked += 1
    doubt = holding.ask(20.0)
    assert doubt is not None
    assert doubt.wanted == 0, "it is for whoever comes next to want it"
    holding.grant(Grant(ID, 0, left, 0.0, 2), 20.0)
    assert (holding.retry_at_s > 20.0) is stays_away


def test_a_leader_that_forgot_it_says_nothing_of_what_is_left() -> None:
    holding = Holding(
        ID, Limit("l", requests_per_s=1000), Terms(Kind.REQUESTS, 1000, 1000), held=900, introduced=True, told=True
    )
    given_back = holding.ask(100.0)
    assert given_back is not None
    assert given_back.returned > 0
    holding.waiting = 1
    holding.grant(Grant(ID, 0, 0, 1.0, 0), 100.0)
    assert (holding.held, holding.retry_at_s, holding.introduced) == (900, 0.0, False)
    told = holding.ask(100.25)
    assert told is not None
    assert told.terms is not None
    holding.grant(Grant(ID, 0, 0, 1.0, 0), 100.25)
    assert holding.retry_at_s == 101.25, "a leader that has no room for it, though it was told, is asked again later"
