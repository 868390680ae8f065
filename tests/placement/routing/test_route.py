"""What a route changes in a decision: who is let in, and whether regions are crossed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from placement.routing.contest import PLAIN_LIMIT
from placement.routing.policy import choose
from placement.routing.selection import KEPT, Selections
from placement.routing.state import RoutingState
from placement.rules import Route, WorkerSelector
from placement.types import ANY_REGION, CandidateKey, CopyState, Granted, Refusal, Refused, Request, Strategy, Weights, Why
from placement.view import FleetView
from runtime.ids import Region, WorkerId
from tests.placement.fleets import DIGITS, HERE, THERE, V1, copy, worker
from tests.placement.worlds import NOW_S, World, worlds

FAR = Region("far")
OLD = WorkerSelector(labels=frozenset({"old"}))


@settings(deadline=None, max_examples=300)
@given(worlds)
def test_whatever_the_route_is(world: World) -> None:
    """The denied are never chosen, those passed over only as a last resort, exclusion holds, room is there, and nobody is sent
    abroad without leave or need."""
    view, state, request, route = world.view, world.state, world.request, world.route
    decision = choose(view, state, request, now_s=NOW_S, route=route)
    assert decision == choose(view, state, request, now_s=NOW_S, route=route)
    if isinstance(decision, Refused):
        return
    chosen, seat = view.workers[decision.worker_id], view.seats[decision.worker_id]
    assert chosen.copies[0].state is CopyState.READY
    assert not any(selector.matches(chosen) for selector in route.deny)
    assert not route.allow or any(selector.matches(chosen) for selector in route.allow)
    assert decision.worker_id not in request.exclude
    assert state.in_flight.values[seat.slot] < seat.capacity
    shunned = state.health.shunned(NOW_S)
    if decision.worker_id in shunned and not decision.session_key:
        assert decision.why is Why.LAST_RESORT
        here = replace(request, region=chosen.region, exclude=request.exclude | shunned)
        assert isinstance(choose(view, state, here, now_s=NOW_S, route=route), Refused) or route.cross_region
    if request.region not in (ANY_REGION, chosen.region):
        assert route.cross_region
        assert request.sticky or isinstance(
            choose(view, state, request, now_s=NOW_S, route=replace(route, cross_region=False)), Refused
        )


@pytest.mark.parametrize("count", [3, PLAIN_LIMIT + 3])
@pytest.mark.parametrize("strategy", Strategy)
def test_rules_are_asked_before_anything_else(count: int, strategy: Strategy) -> None:
    workers = [worker(f"w{number:02d}", copy(), capacity=9) for number in range(count)]
    view = FleetView().with_changes([replace(workers[0], labels=frozenset({"old"})), *workers[1:]])
    state = RoutingState(view)
    only_old, no_old = Route(strategy=strategy, allow=(OLD,)), Route(strategy=strategy, deny=(OLD,))
    for session in ("", "ann", "bob", "eve"):
        request = Request(DIGITS, session_key=session)
        assert choose(view, state, request, now_s=0.0, route=only_old).worker_id == "w00"  # type: ignore[union-attr]
        assert choose(view, state, request, now_s=0.0, route=no_old).worker_id != "w00"  # type: ignore[union-attr]
    both = replace(only_old, deny=(OLD,), rules=("eu only", "no old"))
    refused = choose(view, state, Request(DIGITS), now_s=0.0, route=both)
    assert isinstance(refused, Refused)
    assert refused.reason is Refusal.DENIED
    assert "eu only, no old" in refused.detail
    tried = choose(view, state, Request(DIGITS, exclude=frozenset({WorkerId("w00")})), now_s=0.0, route=only_old)
    assert isinstance(tried, Refused)
    assert tried.reason is Refusal.ALL_EXCLUDED
    assert "the 1 worker that the routing policy lets this request to" in tried.detail


def test_a_label_that_changed_is_seen() -> None:
    view = FleetView().with_worker(worker("a", copy()))
    state, route = RoutingState(view), Route(deny=(OLD,))
    assert isinstance(choose(view, state, Request(DIGITS), now_s=0.0, route=route), Granted)
    view = view.with_worker(replace(view.workers[WorkerId("a")], labels=frozenset({"old"})))
    state.adopt(view)
    assert isinstance(choose(view, state, Request(DIGITS), now_s=0.0, route=route), Refused)


def _regions(*, home_capacity: int = 1) -> tuple[FleetView, RoutingState]:
    view = FleetView().with_changes(
        [
            worker("a", copy(), capacity=home_capacity),
            replace(worker("b", copy(), region=FAR), cost=1.0),
            replace(worker("c", copy(), region=THERE), cost=1.2),
        ]
    )
    state = RoutingState(view)
    state.proximity = {HERE: 0.0, THERE: 0.4, FAR: 0.8}
    return view, state


@pytest.mark.parametrize("strategy", Strategy)
def test_abroad_only_if_home_has_nobody_and_then_to_the_nearest(strategy: Strategy) -> None:
    view, state = _regions()
    request, route = Request(DIGITS, region=HERE), Route(strategy=strategy, cross_region=True)
    first = choose(view, state, request, now_s=0.0, route=route)
    assert isinstance(first, Granted)
    assert first.worker_id == "a"
    state.reserve(first)
    isolated = choose(view, state, request, now_s=0.0, route=replace(route, cross_region=False))
    assert isinstance(isolated, Refused)
    assert isolated.reason is Refusal.ALL_FULL
    abroad = choose(view, state, request, now_s=0.0, route=route)
    assert isinstance(abroad, Granted)
    assert abroad.why is Why.ABROAD
    if strategy not in (Strategy.COST, Strategy.LATENCY):
        assert abroad.worker_id == "c"
    assert abroad.turn is None, "nobody's turn moves by it"


def test_cost_may_outweigh_distance() -> None:
    view, state = _regions(home_capacity=0)
    request = Request(DIGITS, region=HERE)
    dear = view.with_worker(replace(view.workers[WorkerId("c")], cost=9.0))
    state.adopt(dear)
    near = choose(dear, state, request, now_s=0.0, route=Route(cross_region=True))
    assert near.worker_id == "b", "the weight of cost is not 0 among regions"  # type: ignore[union-attr]
    route = Route(cross_region=True, weights=Weights(proximity=5.0))
    assert choose(dear, state, request, now_s=0.0, route=route).worker_id == "c"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("home", "reason"),
    [
        (worker("a", copy(CopyState.LOADING)), Refusal.NOT_READY),
        (worker("a"), Refusal.NO_REGION),
        (worker("a", copy(), capacity=0), Refusal.ALL_FULL),
        (replace(worker("a", copy()), labels=frozenset({"old"})), Refusal.DENIED),
        (worker("tried", copy()), Refusal.ALL_EXCLUDED),
    ],
)
def test_every_want_at_home_leads_abroad_with_leave_alone(home: object, reason: Refusal) -> None:
    view = FleetView().with_changes([home, worker("b", copy(), region=THERE)])  # type: ignore[list-item]
    state, request = RoutingState(view), Request(DIGITS, region=HERE, exclude=frozenset({WorkerId("tried")}))
    isolated = choose(view, state, request, now_s=0.0, route=Route(deny=(OLD,)))
    assert isinstance(isolated, Refused)
    assert isolated.reason is reason
    abroad = choose(view, state, request, now_s=0.0, route=Route(deny=(OLD,), cross_region=True))
    assert abroad.worker_id == "b"  # type: ignore[union-attr]


def test_findings_are_kept_until_the_candidates_change_and_are_bounded() -> None:
    view = FleetView().with_changes([worker("a", copy()), worker("b", copy())])
    found = view.models[DIGITS].ready[V1, HERE]
    selections, route = Selections(), Route(deny=(OLD,))
    first = selections.of(found, route)
    assert selections.of(found, replace(route)) is first
    other = view.with_worker(worker("c", copy())).models[DIGITS].ready[V1, HERE]
    assert len(selections.of(other, route).allowed) == 3  # type: ignore[arg-type]
    for number in range(2 * KEPT):
        selections.of(found, Route(deny=(WorkerSelector(labels=frozenset({str(number)})),)))
    assert len(selections._found) <= KEPT
    assert len(selections._at_hand) <= KEPT
    assert isinstance(found.key, CandidateKey)
