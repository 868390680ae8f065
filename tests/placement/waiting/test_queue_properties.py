"""The capacity queue over any arrivals: nothing is lost, nobody is starved, shares hold, and what is told is true."""

from __future__ import annotations

from collections import Counter
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from placement.types import CandidateKey
from placement.waiting.fair_turns import Ticket, Waiter
from placement.waiting.queue import Bound, CapacityQueue, QueueBounds
from runtime.ids import ModelName, ModelVersion, Region, TenantId, WorkerId
from tests.placement.waiting.test_queue import KEY, tenants

KEYS = [CandidateKey(ModelName(model), ModelVersion(""), Region("here")) for model in ("digits", "sums")]
SHARES = {"a": 1, "b": 2, "c": 5}
UNBOUNDED = QueueBounds(10_000, 10_000, 1.0)
workers = st.sampled_from(["w1", "w2"]).map(WorkerId)
drawn = st.builds(
    lambda key, tenant, deadline_s, place, priority, excluded: (key, tenant, deadline_s, place, priority, excluded),
    st.sampled_from(KEYS),
    st.sampled_from(sorted(SHARES)),
    st.integers(0, 20),
    st.integers(0, 2),
    st.integers(0, 3),
    st.frozensets(workers, max_size=2),
)


def waiter_of(
    ticket: int,
    key: CandidateKey,
    tenant: str,
    now_s: float,
    wait_s: float = 1000.0,
    place: int = 1,
    priority: int = 0,
    exclude: frozenset[WorkerId] = frozenset(),
) -> Waiter:
    return Waiter(Ticket(ticket), key, TenantId(tenant), now_s, now_s + wait_s, place, SHARES.get(tenant, 1), priority, exclude)


class Queueing(RuleBasedStateMachine):
    """Requests come, are served, give up and run out of time, in any order; two queues that see the same do the same."""

    @initialize(total=st.integers(1, 12), per_model=st.integers(1, 8), share=st.sampled_from([0.5, 0.9, 1.0]))
    def begin(self, total: int, per_model: int, share: float) -> None:
        self.bounds = QueueBounds(total, per_model, share)
        self.queue, self.twin = CapacityQueue(self.bounds), CapacityQueue(self.bounds)
        self.now_s = 0.0
        self.waiting: dict[Ticket, Waiter] = {}
        self.ended: Counter[Ticket] = Counter()
        self.offered = 0

    @rule(asked=drawn)
    def offer(self, asked: tuple[CandidateKey, str, int, int, int, frozenset[WorkerId]]) -> None:
        key, tenant, wait_s, place, priority, exclude = asked
        waiter = waiter_of(self.offered, key, tenant, self.now_s, wait_s, place, priority, exclude)
        self.offered += 1
        answer = self.queue.offer(waiter, self.now_s)
        assert answer == self.twin.offer(waiter, self.now_s)
        if answer is None:
            self.waiting[waiter.ticket] = waiter
            return
        self.ended[waiter.ticket] += 1
        assert 0.1 <= answer.retry_after_s <= 60
        if answer.bound is not Bound.TENANT and answer.bound is not Bound.TIME:
            held = [each for each in self.waiting.values() if answer.bound is Bound.QUEUE or each.key.model == key.model]
            assert len(held) == (self.bounds.total if answer.bound is Bound.QUEUE else self.bounds.per_model)
        if answer.bound is Bound.TENANT:
            assert any(each.tenant == tenant for each in self.waiting.values())

    @rule(key=st.sampled_from(KEYS), worker=workers)
    def take(self, key: CandidateKey, worker: WorkerId) -> None:
        suited = [each for each in self.waiting.values() if each.key == key and worker not in each.exclude]
        found = self.queue.take(key, self.now_s, lambda each: worker not in each.exclude)
        assert found is self.twin.take(key, self.now_s, lambda each: worker not in each.exclude)
        assert (found is None) is (not suited)
        if found is None:
            return
        assert found in suited
        assert found.priority_class == min(each.priority_class for each in suited)
        own = [each for each in suited if (each.tenant, each.priority_class) == (found.tenant, found.priority_class)]
        assert found.urgency == min(each.urgency for each in own)
        self._end(found)

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        if self.offered:
            ticket = Ticket(data.draw(st.integers(0, self.offered - 1)))
            gone = self.queue.withdraw(ticket)
            assert gone is self.twin.withdraw(ticket)
            assert gone is self.waiting.get(ticket)
            if gone is not None:
                self._end(gone)

    @rule(passed_s=st.integers(0, 8))
    def pass_time(self, passed_s: int) -> None:
        self.now_s += passed_s
        due = {each.ticket for each in self.waiting.values() if each.deadline_s <= self.now_s}
        expired = self.queue.expire(self.now_s)
        assert expired == self.twin.expire(self.now_s)
        assert {each.ticket for each in expired} == due
        assert [each.deadline_s for each in expired] == sorted(each.deadline_s for each in expired)
        for each in expired:
            self._end(each)

    def _end(self, waiter: Waiter) -> None:
        del self.waiting[waiter.ticket]
        self.ended[waiter.ticket] += 1

    @invariant()
    def every_offer_ends_once_or_waits_and_bounds_hold(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert len(self.queue) == len(self.waiting) <= self.bounds.total
        assert self.offered == len(self.waiting) + len(self.ended)
        assert set(self.ended.values()) <= {1}
        for key in KEYS:
            there = [each for each in self.waiting.values() if each.key == key]
            assert self.queue.waiting(key) == len(there) <= self.bounds.per_model
            assert sorted(each.ticket for each in self.queue.upcoming(key)) == sorted(each.ticket for each in there)
        assert self.queue.next_expiry_s == min((each.deadline_s for each in self.waiting.values()), default=None)


TestQueueing = Queueing.TestCase
TestQueueing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

arrivals = st.lists(st.sampled_from(["a", "b", "c", "take", "take", "take"]), max_size=80)


@given(arrivals=arrivals)
@settings(max_examples=150, deadline=None)
def test_the_order_that_is_told_is_the_order_in_which_they_are_taken(arrivals: list[str]) -> None:
    queue, tickets = CapacityQueue(UNBOUNDED), count()
    for each in arrivals:
        if each == "take":
            queue.take(KEY, 0.0)
        else:
            assert queue.offer(waiter_of(next(tickets), KEY, each, 0.0), 0.0) is None
    told = queue.upcoming(KEY)
    assert told == [queue.take(KEY, 0.0) for _ in told]


@given(before=arrivals, during=st.lists(st.sampled_from(["a", "b", "c", "d", ""]), min_size=1, max_size=200))
@settings(max_examples=150, deadline=None)
def test_backlogged_tenants_are_served_by_their_shares_within_one_turn(before: list[str], during: list[str]) -> None:
    """a, b and c never run out; d comes and goes. From any moment on, shares hold at every later one."""
    queue, tickets = CapacityQueue(UNBOUNDED), count()

    def offer(tenant: str) -> None:
        assert queue.offer(waiter_of(next(tickets), KEY, tenant, 0.0), 0.0) is None

    for each in before:
        if each == "take":
            queue.take(KEY, 0.0)
        else:
            offer(each)
    for tenant in SHARES:
        for _ in range(len(during) + 1):
            offer(tenant)
    served: Counter[str] = Counter()
    for each in during:
        if each:
            offer(each)
        found = queue.take(KEY, 0.0)
        assert found is not None
        served[found.tenant] += 1
        parts = [served[tenant] / share for tenant, share in SHARES.items()]
        assert max(parts) - min(parts) <= 1


@given(
    excluded=st.lists(st.tuples(st.sampled_from(sorted(SHARES)), st.booleans()), min_size=1, max_size=60),
    places=st.lists(st.booleans(), max_size=60),
)
@settings(max_examples=100, deadline=None)
def test_nobody_in_a_class_waits_longer_than_two_rounds_of_places_that_it_could_use(
    excluded: list[tuple[str, bool]], places: list[bool]
) -> None:
    """Some cannot use every place, and those that are passed over meanwhile lose nothing by it."""
    queue, w1 = CapacityQueue(UNBOUNDED), WorkerId("w1")

    def can_use_w1(waiter: Waiter) -> bool:
        return w1 not in waiter.exclude

    for ticket, (tenant, picky) in enumerate(excluded):
        queue.offer(waiter_of(ticket, KEY, tenant, 0.0, exclude=frozenset({w1} if picky else ())), 0.0)
    for is_w1 in places:
        queue.take(KEY, 0.0, can_use_w1 if is_w1 else lambda _: True)
    there = {each.tenant for each in queue.upcoming(KEY)}
    first = Counter[str]()
    for number in range(len(queue)):
        found = queue.take(KEY, 0.0)
        assert found is not None
        first.setdefault(found.tenant, number)
    assert all(first[tenant] < 2 * sum(SHARES.values()) for tenant in there)


@given(
    arrivals=st.lists(st.sampled_from("abc"), max_size=40),
    taken=st.integers(0, 20),
    tenant=st.sampled_from("abcd"),
    urgent=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_how_many_are_ahead_is_known_within_a_round(arrivals: list[str], taken: int, tenant: str, urgent: bool) -> None:
    queue = CapacityQueue(UNBOUNDED)
    for ticket, each in enumerate(arrivals):
        queue.offer(waiter_of(ticket, KEY, each, 0.0), 0.0)
    for _ in range(taken):
        queue.take(KEY, 0.0)
    newcomer = waiter_of(10_000, KEY, tenant, 0.0, 1.0 if urgent else 2000.0)
    line = queue._lines.get(KEY)
    told = line.ahead_of(newcomer) if line is not None else 0
    queue.offer(newcomer, 0.0)
    assert abs(told - queue.upcoming(KEY).index(newcomer)) <= sum(SHARES.values()) + 1


@given(
    every_s=st.sampled_from([0.2, 1.0, 3.0]),
    per_model=st.integers(2, 12),
    share=st.sampled_from([0.5, 0.9, 1.0]),
    tenant=st.sampled_from("ab"),
    callers=st.integers(1, 6),
    phase=st.floats(0.05, 0.95),
    timeouts_s=st.sampled_from([2.0, 1000.0]),
)
@settings(max_examples=150, deadline=None)
def test_in_a_steady_system_whoever_comes_back_when_it_was_told_finds_room(
    every_s: float, per_model: int, share: float, tenant: str, callers: int, phase: float, timeouts_s: float
) -> None:
    """One is served every so often, nobody else comes: each that was turned away is let in when it comes back."""
    queue, tickets = CapacityQueue(QueueBounds(1000, per_model, share)), count()
    now_s = 0.0

    def fill() -> None:
        for each in ("a", "b"):
            while queue.offer(waiter_of(next(tickets), KEY, each, 0.0, 100_000.0), now_s) is None:
                pass

    fill()
    for _ in range(40):
        now_s += every_s
        queue.take(KEY, now_s)
        fill()
    queue._promised_s.clear()  # what those were told who never meant to come back
    served_s, now_s = now_s, now_s + phase * every_s
    back: list[float] = []
    for _ in range(callers):
        answer = queue.offer(waiter_of(next(tickets), KEY, tenant, now_s, timeouts_s), now_s)
        if answer is not None and answer.retry_after_s < 60:
            back.append(now_s + answer.retry_after_s)
    for at_s in sorted(back):
        while served_s + every_s <= at_s + 1e-9:
            served_s += every_s
            queue.take(KEY, served_s)
        answer = queue.offer(waiter_of(next(tickets), KEY, tenant, at_s, 100_000.0), at_s)
        assert answer is None, answer


def test_the_order_does_not_depend_on_anything_but_what_came() -> None:
    first, second = CapacityQueue(), CapacityQueue()
    for queue in (first, second):
        for ticket in range(60):
            queue.offer(waiter_of(ticket, KEY, "abc"[ticket % 3], 0.0, 10 + ticket % 7), 0.0)
    assert tenants(first.upcoming(KEY)) == tenants(second.upcoming(KEY))
