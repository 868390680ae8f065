"""The view after any history of changes is the view built at once from what is left."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from placement.types import ANY_REGION, CopyState, Worker
from placement.view import FleetView
from tests.placement.fleets import DIGITS, HERE, THERE, V1, V2, V10, copy, fleets, worker, worker_ids, workers


def _facts(view: FleetView) -> object:
    """What a view says, without the slots that its history gave out."""
    return {
        model: (
            dict(index.holders),
            {key: (found.ids, found.capacities.tolist(), found.hashes.tolist()) for key, found in index.ready.items()},
            dict(index.newest_ready),
        )
        for model, index in view.models.items()
    }, dict(view.workers)


changes = st.lists(st.tuples(st.lists(workers, max_size=4), st.lists(worker_ids, max_size=3)), max_size=6)


@given(changes)
def test_history_makes_no_difference(history: list[tuple[list[Worker], list[str]]]) -> None:
    view, present = FleetView(), dict[str, Worker]()
    for changed, removed in history:
        view = view.with_changes(changed, removed)  # type: ignore[arg-type]
        present = {who: each for who, each in present.items() if who not in removed}
        present |= {each.worker_id: each for each in changed}
    assert _facts(view) == _facts(FleetView().with_changes(present.values()))


@given(changes)
def test_no_two_workers_share_a_slot(history: list[tuple[list[Worker], list[str]]]) -> None:
    view = FleetView()
    for changed, removed in history:
        view = view.with_changes(changed, removed)  # type: ignore[arg-type]
        taken = [seat.slot for seat in view.seats.values()]
        assert len(set(taken)) == len(taken)
        assert not set(taken) & set(view.free_slots)
        assert all(view.tenures[seat.slot] == seat.tenure for seat in view.seats.values())
        assert len(view.tenures) <= 8, "slots of the gone are used again"


@given(fleets, fleets)
def test_replacing_keeps_the_seats_of_who_stays(before: list[Worker], after: list[Worker]) -> None:
    first = FleetView().with_changes(before)
    second = first.replaced_by(after)
    assert dict(second.workers) == {each.worker_id: each for each in after}
    for stayed in first.seats.keys() & second.seats.keys():
        assert second.seats[stayed].tenure == first.seats[stayed].tenure


def test_a_heartbeat_that_says_nothing_new_changes_nothing() -> None:
    view = FleetView().with_worker(worker("a", copy(), sequence=1))
    assert view.with_worker(worker("a", copy(), sequence=2)) is view


def test_who_comes_back_has_another_tenure() -> None:
    view = FleetView().with_worker(worker("a", copy()))
    again = view.without_worker(view.workers["a"].worker_id).with_worker(worker("a", copy()))  # type: ignore[index]
    assert again.seats["a"].tenure != view.seats["a"].tenure  # type: ignore[index]


def test_newest_ready_counts_numbers_and_ready_copies_only() -> None:
    view = FleetView().with_changes(
        [
            worker("a", copy(version=V2), copy(version=V1)),
            worker("b", copy(CopyState.LOADING, version=V10)),
            worker("c", copy(version=V10), region=THERE),
        ]
    )
    assert view.models[DIGITS].newest_ready == {HERE: V2, THERE: V10, ANY_REGION: V10}
