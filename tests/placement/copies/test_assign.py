"""Assignments: wishes are met where they can be, nothing moves without need, and it comes to rest."""

from __future__ import annotations

import dataclasses
import hashlib
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from placement.copies.assign import AssignedModel, Assignments, Placement, Plan, Shortage, assign
from placement.copies.wishes import Bars, Wanted
from placement.types import Copy, CopyState, Worker
from runtime.ids import EVERY_TENANT, Digest, ModelName, ModelVersion, Region, TenantId, WorkerId
from tests.placement.fleets import DIGEST, HERE, THERE, copy, fleets, worker

GIB = 1 << 30


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


def sized(name: str, gib: float, *copies: Copy, tier: str = "", labels: frozenset[str] = frozenset()) -> Worker:
    """A worker that says what models may take of its memory."""
    tiers = frozenset({tier} if tier else ())
    return dataclasses.replace(worker(name, *copies), memory_budget_bytes=int(gib * GIB), tiers=tiers, labels=labels)


def holding(each: Worker, *held: Copy) -> Worker:
    return dataclasses.replace(each, copies=held)


def large(model: str, gib: float, copies: int = 1, *, most: int = 0) -> Placement:
    """A wish for a model of its own digest that is thought to take so much."""
    return dataclasses.replace(wish(model, copies), digest=digest_of(model), memory_bytes=int(gib * GIB), max_copies=most)


def taking(model: str, gib: float, state: CopyState = CopyState.READY, reason: str = "") -> Copy:
    return dataclasses.replace(copy(state, model=model, digest=digest_of(model), reason=reason), memory_bytes=int(gib * GIB))


def digest_of(model: str) -> Digest:
    return Digest(hashlib.sha256(model.encode()).hexdigest())


def asked(*wishes: tuple[Placement, int, float]) -> Wanted:
    """By demand so many copies, last asked for at that time."""
    return Wanted({each.key: copies for each, copies, _ in wishes}, {each.key: used_s for each, _, used_s in wishes})


def shortages(plan: Plan) -> list[tuple[str, int, Shortage]]:
    return [(each.placement.model, each.placed, each.reason) for each in plan.shortfalls]


def test_a_copy_goes_only_where_it_fits() -> None:
    plan = assign([large("digits", 6, 3)], [sized("a", 4), sized("b", 8), sized("c", 6)], {})
    assert holders(plan) == ["b", "c"]
    assert shortages(plan) == [("digits", 2, Shortage.NO_MEMORY)]


def test_what_nobody_knows_fits_anywhere_and_everything_on_who_does_not_say() -> None:
    assert holders(assign([large("digits", 0, 1)], [sized("a", 1)], {})) == ["a"]
    assert holders(assign([large("digits", 100, 1)], [worker("a")], {})) == ["a"]


def test_a_loaded_copys_word_counts_before_the_wishs() -> None:
    there = [sized("a", 8, taking("digits", 6)), sized("b", 5)]
    current = {WorkerId("a"): assign([large("digits", 2)], there[:1], {}).assignments[WorkerId("a")]}
    assert holders(assign([large("digits", 2, 2)], there, current)) == ["a"]


def test_two_that_do_not_fit_together_go_to_two_workers() -> None:
    plan = assign([large("digits", 5), large("sums", 5)], [sized("a", 8), sized("b", 8)], {})
    assert (holders(plan), holders(plan, "sums")) == (["a"], ["b"])


def test_of_those_with_as_few_copies_the_one_with_most_room_is_taken() -> None:
    assert holders(assign([large("digits", 1)], [sized("a", 8), sized("b", 16), sized("c", 12)], {})) == ["b"]


def test_memory_that_others_take_is_taken() -> None:
    """What LoadModel asked for stands in nobody's assignment."""
    plan = assign([large("digits", 5)], [sized("a", 8, taking("own", 4)), sized("b", 6)], {})
    assert holders(plan) == ["b"]


def test_nobody_is_moved_because_too_much_was_promised() -> None:
    a = sized("a", 8)
    both = assign([large("digits", 4), large("sums", 4)], [a], {}).assignments
    grown = holding(a, taking("digits", 6), taking("sums", 6))
    plan = assign([large("digits", 4), large("sums", 4)], [grown, sized("b", 64)], both)
    assert plan.assignments[a.worker_id] == both[a.worker_id]


def test_files_that_are_there_come_before_a_worker_without() -> None:
    there = [worker("a"), worker("b", copy(CopyState.UNLOADING))]
    assert holders(assign([wish()], there, {})) == ["b"]


EVICTED = "unloaded to make room for model 'sums' version 1"


def test_what_a_worker_let_go_of_for_memory_goes_where_it_fits() -> None:
    wishes = [large("digits", 5), large("sums", 5)]
    there = [sized("a", 8, taking("digits", 5, CopyState.UNAVAILABLE, EVICTED), taking("sums", 5)), sized("b", 8)]
    told = assign(wishes, [dataclasses.replace(there[0], memory_budget_bytes=0, copies=())], {}).assignments
    plan = assign(wishes, there, told)
    assert (holders(plan), holders(plan, "sums")) == (["b"], ["a"])
    assert assign(wishes, there, plan.assignments) == plan


def test_what_a_worker_let_go_of_comes_back_where_it_fits_again() -> None:
    there = [sized("a", 8, taking("digits", 5, CopyState.UNAVAILABLE, EVICTED)), sized("b", 8)]
    told = assign([large("digits", 5)], there[:1], {}).assignments
    assert holders(assign([large("digits", 5)], there, told)) == ["a"]


def test_where_nobody_knows_whether_it_fits_another_stands_in_and_it_may_come_back() -> None:
    there = [worker("a", copy(CopyState.UNAVAILABLE, reason=EVICTED)), worker("b")]
    told = assign([wish()], there[:1], {WorkerId("a"): (_entry(wish()),)}).assignments
    plan = assign([wish()], there, told)
    assert holders(plan) == ["a", "b"]
    assert assign([wish()], there, plan.assignments) == plan
    assert shortages(assign([wish()], there[:1], told)) == [("digits", 0, Shortage.TOO_FEW_WORKERS)]


def test_a_wish_names_the_kind_of_worker() -> None:
    there = [worker("a"), sized("b", 8, tier="A"), sized("c", 8, tier="A", labels=frozenset({"spot", "rack=7"}))]
    tiered = dataclasses.replace(wish(copies=3), tier="A")
    labelled = dataclasses.replace(tiered, labels=frozenset({"spot"}))
    assert holders(assign([tiered], there, {})) == ["b", "c"]
    assert holders(assign([labelled], there, {})) == ["c"]
    everywhere = assign([wish(copies=3)], there, {})
    assert holders(assign([tiered], there, everywhere.assignments)) == ["b", "c"], "and who is not of it is relieved"
    for wrong, why in ((dataclasses.replace(wish(), tier="D"), Shortage.NO_TIER), (labelled, Shortage.NO_LABEL)):
        assert [each.reason for each in assign([wrong], there[:2], {}).shortfalls] == [why]


def test_the_least_that_was_wished_for_comes_before_demand() -> None:
    idle, busy = large("digits", 5, 0, most=2), large("sums", 5, 1)
    a = sized("a", 8)
    before = assign([idle], [a], {}, wanted=asked((idle, 1, 1_000.0)))
    assert holders(before) == ["a"]
    after = assign([idle, busy], [a], before.assignments, wanted=asked((idle, 1, 1_000.0)))
    assert (holders(after), holders(after, "sums")) == ([], ["a"])
    assert shortages(after) == [("digits", 0, Shortage.NO_MEMORY)]


def test_of_copies_by_demand_the_one_asked_for_longest_ago_gives_way() -> None:
    wishes = [large(name, 3, 0, most=1) for name in ("digits", "sums", "texts")]
    times = (500.0, 400.0, 600.0)
    a = sized("a", 6)
    before = assign(wishes[:2], [a], {}, wanted=asked((wishes[0], 1, times[0]), (wishes[1], 1, times[1])))
    wanted = asked(*((each, 1, at_s) for each, at_s in zip(wishes, times, strict=True)))
    after = assign(wishes, [a], before.assignments, wanted=wanted)
    assert (holders(after), holders(after, "sums"), holders(after, "texts")) == (["a"], [], ["a"])


def test_two_that_are_in_use_and_do_not_both_fit_do_not_take_turns() -> None:
    first, second = large("digits", 5, 0, most=1), large("sums", 5, 0, most=1)
    a, moves = sized("a", 8), 0
    current: Assignments = assign([first], [a], {}, wanted=asked((first, 1, 100.0))).assignments
    for second_s in range(100, 400):
        used = (100.0 + second_s, 100.0 + second_s + 29.0 * (-1) ** second_s)
        plan = assign([first, second], [a], current, wanted=asked((first, 1, used[0]), (second, 1, used[1])))
        moves += plan.assignments != current
        current = plan.assignments
    assert moves == 0


def test_only_as_many_give_way_as_have_to() -> None:
    small = [large(name, 1, 0, most=1) for name in ("m1", "m2", "m3")]
    big, a = large("big", 2, 1), sized("a", 3)
    before = assign(small, [a], {}, wanted=asked(*((each, 1, 10.0 * at) for at, each in enumerate(small))))
    after = assign(
        [*small, big], [a], before.assignments, wanted=asked(*((each, 1, 10.0 * at) for at, each in enumerate(small)))
    )
    assert [holders(after, name) for name in ("m1", "m2", "m3", "big")] == [[], [], ["a"], ["a"]]


def test_who_is_barred_is_passed_over_and_relieved() -> None:
    there = [worker("a"), worker("b")]
    bars = Bars(relieved=frozenset({(WorkerId("a"), DIGEST)}))
    assert holders(assign([wish()], there, {}, bars=bars)) == ["b"]
    assert holders(assign([wish()], there, {WorkerId("a"): (_entry(wish()),)}, bars=bars)) == ["b"]
    none = assign([wish()], there, {}, bars=Bars(exhausted=frozenset({(Region(HERE), DIGEST)})))
    assert shortages(none) == [("digits", 0, Shortage.FAILED)]


MODELS = ("m0", "m1", "m2", "m3")
SIZES = dict(zip(MODELS, (1, 2, 3, 4), strict=True))
sized_workers = st.lists(st.tuples(st.integers(2, 9), st.sampled_from(["", "A"]), st.booleans()), min_size=1, max_size=6).map(
    lambda drawn: [
        sized(f"w{at}", gib, tier=tier, labels=frozenset({"spot"} if spot else ()))
        for at, (gib, tier, spot) in enumerate(drawn)
    ]
)
sized_wishes = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 300), st.sampled_from(["", "A"]), st.booleans()),
    min_size=4,
    max_size=4,
)


def drawn_wishes(drawn: list[tuple[int, int, int, str, bool]]) -> tuple[list[Placement], Wanted]:
    wishes, wanted = [], []
    for model, (least, more, used_s, tier, spot) in zip(MODELS, drawn, strict=True):
        made = large(model, SIZES[model], least, most=least + more)
        made = dataclasses.replace(made, tier=tier, labels=frozenset({"spot"} if spot else ()))
        wishes.append(made)
        wanted.append((made, least + more, float(used_s)))
    return wishes, asked(*wanted)


def obeyed(there: list[Worker], plan: Plan) -> list[Worker]:
    return [
        holding(each, *(taking(told.model, SIZES[told.model]) for told in plan.assignments[each.worker_id])) for each in there
    ]


def taken_gib(plan: Plan, who: WorkerId) -> int:
    return sum(SIZES[told.model] for told in plan.assignments[who])


@settings(deadline=None, max_examples=300)
@given(sized_workers, sized_wishes, sized_wishes)
def test_memory_is_never_promised_twice_and_the_plan_is_at_rest(
    there: list[Worker], first: list[tuple[int, int, int, str, bool]], then: list[tuple[int, int, int, str, bool]]
) -> None:
    """From nothing to one set of wishes, and from there to another."""
    plan, now = Plan({}), there
    for drawn in (first, then):
        wishes, wanted = drawn_wishes(drawn)
        plan = assign(wishes, now, plan.assignments, wanted=wanted)
        for each in there:
            assert taken_gib(plan, each.worker_id) * GIB <= each.memory_budget_bytes
        for wished in wishes:
            for who in holders(plan, wished.model):
                assert wished.suits(next(each for each in there if each.worker_id == who))
        assert assign(wishes, now, plan.assignments, wanted=wanted).assignments == plan.assignments, "applied again, nothing"
        now = obeyed(there, plan)
        assert assign(wishes, now, plan.assignments, wanted=wanted).assignments == plan.assignments, "nor once they obeyed"


@settings(deadline=None, max_examples=200)
@given(sized_workers, sized_wishes, st.randoms())
def test_with_memory_too_order_makes_no_difference(
    there: list[Worker], drawn: list[tuple[int, int, int, str, bool]], rng: random.Random
) -> None:
    wishes, wanted = drawn_wishes(drawn)
    shuffled = assign(rng.sample(wishes, len(wishes)), rng.sample(there, len(there)), {}, wanted=wanted)
    assert shuffled == assign(wishes, there, {}, wanted=wanted)


@settings(deadline=None, max_examples=200)
@given(sized_workers, sized_wishes)
def test_no_floor_is_short_while_a_copy_by_demand_could_give_way(
    there: list[Worker], drawn: list[tuple[int, int, int, str, bool]]
) -> None:
    wishes, wanted = drawn_wishes(drawn)
    plan = assign(wishes, there, {}, wanted=wanted)
    least = {each.model: each.copies for each in wishes}
    for short in plan.shortfalls:
        if short.placed >= short.placement.copies:
            continue
        for each in there:
            held = {told.model for told in plan.assignments[each.worker_id]}
            if not short.placement.suits(each) or short.placement.model in held:
                continue
            spare = sum(SIZES[model] for model in held if len(holders(plan, model)) > least[model])
            free = each.memory_budget_bytes / GIB - taken_gib(plan, each.worker_id)
            assert free + spare < SIZES[short.placement.model]
