"""Where holds wait: at workers that are of use, spread over them, for the tenants whose turns are next."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.rules import DEFAULT_ROUTE, WorkerSelector
from placement.types import CandidateKey, CopyState
from placement.view import FleetView
from placement.waiting.fair_turns import Ticket, Waiter
from runtime.ids import ModelVersion, TenantId, WorkerId
from scheduler.capacity.aim import Reach, aims_of, ready_workers
from tests.placement.fleets import DIGITS, HERE, THERE
from tests.scheduler.capacity.rig import ready

ANY = CandidateKey(DIGITS, ModelVersion(""), HERE)
EVERYWHERE = Reach(HERE, DEFAULT_ROUTE)


def waiters(tenants: str) -> list[Waiter]:
    return [Waiter(Ticket(number), ANY, TenantId(tenant), 0.0, 10.0) for number, tenant in enumerate(tenants)]


def aimed(
    tenants: str, view: FleetView, reaches: dict[int, Reach] | None = None, *, at_most: int = 100, per_worker: int = 4
) -> dict[str, str]:
    """Whose holds at which worker."""
    line = waiters(tenants)
    known = {waiter.ticket: (reaches or {}).get(waiter.ticket, EVERYWHERE) for waiter in line}
    abroad = any(reach.route.cross_region for reach in known.values())
    workers = ready_workers(view, ANY, abroad=abroad)
    aims = aims_of(line, workers, known, view, at_most=at_most, per_worker=per_worker)
    found: dict[str, str] = {}
    for aim, number in aims.items():
        found[aim.worker_id] = found.get(aim.worker_id, "") + aim.tenant * number
    return {who: "".join(sorted(held)) for who, held in found.items()}


TWO = FleetView().with_changes([ready("w1"), ready("w2")])


@pytest.mark.parametrize(
    ("tenants", "per_worker", "held"),
    [
        ("a", 4, "a"),
        ("aaaaaa", 4, "aaaa"),
        ("aaaaab", 4, "aaab"),
        ("abcde", 4, "abcd"),
        ("aabbcc", 2, "ab"),
        ("ab", 1, "a"),
    ],
)
def test_each_tenant_has_one_before_any_has_two_in_the_order_of_turns(tenants: str, per_worker: int, held: str) -> None:
    assert aimed(tenants, TWO, per_worker=per_worker) == {"w1": held, "w2": held}


def test_every_worker_has_one_before_any_has_two() -> None:
    view = FleetView().with_changes([ready(f"w{number}") for number in range(4)])
    assert sorted(map(len, aimed("aaaa", view, at_most=6).values())) == [1, 1, 2, 2]
    assert sum(map(len, aimed("a", view, at_most=3).values())) == 3


def test_the_largest_workers_are_asked_first() -> None:
    view = FleetView().with_changes([ready("small", capacity=1), ready("large", capacity=64)])
    assert list(aimed("a", view, at_most=1)) == ["large"]


def test_where_a_request_cannot_go_the_next_one_is_held_for() -> None:
    denied = Reach(HERE, replace(DEFAULT_ROUTE, deny=(WorkerSelector(worker_ids=frozenset({WorkerId("w1")})),)))
    failed = Reach(HERE, DEFAULT_ROUTE, frozenset({WorkerId("w2")}))
    assert aimed("abc", TWO, {0: denied, 1: failed}) == {"w1": "bc", "w2": "ac"}
    assert aimed("a", TWO, {0: denied}) == {"w2": "a"}


def test_abroad_is_for_whose_route_crosses_regions() -> None:
    view = FleetView().with_changes([ready("w1"), ready("far", region=THERE)])
    traveller = Reach(HERE, replace(DEFAULT_ROUTE, cross_region=True))
    assert aimed("ab", view, {1: traveller}) == {"w1": "ab", "far": "b"}
    assert ready_workers(view, ANY, abroad=False) == {"w1": "1"}


def test_no_version_means_the_newest_that_is_ready_in_the_region() -> None:
    view = FleetView().with_changes(
        [ready("old"), ready("new", version="10"), ready("next", version="11", state=CopyState.LOADING)]
    )
    assert ready_workers(view, ANY, abroad=False) == {"new": "10"}
    assert ready_workers(view, replace(ANY, version=ModelVersion("1")), abroad=False) == {"old": "1"}
    assert ready_workers(FleetView(), ANY, abroad=True) == {}


@given(tenants=st.text("abcdef", max_size=30), count=st.integers(0, 6), at_most=st.integers(0, 20), per=st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_bounds_hold_and_nobody_is_held_for_who_does_not_wait(tenants: str, count: int, at_most: int, per: int) -> None:
    view = FleetView().with_changes([ready(f"w{number}") for number in range(count)])
    line, there = waiters(tenants), Counter(tenants)
    workers = ready_workers(view, ANY, abroad=False)
    aims = aims_of(line, workers, {each.ticket: EVERYWHERE for each in line}, view, at_most=at_most, per_worker=per)
    assert aims.total() <= at_most
    at_worker: Counter[str] = Counter()
    for aim, number in aims.items():
        at_worker[aim.worker_id] += number
        assert number <= there[aim.tenant]
    assert all(number <= per for number in at_worker.values())
    if tenants and count and at_most >= count:
        assert len(at_worker) == count
