"""The seven strategies: both ways of finding the best agree, and each does what its name says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.routing import scoring, strategies
from placement.routing.contest import PLAIN_LIMIT, contest_of
from placement.routing.policy import choose
from placement.routing.state import RoutingState
from placement.rules import Route, WorkerSelector
from placement.types import ANY_REGION, Granted, Outcome, Request, Strategy, Weights, Why, Worker
from placement.view import FleetView
from runtime.ids import Region, WorkerId
from tests.placement.fleets import DIGITS, HERE, THERE, V1, copy, worker
from tests.placement.worlds import NOW_S, World, worlds


def fleet(*workers: Worker) -> tuple[FleetView, RoutingState]:
    view = FleetView().with_changes(workers)
    return view, RoutingState(view)


def taken(view: FleetView, state: RoutingState, request: Request, route: Route, times: int) -> list[str]:
    """Who is granted, one request after another; none ends."""
    found: list[str] = []
    for _ in range(times):
        granted = choose(view, state, request, now_s=0.0, route=route)
        assert isinstance(granted, Granted), granted
        state.reserve(granted)
        found.append(granted.worker_id)
    return found


@settings(deadline=None, max_examples=300)
@given(worlds, st.sampled_from([HERE, ANY_REGION]), st.booleans(), st.integers(0, 40))
def test_plain_and_columns_agree_to_the_last_bit(world: World, region: Region, passes_over: bool, last: int) -> None:
    index = world.view.models.get(DIGITS)
    found = index.ready.get((V1, region)) if index is not None else None
    if found is None:
        return
    contest = contest_of(found, world.state, world.request, world.route, NOW_S)
    contest.passes_over = passes_over
    world.state.turns.last[found.key] = WorkerId(f"w{last:02d}")
    weights = world.route.weights
    assert scoring.weighted_plain(contest, weights) == scoring.weighted_columns(contest, weights)
    listed, flags = strategies.contenders_plain(contest), strategies.contenders_columns(contest)
    assert listed == flags.nonzero()[0].tolist()
    for strategy in strategies._PLAIN if listed else ():
        plain = strategies._PLAIN[strategy](contest, listed)
        columns = strategies._COLUMNS[strategy](contest, flags)
        assert replace(plain, credits=None) == replace(columns, credits=None), strategy
        if plain.credits is not None:
            assert plain.credits.owed.tolist() == columns.credits.owed.tolist()  # type: ignore[union-attr]


@settings(deadline=None, max_examples=150)
@given(worlds)
def test_the_order_in_which_workers_arrived_makes_no_difference(world: World) -> None:
    """Slots differ, decisions do not."""
    view = FleetView()
    for each in sorted(world.view.workers.values(), key=lambda each: each.worker_id, reverse=True):
        view = view.with_worker(each)
    state = RoutingState(view)
    state.proximity = world.state.proximity
    for who, seat in world.view.seats.items():
        for here, there in zip(state._columns(), world.state._columns(), strict=True):
            here.values[view.seats[who].slot] = there.values[seat.slot]
    state.health.breakers, state.health.draining = world.state.health.breakers, world.state.health.draining
    route, request = world.route, replace(world.request, sticky=False, prefix=())
    one = choose(world.view, world.state, request, now_s=NOW_S, route=route)
    other = choose(view, state, request, now_s=NOW_S, route=route)
    if isinstance(one, Granted) and isinstance(other, Granted):
        assert (one.worker_id, one.score, one.why) == (other.worker_id, other.score, other.why)
    else:
        assert one == other


def test_weighted_turns_are_nginxs() -> None:
    view, state = fleet(worker("a", copy(), capacity=50), worker("b", copy(), capacity=10), worker("c", copy(), capacity=10))
    found = taken(view, state, Request(DIGITS), Route(strategy=Strategy.WEIGHTED_ROUND_ROBIN), 14)
    assert "".join(found) == "aabacaa" * 2


@pytest.mark.parametrize("count", [4, PLAIN_LIMIT + 6])
def test_weighted_turns_come_as_often_as_capacity_says(count: int) -> None:
    view, state = fleet(*(worker(f"w{number:02d}", copy(), capacity=100 * (1 + number % 3)) for number in range(count)))
    rounds = sum(1 + number % 3 for number in range(count))
    spread = Counter(taken(view, state, Request(DIGITS), Route(strategy=Strategy.WEIGHTED_ROUND_ROBIN), 5 * rounds))
    assert spread == {f"w{number:02d}": 5 * (1 + number % 3) for number in range(count)}


def test_weighted_turns_go_on_when_the_fleet_changes() -> None:
    view, state = fleet(worker("a", copy(), capacity=30), worker("b", copy(), capacity=10))
    route = Route(strategy=Strategy.WEIGHTED_ROUND_ROBIN)
    first = taken(view, state, Request(DIGITS), route, 2)
    view = view.with_worker(worker("c", copy(), capacity=1))
    state.adopt(view)
    assert first == ["a", "a"]
    assert taken(view, state, Request(DIGITS), route, 1) == ["b"], "who was owed most before still is"


@pytest.mark.parametrize("count", [7, PLAIN_LIMIT + 7])
def test_two_choices_draws_everybody_and_takes_the_less_loaded(count: int) -> None:
    view, state = fleet(*(worker(f"w{number:02d}", copy(), capacity=100) for number in range(count)))
    drawn = Counter(strategies.drawn(count, other << 32 | draw) for draw in _spread(count) for other in _spread(count - 1))
    assert len(drawn) == count * (count - 1)
    assert all(one != other for one, other in drawn)
    state.in_flight.values[view.seats[WorkerId("w03")].slot] = 90
    route = Route(strategy=Strategy.TWO_CHOICES)
    for draw in _spread(count):
        granted = choose(view, state, Request(DIGITS, draw=draw), now_s=0.0, route=route)
        assert isinstance(granted, Granted)
        assert granted.worker_id != "w03"
        assert granted.why is Why.DRAW


def _spread(count: int) -> list[int]:
    """32 bits for each of so many."""
    return [(number * 2 + 1) * 2**32 // (2 * count) for number in range(count)]


def test_latency_weighs_how_many_wait_and_trusts_the_unknown() -> None:
    view, state = fleet(*(worker(name, copy(), capacity=50) for name in "abc"))
    for name, latency_ms in (("a", 10.0), ("b", 35.0)):
        state._learn(view.seats[WorkerId(name)].slot, latency_ms, 0.0)
    # a: 10, 20, 30, 40; b: 35, 70; c is unknown, and as good as the best.
    found = taken(view, state, Request(DIGITS), Route(strategy=Strategy.LATENCY), 7)
    assert found == ["a", "c", "a", "c", "a", "c", "b"]


def test_cost_takes_the_cheapest_with_room_and_of_equals_the_less_loaded() -> None:
    dear = replace(worker("a", copy()), cost=2.0)
    cheap = [replace(worker(name, copy(), capacity=2), cost=0.5) for name in "bc"]
    view, state = fleet(dear, *cheap)
    found = taken(view, state, Request(DIGITS), Route(strategy=Strategy.COST), 5)
    assert found == ["b", "c", "b", "c", "a"]


@pytest.mark.parametrize("strategy", Strategy)
def test_the_preferred_come_first_while_they_have_room(strategy: Strategy) -> None:
    spot = replace(worker("b", copy(), capacity=2), labels=frozenset({"spot"}))
    view, state = fleet(worker("a", copy(), capacity=2), spot)
    weights = Weights(occupancy=0.25, preferred=1.0)
    route = Route(strategy=strategy, weights=weights, prefer=(WorkerSelector(labels=frozenset({"spot"})),))
    assert taken(view, state, Request(DIGITS), route, 3) == ["b", "b", "a"]


@pytest.mark.parametrize(
    ("weights", "chosen"),
    [
        (Weights(gpu=1.0), "b"),
        (Weights(cost=1.0, proximity=0.25), "c"),
        (Weights(proximity=1.0), "a"),
        (Weights(proximity=0.0, slowness=0.0), "a"),
    ],
)
def test_weights_decide_what_counts(weights: Weights, chosen: str) -> None:
    big = replace(worker("b", copy(), region=THERE), gpu_memory_bytes=80 << 30, cost=3.0)
    cheap = replace(worker("c", copy(), region=THERE), gpu_memory_bytes=8 << 30, cost=0.1)
    view, state = fleet(worker("a", copy()), big, cheap)
    state.proximity = {HERE: 0.0, THERE: 0.9}
    granted = choose(view, state, Request(DIGITS), now_s=0.0, route=Route(weights=weights))
    assert isinstance(granted, Granted)
    assert granted.worker_id == chosen


def test_the_worker_that_saw_the_prompt_is_preferred_until_it_is_crowded() -> None:
    view, state = fleet(*(worker(name, copy(), capacity=10) for name in "ab"))
    prefix = (1, 2, 3, 4)
    first = choose(view, state, Request(DIGITS, prefix=prefix, exclude=frozenset({WorkerId("a")})), now_s=0.0)
    assert isinstance(first, Granted)
    state.reserve(first)
    state.release(first, Outcome.ANSWERED, now_s=0.0)
    found = taken(view, state, Request(DIGITS, prefix=(*prefix, 5, 6, 7, 8)), Route(), 5)
    assert found == ["b", "b", "b", "a", "b"], "half of it seen is worth a quarter of a worker"


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.PATH_FAILED, Outcome.UNKNOWN])
def test_only_who_answered_has_seen_the_prompt(outcome: Outcome) -> None:
    view, state = fleet(worker("a", copy()))
    granted = choose(view, state, Request(DIGITS, prefix=(1, 2)), now_s=0.0)
    assert isinstance(granted, Granted)
    state.reserve(granted)
    state.release(granted, outcome, now_s=0.0)
    assert not state.prefixes.matches((1, 2))


def test_a_worker_that_came_back_has_an_empty_cache() -> None:
    view, state = fleet(*(worker(name, copy()) for name in "ab"))
    state.prefixes.learn((1, 2), WorkerId("b"), view.seats[WorkerId("b")].tenure)
    asked = Request(DIGITS, prefix=(1, 2))
    assert choose(view, state, asked, now_s=0.0).worker_id == "b"  # type: ignore[union-attr]
    view = view.without_worker(WorkerId("b")).with_worker(worker("b", copy()))
    state.adopt(view)
    assert choose(view, state, asked, now_s=0.0).worker_id == "a"  # type: ignore[union-attr]
