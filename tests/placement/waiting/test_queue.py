"""The capacity queue, case by case: who is next, who is turned away, and what they are told."""

from __future__ import annotations

from itertools import count

import pytest

from placement.types import CandidateKey
from placement.waiting.fair_turns import Ticket, Waiter
from placement.waiting.queue import Bound, CapacityQueue, QueueBounds, TurnedAway
from runtime.ids import ModelName, ModelVersion, TenantId, WorkerId
from tests.placement.fleets import DIGITS, HERE, THERE, V1

KEY = CandidateKey(DIGITS, V1, HERE)
OTHER_MODEL = CandidateKey(ModelName("sums"), V1, HERE)
_tickets = count()


def waiter(
    tenant: str = "a",
    *,
    key: CandidateKey = KEY,
    now_s: float = 0.0,
    deadline_s: float = 1000.0,
    priority_class: int = 1,
    share: int = 1,
    priority: int = 0,
    exclude: str = "",
) -> Waiter:
    excluded = frozenset({WorkerId(exclude)} if exclude else ())
    ticket = Ticket(next(_tickets))
    return Waiter(ticket, key, TenantId(tenant), now_s, deadline_s, priority_class, share, priority, excluded)


def queue_of(*waiters: Waiter, bounds: QueueBounds | None = None) -> CapacityQueue:
    queue = CapacityQueue(bounds)
    for each in waiters:
        assert queue.offer(each, each.arrived_s) is None
    return queue


def taken(queue: CapacityQueue, number: int | None = None, *, key: CandidateKey = KEY, now_s: float = 0.0) -> list[Waiter]:
    """The next so many, or all."""
    found: list[Waiter] = []
    while (number is None or len(found) < number) and (each := queue.take(key, now_s)) is not None:
        found.append(each)
    return found


def tenants(waiters: list[Waiter]) -> str:
    return "".join(each.tenant for each in waiters)


def refused(queue: CapacityQueue, offered: Waiter, now_s: float = 0.0) -> TurnedAway:
    answer = queue.offer(offered, now_s)
    assert answer is not None, "it was let in"
    return answer


def moving(queue: CapacityQueue, every_s: float, number: int = 6, *, key: CandidateKey = KEY) -> float:
    """Have the line move at that pace for a while; the time by then."""
    for each in range(1, number + 1):
        assert queue.take(key, each * every_s) is not None
    return number * every_s


def test_tenants_have_turns_by_their_shares() -> None:
    queue = queue_of(
        *(waiter("a", share=2) for _ in range(6)),
        *(waiter("b") for _ in range(6)),
        *(waiter("c", share=3) for _ in range(6)),
    )
    assert tenants(queue.upcoming(KEY)) == tenants(taken(queue)) == "aabcccaabcccaabbbb"


def test_a_tenant_that_comes_has_its_turn_after_those_that_wait_and_before_their_second() -> None:
    queue = queue_of(*(waiter("a") for _ in range(3)), *(waiter("b") for _ in range(2)))
    assert tenants(taken(queue, 1)) == "a"
    assert queue.offer(waiter("c"), 0.0) is None
    assert tenants(taken(queue)) == "bacba"


def test_classes_go_strictly_one_after_the_other() -> None:
    queue = queue_of(
        waiter("batch", priority_class=2),
        waiter("plain"),
        waiter("urgent", priority_class=0),
        waiter("plain"),
        waiter("urgent", priority_class=0),
    )
    assert queue.by_class() == (2, 2, 1)
    assert [each.priority_class for each in taken(queue)] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(("given", "served_as"), [(-1, 0), (7, 2)])
def test_a_class_that_is_none_counts_as_the_nearest(given: int, served_as: int) -> None:
    assert queue_of(waiter(priority_class=given)).by_class()[served_as] == 1


def test_within_a_tenant_its_own_priority_then_the_earliest_deadline_then_arrival() -> None:
    ordered = [
        waiter(priority=1, deadline_s=50),
        waiter(priority=2, deadline_s=10),
        waiter(priority=2, deadline_s=10, now_s=1),
        waiter(priority=9, deadline_s=9),
        waiter(deadline_s=5),
        waiter(deadline_s=8),
    ]
    queue = queue_of(*(ordered[each] for each in (4, 2, 5, 0, 3, 1)))
    assert taken(queue) == ordered


def test_a_place_that_is_of_no_use_to_whose_turn_it_is_goes_to_the_next_who_then_has_one_less() -> None:
    queue = queue_of(*(waiter("a", exclude="w1") for _ in range(3)), *(waiter("b") for _ in range(3)))
    out_of_turn = queue.take(KEY, 0.0, lambda each: WorkerId("w1") not in each.exclude)
    assert out_of_turn is not None
    assert out_of_turn.tenant == "b"
    assert tenants(taken(queue)) == "aabab"


def test_who_was_served_out_of_turn_for_long_owes_one_turn_and_no_more() -> None:
    queue = queue_of(*(waiter("a", exclude="w1") for _ in range(9)), *(waiter("b", share=2) for _ in range(30)))
    for _ in range(20):
        queue.take(KEY, 0.0, lambda each: WorkerId("w1") not in each.exclude)
    assert tenants(taken(queue, 9)) == "aabbabbab"


def test_a_place_of_no_use_to_anybody_is_given_to_nobody() -> None:
    queue = queue_of(waiter(exclude="w1"))
    assert queue.take(KEY, 0.0, lambda each: WorkerId("w1") not in each.exclude) is None
    assert len(queue) == 1
    assert queue.take(OTHER_MODEL, 0.0) is None


def test_who_withdraws_waits_no_more_and_costs_its_tenant_nothing() -> None:
    first, second, other = waiter("a"), waiter("a"), waiter("b")
    queue = queue_of(first, second, other)
    assert queue.withdraw(first.ticket) is first
    assert queue.withdraw(first.ticket) is None
    assert taken(queue) == [second, other]
    assert (len(queue), queue.keys) == (0, [])


def test_time_ends_the_wait_at_its_own_moment() -> None:
    soon, late = waiter(deadline_s=2.0), waiter("b", deadline_s=3.0)
    queue = queue_of(late, soon)
    assert queue.next_expiry_s == 2.0
    assert queue.expire(1.99) == []
    assert queue.expire(2.0) == [soon]
    assert queue.next_expiry_s == 3.0
    assert queue.take(KEY, 2.5) is late
    assert queue.next_expiry_s is None
    assert queue.expire(10.0) == []


def test_lines_are_kept_apart() -> None:
    elsewhere = CandidateKey(DIGITS, V1, THERE)
    any_version = CandidateKey(DIGITS, ModelVersion(""), HERE)
    queue = queue_of(waiter(), waiter(key=elsewhere), waiter(key=any_version), waiter(key=OTHER_MODEL))
    assert set(queue.keys) == {KEY, elsewhere, any_version, OTHER_MODEL}
    assert [queue.waiting(key) for key in (KEY, elsewhere)] == [1, 1]
    assert len(taken(queue, key=elsewhere)) == 1
    assert len(queue) == 3


def test_a_full_queue_says_so_and_others_models_have_their_own_room() -> None:
    bounds = QueueBounds(total=5, per_model=3, tenant_share=1.0)
    queue = queue_of(*(waiter() for _ in range(3)), bounds=bounds)
    answer = refused(queue, waiter("b"))
    assert answer.bound is Bound.MODEL
    assert answer.detail.startswith("3 requests wait in the queue of model 'digits', as many as may")
    assert queue.offer(waiter(key=OTHER_MODEL), 0.0) is queue.offer(waiter(key=OTHER_MODEL), 0.0) is None
    assert refused(queue, waiter(key=OTHER_MODEL)).bound is Bound.QUEUE


def test_a_tenant_cannot_fill_it_alone_and_one_that_comes_finds_room() -> None:
    queue = CapacityQueue(QueueBounds(total=1000, per_model=100, tenant_share=0.9))
    while queue.offer(waiter("greedy"), 0.0) is None:
        pass
    assert len(queue) == 90
    answer = refused(queue, waiter("greedy"))
    assert answer.bound is Bound.TENANT
    assert "tenant 'greedy' has 90 requests waiting in the queue of model 'digits', its part of the 100" in answer.detail
    assert queue.offer(waiter("modest"), 0.0) is None


def test_who_would_be_served_too_late_is_told_at_once() -> None:
    queue = queue_of(*(waiter(deadline_s=15) for _ in range(20)))
    now_s = moving(queue, 1.0)
    assert queue.waiting(KEY) == 14
    answer = refused(queue, waiter(now_s=now_s, deadline_s=now_s + 10), now_s)
    assert answer.bound is Bound.TIME
    assert answer.detail.startswith("14 requests for model 'digits' are to be served before this one, which takes about 14.0 s")
    assert answer.retry_after_s == pytest.approx(4.0)
    assert queue.offer(waiter(now_s=now_s, deadline_s=now_s + 15), now_s) is None
    # What is more urgent comes before them, another tenant's after one of them, a higher class before all.
    assert queue.offer(waiter(now_s=now_s, deadline_s=now_s + 2), now_s) is None
    assert queue.offer(waiter("b", now_s=now_s, deadline_s=now_s + 2), now_s) is None
    assert queue.offer(waiter(now_s=now_s, deadline_s=now_s + 1, priority_class=0), now_s) is None


def test_nobody_is_turned_away_for_time_while_it_is_not_known_how_fast_the_line_moves_or_it_would_be_first() -> None:
    queue = queue_of(*(waiter() for _ in range(50)))
    assert queue.offer(waiter(deadline_s=0.01), 0.0) is None
    first = CapacityQueue()
    assert first.offer(waiter(deadline_s=0.0), 0.0) is None


def test_a_line_that_stands_still_turns_more_away() -> None:
    queue = queue_of(*(waiter() for _ in range(12)))
    now_s = moving(queue, 1.0)
    ten_s = waiter(deadline_s=now_s + 100 + 10)
    assert queue.offer(waiter(deadline_s=now_s + 10), now_s) is None
    assert refused(queue, ten_s, now_s + 100).bound is Bound.TIME


def test_each_of_those_that_are_turned_away_is_told_a_place_of_its_own() -> None:
    queue = queue_of(*(waiter() for _ in range(16)), bounds=QueueBounds(per_model=16, tenant_share=1.0))
    for _ in range(6):
        queue.offer(waiter(), 0.0)
    now_s = moving(queue, 2.0)
    while queue.offer(waiter(now_s=now_s), now_s) is None:
        pass
    told = [refused(queue, waiter(now_s=now_s), now_s).retry_after_s for _ in range(3)]
    assert told == pytest.approx([4.0, 6.0, 8.0])  # 2.0 s was told to the one that ended the filling


@pytest.mark.parametrize(("every_s", "told_s"), [(0.001, 0.1), (500.0, 60.0)])
def test_what_is_told_is_bounded(every_s: float, told_s: float) -> None:
    queue = queue_of(*(waiter(deadline_s=1e9) for _ in range(8)), bounds=QueueBounds(per_model=8, tenant_share=1.0))
    now_s = moving(queue, every_s, 4)
    for _ in range(4):
        assert queue.offer(waiter(deadline_s=1e9), now_s) is None
    assert refused(queue, waiter(deadline_s=1e9), now_s).retry_after_s == told_s
