"""The plan: what a worker does next, given its orders and its copies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.scheduler.v1 import scheduler_pb2

from runtime.ids import Digest, ModelName, ModelVersion
from worker.life.lifecycle import Copy, Holdings, LifeEvent
from worker.life.orders import Order, OrdersRefused, Plan, merged, parse_orders, plan
from worker.types import CopyState

S = CopyState


def order(model: str = "a", version: str = "1", *, generation: int = 1, digest: str = "d", asked: int = 0) -> Order:
    return Order(ModelName(model), ModelVersion(version), Digest(digest), generation, asked)


def copy(
    state: CopyState,
    model: str = "a",
    version: str = "1",
    *,
    generation: int = 1,
    digest: str = "d",
    retry_at_s: float | None = None,
) -> Copy:
    return Copy(ModelName(model), ModelVersion(version), Digest(digest), generation, state, retry_at_s=retry_at_s)


def steps(orders: list[Order], copies: list[Copy], *, now_s: float = 0.0, at_once: int = 2) -> Plan:
    return plan(orders, copies, now_s=now_s, loads_at_once=at_once)


def begun(orders: list[Order], copies: list[Copy], *, now_s: float = 0.0, at_once: int = 2) -> list[Order]:
    return [each.order for each in steps(orders, copies, now_s=now_s, at_once=at_once).loads]


def test_what_is_ordered_and_not_held_is_loaded_in_the_order_given_and_only_so_many_at_once() -> None:
    orders = [order("c"), order("a"), order("b")]
    assert begun(orders, []) == orders[:2]
    assert begun(orders, [copy(S.LOADING, "c")]) == [orders[1]]
    assert begun(orders, [copy(S.LOADING, "c"), copy(S.LOADING, "a")]) == []


@pytest.mark.parametrize("state", [S.LOADING, S.READY, S.DRAINING, S.UNLOADING])
def test_what_is_held_or_still_on_its_way_out_is_not_loaded(state: CopyState) -> None:
    assert steps([order(generation=9)], [copy(state)]) == Plan()


def test_a_failed_copy_waits_for_a_newer_generation() -> None:
    failed = copy(S.FAILED, generation=3)
    assert steps([order(generation=3)], [failed]) == Plan()
    assert begun([order(generation=4)], [failed]) == [order(generation=4)]
    assert begun([order(generation=3, asked=1)], [failed]) == [order(generation=3, asked=1)], "LoadModel asked anew"


def test_a_failure_that_may_pass_is_tried_again_when_its_time_has_come() -> None:
    failed = copy(S.FAILED, retry_at_s=10.0)
    assert begun([order()], [failed], now_s=9.9) == []
    assert begun([order()], [failed], now_s=10.0) == [order()]


def test_what_is_no_longer_ordered_drains_breaks_off_or_is_forgotten() -> None:
    ready, loading, failed = copy(S.READY, "a"), copy(S.LOADING, "b"), copy(S.FAILED, "c")
    assert steps([], [ready, loading, failed]) == Plan(withdrawals=(loading, failed), unloads=(ready,))
    assert steps([], [copy(S.DRAINING), copy(S.UNLOADING, "b")]) == Plan()


@pytest.mark.parametrize("state", [None, S.UNAVAILABLE, S.LOADING, S.FAILED, S.DRAINING])
def test_the_old_version_answers_until_the_new_one_does(state: CopyState | None) -> None:
    old = copy(S.READY, version="1")
    new = [] if state is None else [copy(state, version="2")]
    assert steps([order(version="2")], [old, *new]).unloads == ()
    assert steps([order(version="2")], [old, copy(S.READY, version="2")]).unloads == (old,)
    assert steps([order("other")], [old]).unloads == (old,), "another model replaces nothing"


def test_the_same_version_with_another_digest_goes_before_the_new_one_comes() -> None:
    wanted = order(digest="new")
    ready, loading, failed = copy(S.READY), copy(S.LOADING), copy(S.FAILED)
    assert steps([wanted], [ready]) == Plan(unloads=(ready,))
    assert steps([wanted], [loading]) == Plan(withdrawals=(loading,))
    assert steps([wanted], [failed]) == Plan(withdrawals=(failed,))
    assert begun([wanted], []) == [wanted]


ORDERS = st.lists(
    st.builds(
        order,
        st.sampled_from("ab"),
        st.sampled_from("12"),
        generation=st.integers(1, 3),
        digest=st.sampled_from("de"),
    ),
    unique_by=lambda each: each.key,
    max_size=4,
)


@given(st.lists(ORDERS, min_size=1, max_size=4), st.data())
def test_whatever_was_ordered_before_it_converges_on_the_last_orders(histories: list[list[Order]], data: st.DataObject) -> None:
    """Steps of a random world: loads end well or badly, some orders change before anything has settled."""
    holdings = Holdings()
    for orders in histories:
        for _ in range(data.draw(st.integers(0, 4))):
            _step(holdings, orders, data)
    final = histories[-1]
    for _ in range(40):
        _step(holdings, final, None)
    assert steps(final, list(holdings)) == Plan()
    ready = {(held.key, held.digest) for held in holdings if held.state is S.READY}
    failed = {(held.key, held.digest) for held in holdings if held.state is S.FAILED}
    assert {(each.key, each.digest) for each in final} <= ready | failed
    unordered = [held for held in holdings if held.key not in {each.key for each in final}]
    assert all(any(each.model == held.model and (each.key, each.digest) in failed for each in final) for held in unordered)


def _step(holdings: Holdings, orders: list[Order], data: st.DataObject | None) -> None:
    """What the reconciler does with a plan, and then some of what the world does."""
    wanted = steps(orders, list(holdings))
    loading = sum(held.state is S.LOADING for held in holdings)
    assert loading + len(wanted.loads) <= max(2, loading), "never more loads at once than allowed"
    for held in wanted.withdrawals:
        holdings.move(held, LifeEvent.WITHDRAWN)
    for held in wanted.unloads:
        holdings.move(held, LifeEvent.RETIRED)
    for each in (begin.order for begin in wanted.loads):
        held = holdings.get(each.key) or holdings.add(Copy(each.model, each.version, each.digest, each.generation))
        held.generation = each.generation
        holdings.move(held, LifeEvent.LOAD_BEGUN)
    for held in list(holdings):
        if data is not None and not data.draw(st.booleans()):
            continue
        fails = data is not None and data.draw(st.booleans())
        match held.state:
            case S.LOADING:
                holdings.move(held, LifeEvent.LOAD_FAILED if fails else LifeEvent.LOADED)
            case S.DRAINING:
                holdings.move(held, LifeEvent.DRAINED)
            case S.UNLOADING:
                holdings.move(held, LifeEvent.FREED)
            case _:
                pass


def test_orders_are_read_from_an_assignment() -> None:
    message = scheduler_pb2.Assignment(
        models=[
            scheduler_pb2.AssignedModel(model="a", version="1", digest="d", generation=1),
            scheduler_pb2.AssignedModel(model="b", version="2", digest="e", generation=2),
        ]
    )
    assert parse_orders(message.SerializeToString()) == (order("a", "1"), order("b", "2", generation=2, digest="e"))
    assert parse_orders(b"") == ()
    with pytest.raises(OrdersRefused, match="5 bytes"):
        parse_orders(b"\xff" * 5)


def test_the_schedulers_word_counts_and_local_orders_stand_beside_it() -> None:
    asked, own = order("a", asked=7), order("c", generation=0, asked=8)
    other = order("b", digest="other", asked=9)
    both = merged([order("a"), order("b")], {each.key: each for each in (asked, own, other)})
    assert both == (order("a", asked=7), order("b"), own)
