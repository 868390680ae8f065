"""Who is let go of so that another fits: the decision itself, and that it never goes in circles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.ids import Digest, ModelName, ModelVersion
from tests.worker.onnx_models import spec
from worker.engine import ModelRefused
from worker.life.lifecycle import Copy, CopyKey, Holdings, LifeEvent, Room
from worker.life.memory import (
    BASE_BYTES,
    Memory,
    Rooms,
    Usage,
    evictable,
    is_pinned,
    share_out,
    taken_bytes,
)
from worker.life.orders import Order, Plan, is_newer, plan
from worker.types import CopyState

S = CopyState


def copy(model: str, memory_bytes: int, state: CopyState = S.READY, room: Room = Room.UNASKED, *, pinned: bool = False) -> Copy:
    made = Copy(ModelName(model), ModelVersion("1"), Digest("d"), 1, state)
    made.memory_bytes, made.room, made.pinned = memory_bytes, room, pinned
    return made


def asking(model: str, memory_bytes: int) -> Copy:
    return copy(model, memory_bytes, S.LOADING, Room.WANTED)


def used(*models: str, busy: str = "") -> dict[CopyKey, Usage]:
    """Used in this order, longest ago first."""
    return {(ModelName(model), ModelVersion("1")): Usage(model in busy, float(at)) for at, model in enumerate(models)}


def names(copies: Sequence[Copy]) -> list[str]:
    return [each.model for each in copies]


def evicted(rooms: Rooms) -> list[str]:
    return [each.copy.model for each in rooms.evictions]


def test_what_fits_is_opened_at_once_and_nobody_leaves() -> None:
    new = asking("new", 40)
    rooms = share_out([copy("a", 60), new], [], Memory(100))
    assert (rooms.promises, rooms.grants, rooms.evictions, rooms.refusals) == ([new], [new], [], [])


def test_the_copies_used_longest_ago_leave_and_only_as_many_as_needed() -> None:
    held = [copy("a", 30), copy("b", 30), copy("c", 30)]
    rooms = share_out([*held, asking("new", 35)], [], Memory(100, used("b", "c", "a")))
    assert evicted(rooms) == ["b"]
    assert names(rooms.promises) == ["new"]
    assert rooms.grants == [], "not before they are gone"


def test_a_copy_that_need_not_leave_stays_although_it_was_used_longest_ago() -> None:
    held = [copy("old", 10), copy("new", 60)]
    assert names(evictable(asking("it", 50), held, Memory(100, used("old", "new")), free_bytes=0) or []) == ["new"]


def test_neither_busy_nor_pinned_copies_leave_and_the_refusal_says_what_is_needed_held_and_allowed() -> None:
    held = [copy("busy", 40), copy("pinned", 40, pinned=True)]
    rooms = share_out([*held, asking("new", 30)], [], Memory(100, used("busy", "pinned", busy="busy")))
    (refusal,) = rooms.refusals
    assert (evicted(rooms), rooms.promises) == ([], [])
    for words in ("needs 30 bytes", "80 bytes of the 100 bytes allowed", "in use or pinned", "--memory-bytes"):
        assert words in refusal.why


def test_what_nobody_orders_leaves_first_and_for_anybody() -> None:
    held = [copy("spare", 40), copy("older", 40)]
    memory = Memory(100, used("older", "spare"), spare=frozenset({held[0].key}))
    back = asking("back", 50)
    assert evicted(share_out([*held, back], [], memory)) == ["spare"]
    back.may_evict = False
    assert evicted(share_out([*held, back], [], memory)) == ["spare"]
    back.memory_bytes = 70
    assert evicted(share_out([*held, back], [], memory)) == []


def test_what_is_larger_than_all_that_is_allowed_makes_nobody_leave() -> None:
    rooms = share_out([copy("a", 60), asking("new", 101)], [], Memory(100))
    assert (evicted(rooms), names([each.copy for each in rooms.refusals])) == ([], ["new"])
    assert "never fits" in rooms.refusals[0].why


def test_who_was_promised_room_waits_for_those_that_leave_and_nobody_else_gets_it() -> None:
    promised, leaving = copy("first", 60, S.LOADING, Room.PROMISED), copy("gone", 60, S.DRAINING)
    second = asking("second", 60)
    rooms = share_out([promised, second], [leaving], Memory(100))
    assert (rooms.grants, names([each.copy for each in rooms.refusals])) == ([], ["second"])
    assert share_out([promised], [], Memory(100)).grants == [promised]


def test_two_that_ask_at_once_do_not_get_the_same_room() -> None:
    rooms = share_out([copy("a", 50), copy("b", 50), asking("x", 50), asking("y", 50)], [], Memory(100, used("a", "b")))
    assert (evicted(rooms), names(rooms.promises)) == (["a", "b"], ["x", "y"])


@given(
    st.lists(st.tuples(st.integers(1, 50), st.booleans(), st.integers(0, 9)), max_size=8),
    st.integers(1, 120),
    st.integers(0, 60),
)
def test_whoever_leaves_was_idle_and_none_of_them_could_have_stayed(
    held: list[tuple[int, bool, int]], need: int, free: int
) -> None:
    copies = [copy(f"m{number}", size) for number, (size, _, _) in enumerate(held)]
    usage = {each.key: Usage(busy, float(at)) for each, (_, busy, at) in zip(copies, held, strict=True)}
    chosen = evictable(asking("new", need), copies, Memory(1000, usage), free_bytes=free)
    idle_bytes = sum(each.memory_bytes for each in copies if not usage[each.key].busy)
    assert (chosen is None) == (need > free + idle_bytes)
    if chosen is not None:
        assert not any(usage[each.key].busy for each in chosen)
        freed = sum(each.memory_bytes for each in chosen)
        assert free + freed >= need
        assert all(free + freed - each.memory_bytes < need for each in chosen)


@dataclass
class World:
    """Takes a plan's steps as the reconciler does, and then some of what the world does."""

    limit: int
    sizes: dict[str, int]
    holdings: Holdings = field(default_factory=Holdings)
    usage: dict[CopyKey, Usage] = field(default_factory=dict)
    evictions: int = 0
    now_s: float = 0.0

    def plan(self, orders: list[Order]) -> Plan:
        self.now_s += 100.0
        return plan(orders, self.holdings, now_s=self.now_s, loads_at_once=2, memory=Memory(self.limit, self.usage))

    def take(self, orders: list[Order]) -> None:
        steps = self.plan(orders)
        for held in steps.withdrawals:
            held.awaits_room = False
            self.holdings.move(held, LifeEvent.WITHDRAWN)
        for held in steps.forgotten:
            self.holdings.forget(held)
        for held in steps.unloads:
            self.holdings.move(held, LifeEvent.RETIRED)
        for each in steps.evictions:
            assert each.copy.state is S.READY
            assert not each.copy.pinned
            assert not self.usage.get(each.copy.key, Usage(False, 0)).busy
            unordered = each.copy.key not in {order.key for order in orders}
            assert each.makes_room_for.may_evict or unordered, "each order lets others go once"
            each.copy.awaits_room, each.copy.may_evict = True, False
            self.holdings.move(each.copy, LifeEvent.RETIRED)
        for each in steps.evictions:
            each.makes_room_for.may_evict = False
        self.evictions += len(steps.evictions)
        for held in steps.promises:
            held.room = Room.PROMISED
        for refusal in steps.refusals:
            refusal.copy.awaits_room = True
            self.holdings.move(refusal.copy, LifeEvent.LOAD_FAILED, refusal.why)
            refusal.copy.retry_at_s = self.now_s + 50
        for held in steps.grants:
            held.room = Room.GIVEN
        for begin in steps.loads:
            order = begin.order
            held = self.holdings.get(order.key) or self.holdings.add(Copy(order.model, order.version, order.digest, 0))
            if is_newer(order, held):
                held.may_evict = True
            held.generation, held.asked, held.awaits_room = order.generation, order.asked, False
            self.holdings.move(held, LifeEvent.LOAD_BEGUN)
            if begin.promised:
                held.room = Room.PROMISED
        taken = sum(each.memory_bytes for each in self.holdings if _open(each))
        assert taken <= self.limit, "never more than is allowed"

    def go_on(self, draw: st.DataObject | None) -> None:
        for held in list(self.holdings):
            if draw is not None and draw.draw(st.booleans()):
                continue
            fails = draw is not None and draw.draw(st.integers(0, 3)) == 0
            if held.state is S.LOADING and held.room is Room.UNASKED:
                held.memory_bytes, held.room = self.sizes[held.model], Room.WANTED
            elif held.state is S.LOADING and held.room is Room.GIVEN:
                self.holdings.move(held, LifeEvent.LOAD_FAILED if fails else LifeEvent.LOADED)
                held.retry_at_s = self.now_s + 50 if fails else None
            elif held.state is S.DRAINING:
                self.holdings.move(held, LifeEvent.DRAINED)
            elif held.state is S.UNLOADING:
                self.holdings.move(held, LifeEvent.FREED)

    def be_used(self, draw: st.DataObject) -> None:
        self.usage = {
            held.key: Usage(draw.draw(st.integers(0, 3)) == 0, self.now_s - draw.draw(st.integers(0, 99)))
            for held in self.holdings
        }


def _open(held: Copy) -> bool:
    return held.state in (S.READY, S.DRAINING) or (held.state is S.LOADING and held.room is Room.GIVEN)


MODELS = "abcd"
ORDERS = st.lists(
    st.builds(
        lambda model, version, generation: Order(ModelName(model), ModelVersion(version), Digest("d"), generation),
        st.sampled_from(MODELS),
        st.sampled_from("12"),
        st.integers(1, 3),
    ),
    unique_by=lambda each: each.key,
    max_size=5,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(ORDERS, min_size=1, max_size=3),
    st.lists(st.integers(1, 16), min_size=len(MODELS), max_size=len(MODELS)),
    st.data(),
)
def test_with_orders_that_stand_evictions_end_whoever_is_used_and_whatever_fails(
    histories: list[list[Order]], sizes: list[int], draw: st.DataObject
) -> None:
    """No ping-pong: each order lets others be let go of once, and who was let go of comes back to free room only."""
    world = World(limit=14, sizes=dict(zip(MODELS, sizes, strict=True)))
    for orders in histories[:-1]:
        for _ in range(draw.draw(st.integers(0, 6))):
            world.take(orders)
            world.go_on(draw)
            world.be_used(draw)
    final = histories[-1]
    world.evictions = 0
    for _ in range(12):
        world.take(final)
        world.go_on(draw)
        world.be_used(draw)
    assert world.evictions <= 9 * (len(final) + 1), "each order lets others go once, and those that nobody orders go once"
    world.usage = {}
    for _ in range(40):
        world.take(final)
        world.go_on(None)
    settled = world.evictions
    for _ in range(6):
        steps = world.plan(final)
        assert (steps.loads, steps.evictions, steps.grants) == ((), (), ())
        world.be_used(draw)
    assert world.evictions == settled
    ordered = {order.key for order in final}
    room = world.limit - sum(held.memory_bytes for held in world.holdings if held.state is S.READY and held.key in ordered)
    for held in world.holdings:
        if held.key in ordered and held.state is not S.READY:
            assert held.awaits_room
            assert held.memory_bytes > room, "whoever fits beside what is ordered is there"


def test_who_was_let_go_of_comes_back_to_free_room_a_newer_order_or_a_call_and_to_nothing_else() -> None:
    world = World(limit=10, sizes={"a": 8, "b": 8})
    first, second = (Order(ModelName(model), ModelVersion("1"), Digest("d"), 1) for model in "ab")

    def after(*orders: Order) -> dict[str, CopyState]:
        for _ in range(12):
            world.take(list(orders))
            world.go_on(None)
        return {held.model: held.state for held in world.holdings}

    assert after(first) == {"a": S.READY}
    assert after(first, second) == {"a": S.UNAVAILABLE, "b": S.READY}
    assert (after(first, second), world.evictions) == ({"a": S.UNAVAILABLE, "b": S.READY}, 1)
    newer = Order(first.model, first.version, first.digest, 2)
    assert after(newer, second) == {"a": S.READY, "b": S.UNAVAILABLE}
    asked = Order(second.model, second.version, second.digest, 1, asked=1)
    assert after(newer, asked) == {"a": S.UNAVAILABLE, "b": S.READY}
    assert world.evictions == 3
    assert after(newer) == {"a": S.READY}
    assert world.evictions == 3


def test_a_copy_takes_what_its_manifest_says_else_a_factor_of_its_files() -> None:
    assert taken_bytes(spec(memory_bytes=7), 1000) == 7
    assert taken_bytes(spec(), 1000) == BASE_BYTES + 2500
    assert taken_bytes(spec(engine="unheard-of"), 1000) == BASE_BYTES + 2000
    assert taken_bytes(spec(engine="upstream"), 1000) == BASE_BYTES


def test_pinned_is_true_or_false() -> None:
    assert [is_pinned(spec(parameters={"pinned": text})) for text in ("true", "false")] == [True, False]
    assert not is_pinned(spec())
    with pytest.raises(ModelRefused, match="'pinned'"):
        is_pinned(spec(parameters={"pinned": "yes"}))
