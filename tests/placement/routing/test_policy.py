"""Decisions: who is chosen, why, and what no decision may ever do."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.routing.contest import PLAIN_LIMIT
from placement.routing.policy import choose
from placement.routing.state import INHIBITED_S, RoutingState
from placement.rules import Route
from placement.types import CopyState, Granted, Outcome, Refusal, Refused, Request, Strategy, Why, Worker
from placement.view import FleetView
from runtime.ids import ModelName, ModelVersion, Region, WorkerId
from tests.placement.fleets import DIGITS, HERE, THERE, V1, V2, copy, fleets, worker, worker_ids, worker_named

requests = st.builds(
    Request,
    model=st.sampled_from([ModelName("digits"), ModelName("sums"), ModelName("absent")]),
    version=st.sampled_from([ModelVersion(""), ModelVersion("1"), ModelVersion("2"), ModelVersion("10")]),
    region=st.sampled_from([Region(""), HERE, THERE]),
    session_key=st.sampled_from(["", "ann", "bob"]),
    exclude=st.frozensets(worker_ids, max_size=3),
    prefix=st.sampled_from([(), (1, 2, 3), (1, 2, 9, 10)]),
    sticky=st.booleans(),
    draw=st.integers(0, 2**64 - 1),
)
strategies = st.sampled_from(Strategy)


def fleet(*workers: Worker) -> tuple[FleetView, RoutingState]:
    view = FleetView().with_changes(workers)
    return view, RoutingState(view)


def grant(view: FleetView, state: RoutingState, request: Request, **options: object) -> Granted:
    strategy = options.pop("strategy", Strategy.AFFINITY)
    options.setdefault("route", Route(strategy=strategy))  # type: ignore[arg-type]
    decision = choose(view, state, request, **{"now_s": 0.0, **options})  # type: ignore[arg-type]
    assert isinstance(decision, Granted), decision
    state.reserve(decision)
    return decision


steps = st.one_of(
    st.tuples(st.just("ask"), requests, strategies),
    st.tuples(st.just("end"), st.integers(0, 30), st.sampled_from(Outcome)),
    st.tuples(st.just("change"), fleets, st.none()),
    st.tuples(st.just("wait"), st.floats(0, 8), st.none()),
    st.tuples(st.just("sweep"), st.none(), st.none()),
)


@settings(deadline=None)
@given(fleets, st.lists(steps, max_size=40))
def test_whatever_happens(workers: list[Worker], history: list[tuple[str, object, object]]) -> None:
    """Capacity is never exceeded, the excluded are never chosen, the inhibited only when no other has room, and what was
    reserved is what is in flight, through all changes of the fleet."""
    view, state, now_s = *fleet(*workers), 0.0
    open_: list[Granted] = []
    for kind, subject, extra in history:
        if kind == "wait":
            now_s += subject  # type: ignore[operator]
        elif kind == "sweep":
            state.sweep(now_s)
        elif kind == "change":
            view = view.replaced_by(subject)  # type: ignore[arg-type]
            state.adopt(view)
        elif kind == "end" and open_:
            ended = open_.pop(subject % len(open_))  # type: ignore[operator]
            state.release(ended, extra, now_s=now_s, latency_ms=3.0)  # type: ignore[arg-type]
        elif kind == "ask":
            request: Request = subject  # type: ignore[assignment]
            decision = choose(view, state, request, now_s=now_s, route=Route(strategy=extra))  # type: ignore[arg-type]
            assert decision == choose(view, state, request, now_s=now_s, route=Route(strategy=extra))  # type: ignore[arg-type]
            if isinstance(decision, Granted):
                _check(view, state, request, decision, now_s)
                state.reserve(decision)
                open_.append(decision)
        here = Counter(each.worker_id for each in open_ if view.tenures[each.slot] == each.tenure)
        for worker_id, each in view.workers.items():
            assert state.load_of(view, worker_id).in_flight == here[worker_id]
            assert here[worker_id] <= max(each.max_in_flight, 3), "only a shrunk worker may hold more than it takes"


def _check(view: FleetView, state: RoutingState, request: Request, granted: Granted, now_s: float) -> None:
    chosen = view.workers[granted.worker_id]
    held = chosen.copy_of(request.model, granted.version)
    assert held is not None
    assert held.state is CopyState.READY
    assert granted.worker_id not in request.exclude
    assert request.version in ("", granted.version)
    assert request.region in ("", chosen.region)
    assert state.load_of(view, granted.worker_id).in_flight < chosen.max_in_flight
    shunned = state.health.shunned(now_s)
    if granted.worker_id in shunned and not granted.session_key:
        for other in view.workers.values():
            copy_there = other.copy_of(request.model, granted.version)
            could = (
                copy_there is not None
                and copy_there.state is CopyState.READY
                and request.region in ("", other.region)
                and other.worker_id not in request.exclude
                and state.load_of(view, other.worker_id).in_flight < other.max_in_flight
                and other.worker_id not in shunned
            )
            assert not could, f"{other.worker_id} could have taken it"


@pytest.mark.parametrize(
    ("request_", "reason", "said"),
    [
        (Request(ModelName("absent")), Refusal.UNKNOWN_MODEL, "'absent'"),
        (Request(DIGITS, ModelVersion("7")), Refusal.UNKNOWN_VERSION, "held are: 1, 2"),
        (Request(DIGITS, V2), Refusal.NOT_READY, "FAILED (no memory)"),
        (Request(DIGITS, V1, Region("mars")), Refusal.NO_REGION, "some do in: here"),
        (
            Request(DIGITS, V1, HERE, exclude=frozenset({WorkerId("a")})),
            Refusal.ALL_EXCLUDED,
            "failed on every one of 1 worker",
        ),
    ],
)
def test_refusals_say_why(request_: Request, reason: Refusal, said: str) -> None:
    view, state = fleet(worker("a", copy()), worker("b", copy(CopyState.FAILED, version=V2, reason="no memory")))
    refused = choose(view, state, request_, now_s=0.0)
    assert isinstance(refused, Refused)
    assert refused.reason is reason
    assert said in refused.detail


def test_full_is_refused_and_room_is_found_again() -> None:
    view, state = fleet(worker("a", copy(), capacity=1))
    granted = grant(view, state, Request(DIGITS))
    refused = choose(view, state, Request(DIGITS), now_s=0.0)
    assert isinstance(refused, Refused)
    assert refused.reason is Refusal.ALL_FULL
    state.release(granted, Outcome.ANSWERED, now_s=0.0)
    assert grant(view, state, Request(DIGITS)).worker_id == "a"


def test_a_worker_that_takes_nothing_gets_nothing() -> None:
    view, state = fleet(*(worker(f"w{number:02d}", copy(), capacity=0) for number in range(PLAIN_LIMIT + 2)))
    for strategy in Strategy:
        refused = choose(view, state, Request(DIGITS, session_key="ann"), now_s=0.0, route=Route(strategy=strategy))
        assert isinstance(refused, Refused)


@pytest.mark.parametrize("count", [5, PLAIN_LIMIT + 5])
def test_round_robin_takes_turns_and_skips_who_cannot(count: int) -> None:
    names = [f"w{number:02d}" for number in range(count)]
    view, state = fleet(*(worker(name, copy(), capacity=9) for name in names))
    request, turn = Request(DIGITS, exclude=frozenset({WorkerId("w01")})), Strategy.ROUND_ROBIN
    taken = [grant(view, state, request, strategy=turn).worker_id for _ in range(2 * (count - 1))]
    assert taken == [name for name in names if name != "w01"] * 2


def test_least_loaded_counts_what_others_do_and_forgets_it_in_time() -> None:
    view, state = fleet(worker("a", copy(), capacity=10), worker("b", copy(), capacity=10))
    state.hear(view, WorkerId("a"), in_flight=5, queued_rows=2, now_s=0.0)
    assert state.load_of(view, WorkerId("a")).foreign_in_flight == 5
    assert grant(view, state, Request(DIGITS), strategy=Strategy.LEAST_LOADED, now_s=1.0).worker_id == "b"
    assert grant(view, state, Request(DIGITS), strategy=Strategy.LEAST_LOADED, now_s=60.0).worker_id == "a"


def test_equals_are_decided_by_id() -> None:
    view, state = fleet(worker("b", copy()), worker("a", copy()))
    for strategy in Strategy:
        assert choose(view, state, Request(DIGITS), now_s=0.0, route=Route(strategy=strategy)).worker_id == "a"  # type: ignore[union-attr]


@pytest.mark.parametrize("count", [10, PLAIN_LIMIT * 4])
def test_a_session_stays_and_only_the_sessions_of_the_lost_move(count: int) -> None:
    view, state = fleet(*(worker(f"w{number:03d}", copy(), capacity=1_000_000) for number in range(count)))
    keys = [f"session {number}" for number in range(count * 20)]
    homes = {key: grant(view, state, Request(DIGITS, session_key=key)).worker_id for key in keys}
    assert {key: grant(view, state, Request(DIGITS, session_key=key)).worker_id for key in keys} == homes
    lost = WorkerId("w003")
    without = Request(DIGITS, exclude=frozenset({lost}))
    for key, home in homes.items():
        found = grant(view, state, Request(DIGITS, session_key=key, exclude=without.exclude))
        assert found.why is Why.SESSION
        assert (found.worker_id == home) is (home != lost)
    spread = Counter(homes.values())
    assert len(spread) == count
    assert max(spread.values()) < 3 * 20, "no worker is the home of three times its part"


def test_a_session_leaves_a_crowded_worker() -> None:
    view, state = fleet(worker("a", copy(), capacity=10), worker("b", copy(), capacity=10))
    homes = [grant(view, state, Request(DIGITS, session_key="ann")).worker_id for _ in range(7)]
    assert len(set(homes[:6])) == 1
    assert homes[6] != homes[0], "half a worker fuller is too much"


def test_the_slow_are_avoided_for_as_long_as_it_is_known() -> None:
    view, state = fleet(worker("a", copy()), worker("b", copy()))
    slow = grant(view, state, Request(DIGITS))
    state.release(slow, Outcome.ANSWERED, now_s=0.0, latency_ms=900.0)
    assert slow.worker_id == "a"
    assert choose(view, state, Request(DIGITS), now_s=1.0).worker_id == "b"  # type: ignore[union-attr]
    assert choose(view, state, Request(DIGITS), now_s=10.0).worker_id == "a"  # type: ignore[union-attr]


@pytest.mark.parametrize("strategy", Strategy)
def test_inhibition_then_one_probe_then_trust(strategy: Strategy) -> None:
    view, state = fleet(worker("a", copy()), worker("b", copy()))
    state.inhibit(WorkerId("a"), 0.0)
    alone = Request(DIGITS, exclude=frozenset({WorkerId("b")}))
    assert grant(view, state, Request(DIGITS), strategy=strategy, now_s=1.0).worker_id == "b"
    last = grant(view, state, alone, strategy=strategy, now_s=1.0)
    assert (last.worker_id, last.why) == ("a", Why.LAST_RESORT)
    state.release(last, Outcome.PATH_FAILED, now_s=1.0)

    probe = grant(view, state, alone, strategy=strategy, now_s=1.0 + INHIBITED_S)
    assert (probe.why, probe.trial) == (Why.PROBE, True)
    assert grant(view, state, Request(DIGITS), strategy=strategy, now_s=7.0).worker_id == "b", "one probe at a time"
    state.release(probe, Outcome.UNKNOWN, now_s=7.0)
    assert state.health.breakers, "an unanswered probe proves nothing"
    again = grant(view, state, alone, strategy=strategy, now_s=7.0)
    state.release(again, Outcome.ANSWERED, now_s=7.0)
    assert not state.health.breakers


def test_the_draining_are_avoided_until_they_say_otherwise() -> None:
    view, state = fleet(worker("a", copy()), worker("b", copy()))
    state.hear(view, WorkerId("a"), in_flight=0, queued_rows=0, now_s=0.0, draining=True)
    assert grant(view, state, Request(DIGITS)).worker_id == "b"
    state.hear(view, WorkerId("a"), in_flight=0, queued_rows=0, now_s=0.0)
    assert grant(view, state, Request(DIGITS)).worker_id == "a"


def test_a_view_that_was_not_adopted_is_a_bug() -> None:
    view, state = fleet(worker("a", copy()))
    with pytest.raises(ValueError, match="adopt"):
        choose(view.with_worker(worker(worker_named(1), copy())), state, Request(DIGITS), now_s=0.0)
    with pytest.raises(ValueError, match="replaced_by"):
        state.adopt(FleetView().with_worker(worker("b", copy())))
