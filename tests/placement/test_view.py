"""The view after any history of changes is the view built at once from what is left."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from placement.types import ANY_REGION, Copy, CopyState, Worker
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


held = st.lists(
    st.builds(
        lambda version, digest, cacheable: replace(copy(version=version, digest=digest), cacheable=cacheable),
        st.sampled_from([V1, V2]),
        st.sampled_from(["d", "e", ""]),
        st.booleans(),
    ),
    max_size=2,
    unique_by=lambda drawn: drawn.version,
)
holders = st.lists(st.tuples(worker_ids, held), max_size=8)


@given(holders)
def test_repeatable_is_what_a_copy_says_is_and_what_is_one_thing(history: list[tuple[str, list[Copy]]]) -> None:
    """One by one or at once: it depends on nothing but the copies that are there."""
    view, present = FleetView(), dict[str, Worker]()
    for name, copies in history:
        present[name] = worker(name, *copies)
        view = view.with_worker(present[name])
    digests: dict[str, set[str]] = {}
    for each in (each for one in present.values() for each in one.copies):
        digests.setdefault(each.version, set()).add(each.digest)
    said = {(each.version, each.digest) for one in present.values() for each in one.copies if each.cacheable and each.digest}
    expected = {version: digest for version, digest in said if digests[version] == {digest}}
    assert dict(view.repeatable) == ({DIGITS: expected} if expected else {})
