"""Explanations say what `choose` does, of every copy, and change nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from placement.routing.explain import Considered, Explanation, Filter, explain, shadow_choice
from placement.routing.parts import total
from placement.routing.policy import choose
from placement.routing.state import RoutingState
from placement.rules import Route, WorkerSelector
from placement.types import CopyState, Granted, Request, Strategy, Weights, Why
from placement.view import FleetView
from runtime.ids import ModelName, WorkerId
from tests.placement.fleets import DIGITS, HERE, THERE, V1, V2, copy, worker
from tests.placement.worlds import NOW_S, World, worlds

_MEASURED = frozenset({Strategy.AFFINITY, Strategy.LEAST_LOADED, Strategy.LATENCY, Strategy.COST})


@settings(deadline=None, max_examples=300)
@given(worlds)
def test_it_agrees_with_the_decision(world: World) -> None:
    """The same winner with the same score; nobody who was open had a better one; every copy is told of once."""
    view, state, request, route = world.view, world.state, world.request, world.route
    decision = choose(view, state, request, now_s=NOW_S, route=route)
    told = explain(view, state, request, now_s=NOW_S, route=route)
    assert told.decision == decision
    assert sorted(each.worker_id for each in told.considered) == sorted(view.models[DIGITS].holders if view.models else ())
    open_ = [each for each in told.considered if each.excluded_by is None]
    assert all(each.score == total(each.parts) for each in open_)
    assert all(each.verdict for each in told.considered)
    if not isinstance(decision, Granted):
        assert not open_ or request.sticky
        return
    winner = told.considered[0]
    assert (winner.worker_id, winner.score, winner.verdict) == (decision.worker_id, decision.score, decision.why.value)
    if told.strategy in _MEASURED and not (request.sticky and request.session_key):
        ranks = {each.worker_id: _rank(each, told.strategy) for each in open_}
        assert winner.worker_id == min(who for who, rank in ranks.items() if rank == max(ranks.values()))


def _rank(each: Considered, strategy: Strategy) -> tuple[float, float]:
    """By score; of the cheapest the least loaded."""
    loads = [part.value for part in each.parts if part.name == "occupancy" and strategy is Strategy.COST]
    return each.score, -sum(loads)


@settings(deadline=None, max_examples=150)
@given(worlds)
def test_a_shadow_is_what_its_strategy_would_do_and_moves_nothing(world: World) -> None:
    view, state, request, route = world.view, world.state, world.request, world.route
    before = (dict(state.turns.last), dict(state.turns.credits), len(state.prefixes), len(state.sessions))
    shadow = shadow_choice(view, state, request, now_s=NOW_S, route=route)
    if route.shadow is None:
        assert shadow is None
    else:
        real = choose(view, state, request, now_s=NOW_S, route=replace(route, strategy=route.shadow))
        assert shadow == real
    assert explain(view, state, request, now_s=NOW_S, route=route).shadow == shadow
    assert before == (dict(state.turns.last), dict(state.turns.credits), len(state.prefixes), len(state.sessions))


def _told(route: Route, request: Request | None = None) -> Explanation:
    """One worker for each thing that can keep a copy from a request."""
    old = frozenset({"old"})
    view = FleetView().with_changes(
        [
            worker("best", copy(), capacity=10),
            worker("behind", copy(), capacity=10),
            worker("equal", copy(), capacity=10),
            worker("version", copy(version=V2)),
            worker("region", copy(), region=THERE),
            worker("ready", copy(CopyState.FAILED, reason="no memory")),
            replace(worker("policy", copy()), labels=old),
            worker("excluded", copy()),
            worker("open", copy()),
            worker("draining", copy()),
            worker("full", copy(), capacity=1),
            worker("other", copy(model="sums")),
        ]
    )
    state = RoutingState(view)
    state.in_flight.values[view.seats[WorkerId("behind")].slot] = 5
    state.in_flight.values[view.seats[WorkerId("full")].slot] = 1
    state.inhibit(WorkerId("open"), 0.0)
    state.health.drain(WorkerId("draining"), draining=True)
    asked = request or Request(DIGITS, V1, HERE, exclude=frozenset({WorkerId("excluded")}))
    return explain(view, state, asked, now_s=1.0, route=replace(route, deny=(WorkerSelector(labels=old),), rules=("no old",)))


def test_every_filter_says_what_it_saw() -> None:
    told = _told(Route(shadow=Strategy.LEAST_LOADED))
    said = {each.worker_id: (each.excluded_by, each.verdict) for each in told.considered}
    assert said == {
        "best": (None, Why.SCORE.value),
        "equal": (None, "as good, but its id comes later"),
        "behind": (None, "0.5 behind, most of all by occupancy"),
        "version": (Filter.VERSION, "version 1 is asked for"),
        "region": (Filter.REGION, "the request stays in region 'here'"),
        "ready": (Filter.READY, "FAILED (no memory)"),
        "policy": (Filter.POLICY, "a rule lets this request not go there (no old)"),
        "excluded": (Filter.EXCLUDED, "this request has failed there"),
        "open": (Filter.PASSED_OVER, "its breaker is open for 4.0 s more"),
        "draining": (Filter.PASSED_OVER, "it is draining"),
        "full": (Filter.ROOM, "holds 1 of 1 requests"),
    }
    assert [each.worker_id for each in told.considered][:3] == ["best", "equal", "behind"]
    assert isinstance(told.shadow, Granted)


@pytest.mark.parametrize(
    ("strategy", "part"),
    [
        (Strategy.AFFINITY, "occupancy"),
        (Strategy.ROUND_ROBIN, "turns_until"),
        (Strategy.WEIGHTED_ROUND_ROBIN, "owed"),
        (Strategy.LEAST_LOADED, "occupancy"),
        (Strategy.TWO_CHOICES, "occupancy"),
        (Strategy.LATENCY, "wait_ms"),
        (Strategy.COST, "cost"),
    ],
)
def test_each_strategy_shows_what_it_measures(strategy: Strategy, part: str) -> None:
    told = _told(Route(strategy=strategy))
    assert told.strategy is strategy
    assert part in [each.name for each in told.considered[0].parts]


def test_of_the_cheapest_it_says_who_is_more_loaded_and_of_others_that_the_id_decided() -> None:
    view = FleetView().with_changes([worker("a", copy(), capacity=4), worker("b", copy(), capacity=4)])
    state = RoutingState(view)
    state.in_flight.values[view.seats[WorkerId("a")].slot] = 1
    for route, verdict in (
        (Route(strategy=Strategy.COST), "as cheap, but more loaded"),
        (Route(weights=Weights(occupancy=0.0)), "as good, but its id comes later"),
    ):
        told = explain(view, state, Request(DIGITS), now_s=0.0, route=route)
        assert told.considered[1].verdict == verdict


def test_a_model_that_nobody_holds_has_no_candidates() -> None:
    told = _told(Route(), Request(ModelName("absent")))
    assert told.considered == ()
    assert not isinstance(told.decision, Granted)
