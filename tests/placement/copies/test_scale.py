"""How many copies: none below what was wished for, up at once, down late, and no taking turns between near-equal numbers."""

from __future__ import annotations

import dataclasses
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.copies.demand import Demand, Rate, Trace
from placement.copies.scale import Scale, ScaleReason, ScaleRules, Standing, scaled, scales, standings
from placement.copies.wishes import AssignedModel, Placement
from placement.types import CopyState
from runtime.ids import Region, WorkerId
from tests.placement.fleets import DIGEST, DIGITS, HERE, V1, copy, worker

R = ScaleReason
NOW_S = 100_000.0
LONG_S = 10_000.0
RULES = ScaleRules()


def wish(copies: int = 0, most: int = 8, *, idle_s: int = 0, generation: int = 1) -> Placement:
    return Placement(DIGITS, V1, DIGEST, HERE, copies, generation, most, idle_s=idle_s)


def demand(
    concurrency: float = 0.0,
    *,
    refused: float = 0.0,
    used_ago_s: float | None = 0.0,
    peak: float | None = None,
    since_s: float | None = 0.0,
) -> Demand:
    key = wish().key
    highest = concurrency if peak is None else peak
    traces = {} if used_ago_s is None else {key: Trace(NOW_S - used_ago_s, ((int(NOW_S // 300), highest),))}
    return Demand({key: Rate(1.0, concurrency, refused)}, traces, since_s)


def there(assigned: int, ready: int | None = None, capacity: float = 10.0) -> Standing:
    return Standing(assigned, assigned if ready is None else ready, capacity)


def stood(copies: int, *, for_s: float = LONG_S, generation: int = 1) -> Scale:
    return Scale(copies, R.KEPT, generation, NOW_S - for_s)


def gave_up(copies: int, *, ago_s: float) -> Scale:
    return dataclasses.replace(stood(copies), shrunk_s=NOW_S - ago_s)


def decided(wished: Placement, now: Standing, asked: Demand, before: Scale | None = None) -> tuple[int, ScaleReason]:
    scale = scaled(wished, now, asked, before, now_s=NOW_S)
    return scale.copies, scale.reason


@pytest.mark.parametrize(
    ("wished", "now", "asked", "before", "expected"),
    [
        # What was wished for holds without demand, and whatever the demand.
        (wish(2, 0), there(5), demand(), None, (2, R.WISHED)),
        (wish(2, 2), there(0), demand(100.0), None, (2, R.WISHED)),
        (wish(2), there(0), demand(used_ago_s=None), None, (2, R.KEPT)),
        (wish(0, 8), there(0), demand(used_ago_s=None), None, (0, R.KEPT)),
        # Up.
        (wish(), there(0), demand(), None, (1, R.ASKED)),
        (wish(), there(0), demand(used_ago_s=599.0), None, (1, R.ASKED)),
        (wish(), there(0), demand(used_ago_s=600.0), None, (0, R.KEPT)),
        (wish(), there(1), demand(2.6), None, (2, R.BUSY)),
        (wish(), there(1), demand(refused=0.1), None, (2, R.BUSY)),
        (wish(), there(1), demand(30.0), None, (5, R.FULL)),
        (wish(), there(2), demand(14.1), None, (3, R.FULL)),
        (wish(most=3), there(2), demand(90.0), None, (3, R.FULL)),
        (wish(most=3), there(3), demand(90.0, refused=5.0), None, (3, R.KEPT)),
        (wish(), there(2), demand(refused=0.1), stood(2, for_s=31.0), (3, R.REFUSED)),
        # A refusal adds one copy, and the next only when that one is there and did not help.
        (wish(), there(3), demand(refused=0.1), stood(3, for_s=29.0), (3, R.KEPT)),
        (wish(), there(3, ready=2), demand(refused=0.1), stood(3, for_s=31.0), (3, R.KEPT)),
        # Down.
        (wish(), there(1), demand(used_ago_s=600.0), stood(1), (0, R.IDLE)),
        (wish(), there(1), demand(used_ago_s=None), stood(1), (0, R.IDLE)),
        (wish(), there(1), demand(used_ago_s=599.0), stood(1), (1, R.KEPT)),
        (wish(), there(5), demand(used_ago_s=600.0), stood(5), (4, R.IDLE)),
        (wish(), there(2), demand(used_ago_s=1_799.0, peak=5.0), stood(2), (2, R.KEPT)),
        (wish(), there(2), demand(used_ago_s=1_800.0), stood(2), (1, R.IDLE)),
        (wish(1), there(1), demand(used_ago_s=None), stood(1), (1, R.KEPT)),
        (wish(), there(5), demand(1.0, peak=16.7), stood(5), (4, R.EASED)),
        (wish(), there(5), demand(1.0, peak=16.9), stood(5), (5, R.KEPT)),
        (wish(), there(2), demand(1.0, peak=1.2), stood(2), (1, R.EASED)),
        (wish(), there(2), demand(1.0, peak=1.3), stood(2), (2, R.KEPT)),
        (wish(2), there(2), demand(1.0), stood(2), (2, R.KEPT)),
        # The wish's own patience.
        (wish(idle_s=60), there(2), demand(used_ago_s=60.0), stood(2), (1, R.IDLE)),
        (wish(idle_s=7_200), there(1), demand(used_ago_s=7_199.0), stood(1), (1, R.KEPT)),
        # Who was not heard cannot be called idle.
        (wish(), there(3), demand(used_ago_s=None, since_s=None), stood(3), (3, R.UNHEARD)),
        (wish(), there(0), demand(used_ago_s=None, since_s=None), None, (0, R.UNHEARD)),
        (wish(), there(0), demand(since_s=None), None, (1, R.ASKED)),
        (wish(), there(1), demand(used_ago_s=None, since_s=NOW_S - 599.0), stood(1), (1, R.KEPT)),
        # A new leader, a new wish, and copies that have just come begin the time anew.
        (wish(), there(3), demand(used_ago_s=None), None, (3, R.KEPT)),
        (wish(generation=2), there(3), demand(used_ago_s=None), stood(3), (3, R.KEPT)),
        (wish(), there(3), demand(1.0), stood(3, for_s=599.0), (3, R.KEPT)),
        # One at a time.
        (wish(), there(5), demand(used_ago_s=None), gave_up(5, ago_s=29.0), (5, R.KEPT)),
        (wish(), there(5), demand(used_ago_s=None), gave_up(5, ago_s=30.0), (4, R.IDLE)),
        # More than may be are no reason to have more.
        (wish(most=2), there(5), demand(2.0), stood(2), (2, R.KEPT)),
    ],
)
def test_how_many(
    wished: Placement, now: Standing, asked: Demand, before: Scale | None, expected: tuple[int, ScaleReason]
) -> None:
    assert decided(wished, now, asked, before) == expected


@given(
    st.integers(0, 4),
    st.integers(0, 9),
    st.integers(0, 12),
    st.floats(0, 500),
    st.floats(0, 5),
    st.one_of(st.none(), st.floats(0, 10_000)),
    st.one_of(st.none(), st.floats(0, NOW_S)),
)
def test_never_below_what_was_wished_for_nor_above_what_may_be(
    least: int, most: int, assigned: int, busy: float, refused: float, used: float | None, since: float | None
) -> None:
    wished = wish(least, most)
    copies, _ = decided(wished, there(assigned), demand(busy, refused=refused, used_ago_s=used, since_s=since), stood(assigned))
    assert least <= copies <= max(least, most)


def settled(busy: float, start: int, *, peak: float | None = None) -> list[int]:
    """The scales one after the other under the same demand, each carried out at once and given its time."""
    seen, before = [start], stood(start)
    while True:
        scale = scaled(wish(most=50), there(seen[-1]), demand(busy, peak=peak), before, now_s=NOW_S)
        if scale.copies == seen[-1]:
            return seen
        seen.append(scale.copies)
        before = dataclasses.replace(scale, grown_s=NOW_S - LONG_S, shrunk_s=0.0)
        assert len(seen) < 60


@given(st.floats(0, 200), st.integers(0, 50))
def test_constant_demand_goes_one_way_and_then_rests(busy: float, start: int) -> None:
    """Petals#389: a scale that was reached is not left again."""
    seen = settled(busy, start)
    ups = [after for before, after in pairwise(seen) if after > before]
    downs = [after for before, after in pairwise(seen) if after < before]
    assert not (ups and downs), "up or down, not both"
    assert len(ups) <= 2, "to the second copy, and to as many as are needed"


@settings(deadline=None)
@given(st.floats(0.5, 200), st.lists(st.floats(0.85, 1.15), min_size=1, max_size=40))
def test_jitter_within_the_band_changes_the_scale_once_at_most(busy: float, jitter: list[float]) -> None:
    """From the scale of the highest of them nothing changes, however often and in whatever order they come."""
    top = max(jitter) * busy
    rest = settled(top, 0)[-1]
    now, changes = rest, 0
    for part in jitter:
        scale = scaled(wish(most=200), there(now), demand(part * busy, peak=top), stood(now), now_s=NOW_S)
        changes += scale.copies != now
        now = scale.copies
    assert changes == 0
    cold, changes = 0, 0
    for part in jitter * 3:
        scale = scaled(wish(most=200), there(cold), demand(part * busy, peak=top), stood(cold), now_s=NOW_S)
        changes += scale.copies < cold
        cold = scale.copies
    assert changes == 0, "and on the way up nothing is taken back"


def test_what_there_is_counts_those_told_of_this_very_version_here_that_is_or_comes() -> None:
    told = (AssignedModel(DIGITS, V1, DIGEST, 1),)
    there_now = [
        worker("ready", copy(), capacity=10),
        worker("loading", copy(CopyState.LOADING), capacity=30),
        worker("failed", copy(CopyState.FAILED), capacity=20),
        worker("evicted", copy(CopyState.UNAVAILABLE, reason="unloaded to make room"), capacity=20),
        worker("begins", copy(CopyState.UNAVAILABLE), capacity=20),
        worker("untold", copy(), capacity=20),
        worker("elsewhere", copy(), region="there", capacity=999),
    ]
    current = {each.worker_id: told for each in there_now if each.worker_id != "untold"} | {WorkerId("gone"): told}
    [standing] = standings({wish().key: wish()}, there_now, current).values()
    assert standing == Standing(assigned=3, ready=1, capacity=20.0)


def test_capacity_is_that_of_the_kind_of_worker_that_is_asked_for() -> None:
    large = dataclasses.replace(worker("large", capacity=64), tiers=frozenset({"A"}))
    wished = dataclasses.replace(wish(), tier="A")
    [standing] = standings({wished.key: wished}, [large, worker("small", capacity=2)], {}).values()
    assert standing.capacity == 64.0


@given(st.randoms())
def test_the_order_of_wishes_and_workers_makes_no_difference(rng: random.Random) -> None:
    wishes = [dataclasses.replace(wish(most=number), region=Region(f"r{number}")) for number in range(1, 5)]
    fleet = [worker(f"w{number}", region=f"r{number % 5}", capacity=number) for number in range(12)]
    asked = Demand({each.key: Rate(1, 9.0) for each in wishes}, {each.key: Trace(NOW_S) for each in wishes}, 0.0)
    mixed = scales(rng.sample(wishes, 4), rng.sample(fleet, 12), {}, asked, {}, now_s=NOW_S)
    assert mixed == scales(wishes, fleet, {}, asked, {}, now_s=NOW_S)
    assert scales([dataclasses.replace(each, max_copies=0) for each in wishes], fleet, {}, asked, {}, now_s=NOW_S) == {}
