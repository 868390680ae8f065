"""Assignments: wishes are met where they can be, nothing moves without need, and it comes to rest."""

from __future__ import annotations

import dataclasses
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from placement.assign import AssignedModel, Placement, Plan, Shortage, assign
from placement.types import CopyState, Worker
from runtime.ids import EVERY_TENANT, Digest, ModelName, ModelVersion, Region, TenantId, WorkerId
from tests.placement.fleets import DIGEST, HERE, THERE, copy, fleets, worker


def wish(model: str = "digits", copies: int = 1, *, version: str = "1", region: str = HERE, generation: int = 1) -> Placement:
    return Placement(ModelName(model), ModelVersion(version), DIGEST, Region(region), copies, generation)


placements = st.lists(
    st.builds(
        wish,
        st.sampled_from(["digits", "sums"]),
        st.integers(0, 5),
        version=st.sampled_from(["1", "2", "10"]),
        region=st.sampled_from([HERE, THERE]),
        generation=st.integers(1, 2),
    ),
    max_size=8,
    unique_by=lambda drawn: (drawn.model, drawn.version, drawn.region),
)
held = st.lists(
    st.builds(
        AssignedModel,
        st.sampled_from([ModelName("digits"), ModelName("sums")]),
        st.sampled_from([ModelVersion("1"), ModelVersion("2"), ModelVersion("10")]),
        st.just(Digest(DIGEST)),
        st.integers(1, 2),
    ),
    max_size=4,
    unique_by=lambda drawn: (drawn.model, drawn.version),
)
currents = st.dictionaries(st.integers(0, 9).map(lambda number: WorkerId(f"w{number:02d}")), held)


def holders(plan: Plan, model: str = "digits") -> list[str]:
    return [who for who, models in sorted(plan.assignments.items()) if any(each.model == model for each in models)]


@settings(deadline=None)
@given(placements, fleets, currents, st.randoms())
def test_order_makes_no_difference(
    wishes: list[Placement], workers: list[Worker], current: dict[WorkerId, list[AssignedModel]], rng: random.Random
) -> None:
    plan = assign(wishes, workers, current)
    shuffled = [rng.sample(each, len(each)) for each in (wishes, workers)]
    mixed = {who: rng.sample(models, len(models)) for who, models in rng.sample(list(current.items()), len(current))}
    assert assign(*shuffled, mixed) == plan  # type: ignore[arg-type,call-arg]


@settings(deadline=None)
@given(placements, fleets, currents)
def test_it_comes_to_rest_and_meets_the_wishes(
    wishes: list[Placement], workers: list[Worker], current: dict[WorkerId, list[AssignedModel]]
) -> None:
    plan = assign(wishes, workers, current)
    for _ in range(len(workers) + 1):
        after = assign(wishes, workers, plan.assignments)
        if after == plan:
            break
        plan = after
    assert assign(wishes, workers, plan.assignments) == plan, "at rest after each worker has failed at most once"
    assert set(plan.assignments) == {each.worker_id for each in workers}
    fleet = {each.worker_id: each for each in workers}
    short = {shortfall.placement: shortfall for shortfall in plan.shortfalls}
    for each in wishes:
        there = [who for who, models in plan.assignments.items() if _entry(each) in models and fleet[who].region == each.region]
        failed = [
            who for who in there if (held := fleet[who].copy_of(each.model, each.version)) and held.state.name == "FAILED"
        ]
        in_region = [who for who in fleet if fleet[who].region == each.region]
        expected = min(each.copies, len(in_region) - len(failed))
        assert len(there) - len(failed) == expected
        assert (each in short) is (expected < each.copies)
    everything = [(who, model) for who, models in plan.assignments.items() for model in models]
    for who, model in everything:
        assert any(_entry(each) == model and each.region == fleet[who].region for each in wishes), "nothing nobody wished for"


@settings(deadline=None)
@given(placements, fleets, st.integers(0, 7))
def test_losing_a_worker_moves_nobody_elses_copies(wishes: list[Placement], workers: list[Worker], lost: int) -> None:
    healthy = [dataclasses.replace(each, copies=()) for each in workers]
    before = assign(wishes, healthy, {}).assignments
    gone = f"w{lost:02d}"
    after = assign(wishes, [each for each in healthy if each.worker_id != gone], before).assignments
    for who, models in after.items():
        assert set(before[who]) <= set(models)


def _entry(each: Placement) -> AssignedModel:
    return AssignedModel(each.model, each.version, each.digest, each.generation)


def test_copies_spread_over_the_workers_with_the_fewest() -> None:
    workers = [worker("a"), worker("b"), worker("c")]
    plan = assign([wish("digits", 2), wish("sums", 1)], workers, {})
    assert holders(plan) == ["a", "b"]
    assert holders(plan, "sums") == ["c"]


def test_more_copies_than_workers_is_all_workers_and_a_shortfall() -> None:
    plan = assign([wish(copies=5)], [worker("a"), worker("b")], {})
    assert holders(plan) == ["a", "b"]
    assert [(each.placed, each.reason) for each in plan.shortfalls] == [(2, Shortage.TOO_FEW_WORKERS)]


def test_a_region_without_workers_is_a_shortfall() -> None:
    plan = assign([wish(region=THERE)], [worker("a")], {})
    assert [each.reason for each in plan.shortfalls] == [Shortage.NO_WORKERS]


def test_too_many_copies_keep_the_ready_one() -> None:
    workers = [worker("a", copy(CopyState.LOADING)), worker("b", copy())]
    both = assign([wish(copies=2)], workers, {}).assignments
    assert holders(assign([wish(copies=1)], workers, both)) == ["b"]


def test_a_copy_in_memory_is_found_again_when_the_assignment_was_lost() -> None:
    assert holders(assign([wish()], [worker("a"), worker("b", copy())], {})) == ["b"]


def test_no_copies_wished_unloads() -> None:
    workers = [worker("a", copy()), worker("b", copy(CopyState.FAILED))]
    both = assign([wish(copies=2)], workers, {}).assignments
    assert holders(assign([wish(copies=0, generation=2)], workers, both)) == []


def test_who_failed_is_replaced_and_tries_again_with_the_next_generation() -> None:
    workers = [worker("a"), worker("b")]
    first = assign([wish()], workers, {})
    assert holders(first) == ["a"]
    failing = [worker("a", copy(CopyState.FAILED)), worker("b")]
    second = assign([wish()], failing, first.assignments)
    assert holders(second) == ["a", "b"], "it keeps the failed one, so that it does not try again for ever"
    third = assign([wish(generation=2)], failing, second.assignments)
    assert third.assignments[WorkerId("b")][0].generation == 2
    everywhere = [worker("a", copy(CopyState.FAILED)), worker("b", copy(CopyState.FAILED))]
    stuck = assign([wish()], everywhere, second.assignments)
    assert [(each.placed, each.reason) for each in stuck.shortfalls] == [(0, Shortage.FAILED)]
    retried = assign([wish(generation=2)], everywhere, stuck.assignments)
    assert len(holders(retried)) == 1


ACME, GLOBEX = TenantId("acme"), TenantId("globex")
MINE = {ModelName("digits"): frozenset({ACME})}


def workers_of(tenants: dict[str, frozenset[TenantId]]) -> list[Worker]:
    return [dataclasses.replace(worker(name), tenants=served) for name, served in tenants.items()]


def test_a_worker_of_other_tenants_is_given_nothing_and_loses_what_it_had() -> None:
    there = workers_of({"acmes": frozenset({ACME}), "anybodys": frozenset(), "globexs": frozenset({GLOBEX})})
    plan = assign([wish(copies=3)], there, {}, MINE)
    assert holders(plan) == ["acmes", "anybodys"]
    assert [(each.placed, each.reason) for each in plan.shortfalls] == [(2, Shortage.TOO_FEW_WORKERS)]
    shared = assign([wish(copies=3)], there, plan.assignments, {ModelName("digits"): frozenset({ACME, GLOBEX})})
    assert holders(shared) == ["acmes", "anybodys", "globexs"]
    assert holders(assign([wish(copies=3)], there, shared.assignments, MINE)) == ["acmes", "anybodys"]


def test_where_all_workers_are_others_the_shortage_says_so() -> None:
    plan = assign([wish()], workers_of({"globexs": frozenset({GLOBEX})}), {}, MINE)
    assert [(each.placed, each.reason) for each in plan.shortfalls] == [(0, Shortage.OTHERS_WORKERS)]


def test_what_every_tenant_may_call_or_nobody_knows_of_goes_anywhere() -> None:
    there = workers_of({"globexs": frozenset({GLOBEX})})
    assert holders(assign([wish()], there, {}, {ModelName("digits"): frozenset({ACME, EVERY_TENANT})})) == ["globexs"]
    assert holders(assign([wish()], there, {}, {})) == ["globexs"]


@settings(deadline=None)
@given(placements, fleets, currents, st.data())
def test_nobody_is_ever_given_what_it_may_not_load(
    wishes: list[Placement], there: list[Worker], current: dict[WorkerId, list[AssignedModel]], data: st.DataObject
) -> None:
    some = [frozenset({ACME}), frozenset({GLOBEX}), frozenset({ACME, GLOBEX})]
    divided = [dataclasses.replace(each, tenants=data.draw(st.sampled_from([frozenset(), *some]))) for each in there]
    callers = {ModelName(model): data.draw(st.sampled_from(some)) for model in ("digits", "sums")}
    plan = assign(wishes, divided, current, callers)
    for _ in range(len(divided) + 1):
        for each in divided:
            assert all(not each.tenants or each.tenants & callers[held.model] for held in plan.assignments[each.worker_id])
        plan = assign(wishes, divided, plan.assignments, callers)
    assert assign(wishes, divided, plan.assignments, callers) == plan, "at rest after each worker has failed at most once"
