"""Sessions with state at their worker: when it is left, and when it is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from placement.routing.policy import choose
from placement.routing.sessions import SessionHome, Sessions
from placement.routing.state import RoutingState
from placement.rules import Route, WorkerSelector
from placement.types import CopyState, Granted, Outcome, Refusal, Refused, Request, Strategy, Why, Worker
from placement.view import FleetView
from runtime.ids import ModelName, Region, WorkerId
from tests.placement.fleets import DIGITS, HERE, THERE, V1, V2, copy, worker

NAMES = [f"w{number:02d}" for number in range(6)]
STICKY = Request(DIGITS, region=HERE, session_key="acme/digits/7", sticky=True)


class World:
    """Six workers, and a caller's state."""

    def __init__(self, *workers: Worker) -> None:
        self.view = FleetView().with_changes(workers or [worker(name, copy(), capacity=2) for name in NAMES])
        self.state = RoutingState(self.view)

    def decide(self, request: Request = STICKY, *, now_s: float = 0.0, route: Route | None = None) -> Granted | Refused:
        return choose(self.view, self.state, request, now_s=now_s, route=route or Route())

    def grant(self, request: Request = STICKY, *, now_s: float = 0.0, route: Route | None = None) -> Granted:
        granted = self.decide(request, now_s=now_s, route=route)
        assert isinstance(granted, Granted), granted
        self.state.reserve(granted)
        return granted

    def change(self, *changed: Worker, gone: str = "") -> None:
        self.view = self.view.with_changes(changed, [WorkerId(gone)] if gone else ())
        self.state.adopt(self.view)


@pytest.mark.parametrize("strategy", Strategy)
def test_it_stays_whatever_the_strategy_and_waits_for_a_full_worker(strategy: Strategy) -> None:
    world, route = World(), Route(strategy=strategy)
    first = world.grant(route=route)
    assert (first.why, first.turn) == (Why.SESSION, None)
    assert world.grant(route=route).worker_id == first.worker_id
    refused = world.decide(route=route)
    assert isinstance(refused, Refused)
    assert refused.reason is Refusal.ALL_FULL
    assert first.worker_id in refused.detail
    world.state.release(first, Outcome.ANSWERED, now_s=0.0)
    assert world.grant(route=route).worker_id == first.worker_id


def test_a_new_session_does_not_begin_elsewhere_because_its_worker_is_full() -> None:
    """Another gateway would look for it where its name leads."""
    world = World()
    where = world.decide()
    assert isinstance(where, Granted)
    world.state.in_flight.values[where.slot] = 2
    assert isinstance(world.decide(), Refused)
    other = World()
    assert other.grant().worker_id == where.worker_id


@pytest.mark.parametrize("why", ["gone", "loading", "denied", "excluded"])
def test_it_is_left_when_its_state_is_lost_or_out_of_reach(why: str) -> None:
    world, request, route = World(), STICKY, Route()
    home = world.grant().worker_id
    if why == "gone":
        world.change(gone=home)
    elif why == "loading":
        world.change(worker(home, copy(CopyState.LOADING)))
    elif why == "denied":
        route = Route(deny=(WorkerSelector(worker_ids=frozenset({home})),))
    else:
        request = replace(STICKY, exclude=frozenset({home}))
    moved = world.grant(request, route=route)
    assert moved.worker_id != home
    assert moved.why is Why.SESSION
    assert world.grant(route=route).worker_id == moved.worker_id, "it has its state there from now on"


def test_a_worker_that_came_back_has_lost_it() -> None:
    world = World()
    begins = world.decide()
    assert isinstance(begins, Granted)
    other = next(name for name in NAMES if name != begins.worker_id)
    tenure = world.view.seats[WorkerId(other)].tenure
    world.state.sessions.settle(DIGITS, STICKY.session_key, SessionHome(WorkerId(other), tenure, V1))
    assert world.decide().worker_id == other  # type: ignore[union-attr]
    world.change(gone=other)
    world.change(worker(other, copy(), capacity=2))
    assert world.decide().worker_id == begins.worker_id  # type: ignore[union-attr]


@pytest.mark.parametrize("trouble", ["inhibited", "draining"])
def test_trouble_alone_does_not_part_it_from_its_state(trouble: str) -> None:
    world = World()
    first = world.grant()
    if trouble == "inhibited":
        world.state.inhibit(first.worker_id, 0.0)
    else:
        world.state.hear(world.view, first.worker_id, in_flight=1, queued_rows=0, now_s=0.0, draining=True)
    again = world.grant(now_s=1.0)
    assert (again.worker_id, again.why) == (first.worker_id, Why.LAST_RESORT)
    fresh = world.grant(replace(STICKY, session_key="a new one"), now_s=1.0)
    for number in range(40):
        fresh = world.decide(replace(STICKY, session_key=f"new {number}"), now_s=1.0)  # type: ignore[assignment]
        assert fresh.worker_id != first.worker_id, "no new session begins there"


def test_a_new_session_begins_even_where_everybody_is_in_trouble() -> None:
    world = World()
    for name in NAMES:
        world.state.inhibit(WorkerId(name), 0.0)
    assert world.grant(now_s=1.0).why is Why.LAST_RESORT


def test_a_trial_by_its_own_session_ends_the_inhibition() -> None:
    world = World()
    first = world.grant()
    world.state.inhibit(first.worker_id, 0.0)
    trial = world.grant(now_s=6.0)
    assert (trial.why, trial.trial) == (Why.PROBE, True)
    world.state.release(trial, Outcome.ANSWERED, now_s=6.0)
    assert not world.state.health.shuns


def test_it_stays_with_the_version_that_has_its_state() -> None:
    both = [worker(name, copy(), copy(version=V2), capacity=9) for name in NAMES]
    world = World(*(worker(name, copy(), capacity=9) for name in NAMES))
    first = world.grant()
    world.change(*both)
    again = world.grant()
    assert (again.worker_id, again.version) == (first.worker_id, V1)
    assert world.grant(replace(STICKY, session_key="new")).version == V2
    asked = world.grant(replace(STICKY, version=V2))
    assert asked.version == V2, "another version was asked for"


def test_it_ends_when_it_is_forgotten() -> None:
    world = World()
    world.state.sessions.settle(
        DIGITS, STICKY.session_key, SessionHome(WorkerId("w05"), world.view.seats[WorkerId("w05")].tenure, V1)
    )
    assert world.grant().worker_id == "w05"
    world.state.forget_session(DIGITS, STICKY.session_key)
    assert world.grant().worker_id == World().grant().worker_id


def test_sessions_without_a_key_are_none() -> None:
    world = World()
    taken = {world.grant(replace(STICKY, session_key="")).worker_id for _ in range(6)}
    assert len(taken) == 6


def test_it_goes_abroad_only_if_nobody_is_at_home_and_stays_there() -> None:
    here, there = worker("a", copy(), capacity=1), worker("b", copy(), region=THERE, capacity=3)
    world, abroad = World(here, there), Route(cross_region=True)
    assert world.grant(route=abroad).worker_id == "a"
    full = world.decide(replace(STICKY, session_key="other"), route=abroad)
    assert isinstance(full, Refused), "full is waited for"
    world.change(worker("a", copy(CopyState.LOADING), capacity=1))
    assert world.grant(route=abroad).worker_id == "b"
    world.change(here)
    assert world.grant(route=abroad).worker_id == "b", "its state is there"


def test_abroad_it_begins_in_the_nearest_region_that_has_a_place_for_it() -> None:
    regions = {"far": 0.9, "near": 0.2, "nearer": 0.1}
    world = World(*(worker(f"{region}-{number}", copy(), region=region) for region in regions for number in range(3)))
    world.state.proximity = {Region(region): far for region, far in regions.items()}
    for number in range(20):
        request = replace(STICKY, session_key=f"session {number}", region=Region("home"))
        denied = Route(cross_region=True, deny=(WorkerSelector(regions=frozenset({Region("nearer")})),))
        assert world.decide(request, route=Route(cross_region=True)).worker_id.startswith("nearer-")  # type: ignore[union-attr]
        assert world.decide(request, route=denied).worker_id.startswith("near-")  # type: ignore[union-attr]
        assert isinstance(world.decide(request), Refused)


def test_the_longest_unused_session_is_forgotten_first() -> None:
    sessions, model = Sessions(kept=2), ModelName("m")
    home = SessionHome(WorkerId("a"), 1, V1)
    for key in ("one", "two", "one", "three"):
        sessions.settle(model, key, home)
    assert len(sessions) == 2
    assert [sessions.home_of(model, key) for key in ("one", "two", "three")] == [home, None, home]
