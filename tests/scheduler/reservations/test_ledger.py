"""What reservations take in the routing state: as much as there are, whatever the order in which they end."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from placement.routing.state import RoutingState
from placement.types import Granted, Why, Worker
from placement.view import FleetView
from runtime.ids import ModelVersion, Region, WorkerId
from scheduler.reservations.ledger import Ledger

WORKER = Worker(WorkerId("a"), Region("here"), "a:1", max_in_flight=100)

steps = st.lists(
    st.one_of(
        st.tuples(st.just("keep"), st.integers(0, 2), st.floats(0, 50)),
        st.tuples(st.just("give back"), st.integers(0, 2), st.just(0.0)),
        st.tuples(st.just("wait"), st.just(0), st.floats(0, 50)),
    ),
    max_size=40,
)


@given(steps)
@example([("keep", 0, 5.0), ("give back", 0, 0.0), ("keep", 0, 20.0), ("wait", 0, 10.0)])
def test_what_is_counted_is_what_is_kept(taken: list[tuple[str, int, float]]) -> None:
    view = FleetView().with_worker(WORKER)
    state, seat = RoutingState(view), view.seats[WORKER.worker_id]
    ledger, kept, now_s = Ledger(state), dict[str, float](), 0.0
    for step, number, time_s in taken:
        name = f"r{number}"
        if step == "keep" and name not in kept:
            granted = Granted(WORKER.worker_id, ModelVersion("1"), Why.SCORE, 0.0, seat.slot, seat.tenure)
            ledger.keep(name, granted, now_s + time_s)
            kept[name] = now_s + time_s
        elif step == "give back":
            ledger.give_back(name, now_s)
            kept.pop(name, None)
        elif step == "wait":
            now_s += time_s
        ledger.expire(now_s)
        kept = {each: until_s for each, until_s in kept.items() if until_s > now_s}
        assert len(ledger) == len(kept)
        assert state.load_of(view, WORKER.worker_id).in_flight == len(kept)
