"""When an alias may move: never to less than what carries it now, always in the end, whatever the order of things."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.copies.assign import AssignedModel, Assignments, Placement, assign
from placement.copies.switch import Abandon, Move, Place, Step, Switch, Target, Wait, carrier_of, indexed, next_step
from placement.types import Copy, CopyState, Worker
from runtime.ids import Digest, ModelName, ModelVersion, Region, WorkerId
from tests.placement.fleets import DIGITS, HERE, THERE, V1, V2, V10, worker, worker_named

S = CopyState
OLD, NEW, OTHER = Target(V1, Digest("1" * 64)), Target(V2, Digest("2" * 64)), Target(V10, Digest("a" * 64))
LIMIT_S = 600.0


def move(*, points_at: Target | None = OLD, stable: Target | None = None, waited_s: float = 0.0, begun: bool = True) -> Move:
    return Move(DIGITS, "stable", 7, NEW, points_at, stable, waited_s, begun)


def wish(target: Target, copies: int, *, region: Region = HERE, generation: int = 1, model: str = DIGITS) -> Placement:
    return Placement(ModelName(model), target.version, target.digest, region, copies, generation)


def copy(target: Target, state: CopyState = S.READY, reason: str = "", *, model: str = DIGITS) -> Copy:
    return Copy(ModelName(model), target.version, target.digest, state, reason)


def fleet(*holdings: Iterable[Copy], region: Region = HERE) -> list[Worker]:
    return [worker(f"{region}-{number}", *held, region=region) for number, held in enumerate(holdings)]


def told(workers: Iterable[Worker], target: Target = NEW, generation: int = 1) -> dict[WorkerId, tuple[AssignedModel, ...]]:
    return {each.worker_id: (AssignedModel(DIGITS, target.version, target.digest, generation),) for each in workers}


def step(moved: Move, wishes: list[Placement], workers: list[Worker], assignments: Assignments | None = None) -> Step:
    return next_step(moved, wishes, workers, assignments or {}, limit_s=LIMIT_S)


def test_what_is_not_wished_for_yet_is_wished_for_in_every_region_at_the_old_scale() -> None:
    wishes = [wish(OLD, 3), wish(OLD, 1, region=THERE), wish(OLD, 0, region=Region("gone")), wish(NEW, 1)]
    placed = step(move(), wishes, fleet([copy(OLD)]))
    assert placed == Place((wish(NEW, 3, generation=0), wish(NEW, 1, region=THERE, generation=0)))


def test_a_wish_for_more_is_left_as_it_is() -> None:
    assert isinstance(step(move(), [wish(OLD, 1), wish(NEW, 5)], fleet([copy(OLD)])), Wait)


def test_it_waits_for_as_many_as_answer_now_and_no_more_than_are_wished_for() -> None:
    wishes, old = [wish(OLD, 2), wish(NEW, 2)], [copy(OLD)]
    assert isinstance(step(move(), wishes, fleet([copy(OLD), copy(NEW)], old)), Wait)
    assert step(move(), wishes, fleet([copy(OLD), copy(NEW)], [copy(OLD), copy(NEW)])) == Switch()
    assert step(move(), wishes, fleet([copy(OLD), copy(NEW)], [copy(NEW)], old)) == Switch(), "three are on their way to two"
    assert step(move(), wishes, fleet([copy(OLD), copy(NEW)], [copy(OLD, S.FAILED)])) == Switch(), "the old one has one"
    assert isinstance(step(move(), wishes, fleet([copy(OLD), copy(NEW, S.LOADING)])), Wait)


def test_a_fleet_that_is_away_for_a_moment_moves_nothing() -> None:
    wishes = [wish(OLD, 2), wish(NEW, 2)]
    assert isinstance(step(move(), wishes, []), Wait)
    assert isinstance(step(move(), wishes, fleet([copy(OLD, S.UNAVAILABLE)])), Wait)


def test_every_region_counts() -> None:
    wishes = [wish(each, 1, region=region) for each in (OLD, NEW) for region in (HERE, THERE)]
    here, there = fleet([copy(OLD), copy(NEW)]), fleet([copy(OLD)], region=THERE)
    waiting = step(move(), wishes, here + there)
    assert isinstance(waiting, Wait)
    assert "'there' has 0 of 1" in waiting.why
    assert step(move(), wishes, here + fleet([copy(OLD), copy(NEW)], region=THERE)) == Switch()


@pytest.mark.parametrize(
    ("points_at", "stable", "wishes", "carrier"),
    [
        (OLD, OTHER, [wish(OTHER, 1)], OLD),
        (None, OTHER, [wish(OLD, 1)], OTHER),
        (None, None, [wish(OLD, 1), wish(OTHER, 1), wish(NEW, 0)], OTHER),
        (None, None, [wish(OTHER, 0), wish(OLD, 1)], OLD),
        (None, None, [wish(OTHER, 1, model="sums")], None),
    ],
)
def test_whose_scale_counts(
    points_at: Target | None, stable: Target | None, wishes: list[Placement], carrier: Target | None
) -> None:
    assert carrier_of(move(points_at=points_at, stable=stable), wishes) == carrier


def test_where_nothing_carries_there_is_nothing_to_warm() -> None:
    assert step(move(points_at=None), [], []) == Switch()
    assert step(move(), [wish(OLD, 0)], fleet([copy(OLD)])) == Switch()


def test_the_first_alias_of_a_model_waits_until_its_target_answers() -> None:
    first = move(points_at=None)
    assert isinstance(step(first, [wish(NEW, 2)], fleet([copy(NEW, S.LOADING)])), Wait)
    assert step(first, [wish(NEW, 2)], fleet([copy(NEW)])) == Switch()


def test_it_is_given_up_with_the_workers_words_once_too_few_are_left_that_could_load_it() -> None:
    wishes = [wish(OLD, 2), wish(NEW, 2, generation=3)]
    failing = fleet([copy(OLD), copy(NEW)], [copy(OLD), copy(NEW, S.FAILED, "out of memory")])
    known = told(failing, generation=3)
    given_up = step(move(), wishes, failing, known)
    assert isinstance(given_up, Abandon)
    assert "did not load" in given_up.reason
    assert "worker here-1: out of memory" in given_up.reason
    third = worker("z", region=HERE)
    assert isinstance(step(move(), wishes, [*failing, third], known), Wait), "another one may stand in"


def test_what_a_worker_failed_at_before_it_was_asked_does_not_count() -> None:
    wishes = [wish(OLD, 1), wish(NEW, 1, generation=3)]
    failing = fleet([copy(OLD), copy(NEW, S.FAILED, "an older try")])
    assert isinstance(step(move(), wishes, failing, told(failing, generation=2)), Wait)
    assert isinstance(step(move(), wishes, failing, {}), Wait)


def test_what_failed_before_the_move_is_tried_anew_once() -> None:
    wishes = [wish(OLD, 1), wish(NEW, 2, generation=3)]
    failing = fleet([copy(OLD), copy(NEW, S.FAILED, "a bad day")])
    assert step(move(begun=False), wishes, failing, told(failing, generation=3)) == Place((wish(NEW, 2, generation=0),))
    assert isinstance(step(move(begun=True), wishes, failing, told(failing, generation=3)), Abandon)


def test_a_target_that_is_warm_already_is_not_wished_for_again() -> None:
    wishes = [wish(OLD, 1), wish(NEW, 1)]
    assert step(move(begun=False), wishes, fleet([copy(OLD), copy(NEW)], [copy(NEW, S.FAILED)])) == Switch()


def test_it_is_given_up_when_it_takes_too_long_unless_it_is_warm() -> None:
    wishes = [wish(OLD, 1), wish(NEW, 1)]
    late = move(waited_s=LIMIT_S)
    given_up = step(late, wishes, fleet([copy(OLD), copy(NEW, S.LOADING)]))
    assert isinstance(given_up, Abandon)
    assert "after 600 s: region 'here' has 0 of 1 copies ready" in given_up.reason
    assert step(late, wishes, fleet([copy(OLD), copy(NEW)])) == Switch()


def test_reasons_are_one_bounded_line() -> None:
    failing = fleet(*([copy(OLD), copy(NEW, S.FAILED, "x\n\x00" * 100)] for _ in range(50)))
    given_up = step(move(), [wish(OLD, 50), wish(NEW, 50)], failing, told(failing))
    assert isinstance(given_up, Abandon)
    assert len(given_up.reason) <= 400
    assert given_up.reason.isprintable()


def test_a_copy_of_another_digest_under_the_same_number_is_not_it() -> None:
    stranger = dataclasses.replace(copy(NEW), digest=Digest("f" * 64))
    assert isinstance(step(move(), [wish(OLD, 1), wish(NEW, 1)], fleet([copy(OLD), stranger])), Wait)


targets = st.sampled_from([OLD, NEW, OTHER])
copies = st.builds(copy, targets, st.sampled_from(CopyState), st.sampled_from(["", "why"]))
workers = st.builds(
    lambda number, held, region: worker(worker_named(number), *{each.version: each for each in held}.values(), region=region),
    st.integers(0, 7),
    st.lists(copies, max_size=3),
    st.sampled_from([HERE, THERE]),
)
fleets = st.lists(workers, max_size=6, unique_by=lambda drawn: drawn.worker_id)
wishes = st.lists(
    st.builds(
        lambda target, number, region, generation: wish(target, number, region=region, generation=generation),
        targets,
        st.integers(0, 4),
        st.sampled_from([HERE, THERE]),
        st.integers(1, 3),
    ),
    max_size=6,
    unique_by=lambda drawn: (drawn.version, drawn.region),
)
moves = st.builds(
    lambda points_at, stable, waited_s, begun: move(points_at=points_at, stable=stable, waited_s=waited_s, begun=begun),
    st.sampled_from([None, OLD, OTHER]),
    st.sampled_from([None, OLD, OTHER]),
    st.sampled_from([0.0, 599.0, 600.0]),
    st.booleans(),
)
assigned = st.dictionaries(
    st.integers(0, 7).map(worker_named),
    st.lists(
        st.builds(
            lambda target, generation: AssignedModel(DIGITS, target.version, target.digest, generation),
            targets,
            st.integers(1, 3),
        ),
        max_size=3,
        unique_by=lambda drawn: drawn.version,
    ),
)


def ready(fleet_now: Iterable[Worker], target: Target, region: Region) -> int:
    held = [each.copy_of(DIGITS, target.version) for each in fleet_now if each.region == region]
    return sum(each is not None and each.digest == target.digest and each.state is S.READY for each in held)


@settings(deadline=None)
@given(moves, wishes, fleets, assigned, st.randoms())
def test_order_makes_no_difference(
    drawn: Move, wished: list[Placement], there: list[Worker], known: dict[WorkerId, list[AssignedModel]], rng: random.Random
) -> None:
    mixed = dict(rng.sample(list(known.items()), len(known)))
    assert step(drawn, rng.sample(wished, len(wished)), rng.sample(there, len(there)), mixed) == step(
        drawn, wished, there, known
    )


@settings(deadline=None)
@given(moves, wishes, fleets, assigned)
def test_it_never_switches_below_what_the_old_one_carries(
    drawn: Move, wished: list[Placement], there: list[Worker], known: dict[WorkerId, list[AssignedModel]]
) -> None:
    if step(drawn, wished, there, known) != Switch():
        return
    carrier = carrier_of(drawn, wished)
    for each in wished:
        if carrier is not None and (each.version, each.digest) == (carrier.version, carrier.digest) and each.copies:
            needed = max(1, min(each.copies, ready(there, carrier, each.region)))
            assert ready(there, drawn.target, each.region) >= needed
            assert any(
                (other.version, other.region) == (drawn.target.version, each.region) and other.copies >= each.copies
                for other in wished
            ), "and it stays so: as many are wished for"


@settings(deadline=None)
@given(moves, wishes, fleets, assigned)
def test_wishes_never_shrink_and_one_is_enough(
    drawn: Move, wished: list[Placement], there: list[Worker], known: dict[WorkerId, list[AssignedModel]]
) -> None:
    placed = step(drawn, wished, there, known)
    if not isinstance(placed, Place):
        return
    before = {(each.version, each.region): each for each in wished}
    for each in placed.wishes:
        assert (each.version, each.digest) == (NEW.version, NEW.digest)
        assert (each.version, each.region) not in before or each.copies >= before[each.version, each.region].copies
    written = _written(wished, placed)
    assert not isinstance(step(dataclasses.replace(drawn, begun=True), written, there, known), Place)


@settings(deadline=None, max_examples=200)
@given(moves, wishes, fleets, st.sets(st.integers(0, 7).map(worker_named)))
def test_it_settles(drawn: Move, wished: list[Placement], there: list[Worker], broken: set[WorkerId]) -> None:
    """Workers load what they are told, the broken ones fail: soon it is switched or given up, or waits for its end."""
    current: Assignments = {}
    now: Step = Wait("")
    for _ in range(12):
        now = step(dataclasses.replace(drawn, waited_s=0.0), wished, there, current)
        if isinstance(now, Place):
            wished, drawn = _written(wished, now), dataclasses.replace(drawn, begun=True)
        if isinstance(now, Switch | Abandon):
            return
        current = assign(wished, there, current).assignments
        there = [_obeying(each, current[each.worker_id], broken) for each in there]
    assert isinstance(now, Wait)
    assert isinstance(step(dataclasses.replace(drawn, waited_s=LIMIT_S), wished, there, current), Abandon)
    fine = [each for each in there if each.worker_id not in broken]
    assert {each.region for each in fine} != {HERE, THERE}, "it waits only where nobody is who could load it"


def _written(wished: list[Placement], placed: Place) -> list[Placement]:
    known = {(each.version, each.region): each for each in wished}
    for each in placed.wishes:
        before = known.get((each.version, each.region))
        generation = before.generation + 1 if before is not None else 1
        known[each.version, each.region] = dataclasses.replace(each, generation=generation)
    return list(known.values())


def _obeying(each: Worker, told_to: Iterable[AssignedModel], broken: set[WorkerId]) -> Worker:
    state = S.FAILED if each.worker_id in broken else S.READY
    held = tuple(Copy(told.model, ModelVersion(told.version), told.digest, state) for told in told_to)
    return dataclasses.replace(each, copies=held)


def elastic(target: Target, copies: int, most: int, *, generation: int = 1) -> Placement:
    """Demand decides between these; on workers of a kind."""
    return dataclasses.replace(wish(target, copies, generation=generation), max_copies=most, tier="A", idle_s=60)


def test_what_demand_made_of_the_old_one_is_asked_of_the_new_one_for_as_long_as_it_takes() -> None:
    there = fleet([copy(OLD)], [copy(OLD, S.LOADING)], [copy(OLD, S.FAILED)], [copy(OLD)], [])
    carried = told(there[:3], OLD)
    placed = step(move(), [elastic(OLD, 0, 8)], there, carried)
    assert placed == Place((elastic(NEW, 2, 8, generation=0),), (elastic(NEW, 0, 8, generation=0),))
    half = fleet([copy(OLD), copy(NEW)], [copy(OLD)])
    assert isinstance(step(move(), [elastic(OLD, 0, 8), elastic(NEW, 2, 8)], half, told(half, OLD)), Wait)
    warm = fleet([copy(OLD), copy(NEW)], [copy(OLD), copy(NEW)])
    assert step(move(), [elastic(OLD, 0, 8), elastic(NEW, 2, 8)], warm, told(warm, OLD)) == Switch()


def test_what_waits_to_be_asked_for_moves_at_once_and_the_new_one_waits_too() -> None:
    assert step(move(), [elastic(OLD, 0, 8)], []) == Place((elastic(NEW, 0, 8, generation=0),))
    assert step(move(), [elastic(OLD, 0, 8), elastic(NEW, 0, 8)], []) == Switch()


def test_the_new_ones_own_kind_of_worker_and_its_own_least_stay() -> None:
    own = dataclasses.replace(elastic(NEW, 2, 3), tier="B")
    there = fleet(*([copy(OLD)] for _ in range(5)))
    placed = step(move(), [elastic(OLD, 1, 6), own], there, told(there, OLD))
    now = dataclasses.replace(own, copies=5, max_copies=6, generation=0)
    assert placed == Place((now,), (dataclasses.replace(now, copies=2),))


@settings(deadline=None)
@given(moves, wishes, fleets, assigned)
def test_an_index_of_the_fleet_says_the_same_as_the_fleet(
    drawn: Move, wished: list[Placement], there: list[Worker], known: dict[WorkerId, list[AssignedModel]]
) -> None:
    by_index = next_step(drawn, wished, indexed(there), known, limit_s=LIMIT_S)
    assert by_index == step(drawn, wished, there, known)
