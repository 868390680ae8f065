"""The queue's rules, as tables and as invariants over any sequence of arrivals, withdrawals, expiries and takes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.onnx_models import spec
from worker.batching.queue import BatchPolicy, BatchQueue, QueueFull, Waiting, allowed_wait_s, batch_policy
from worker.types import BatchingSpec, QueuePolicy, TimeoutAction

Entry = Waiting[str]


def waiting(
    name: str = "",
    rows: int = 1,
    shape: object = "a",
    at_s: float = 0.0,
    priority: int = 0,
    expires_s: float | None = None,
    deadline_s: float | None = None,
) -> Entry:
    return Waiting(name, rows, shape, at_s, priority, expires_s, deadline_s)


def names(taken: Iterable[Entry]) -> str:
    return "".join(entry.work for entry in taken)


@pytest.mark.parametrize(
    ("policy", "requests", "now_s", "taken"),
    [
        pytest.param(BatchPolicy(8), [("a", 1)], 0, "a", id="alone it goes at once"),
        pytest.param(BatchPolicy(8), [("a", 3), ("b", 3), ("c", 3)], 0, "ab", id="rows count, not requests"),
        pytest.param(BatchPolicy(8), [("a", 3), ("b", 6), ("c", 1)], 0, "a", id="nothing overtakes to fill a gap"),
        pytest.param(BatchPolicy(0), [("a", 1), ("b", 1)], 0, "a", id="no batch dimension: one at a time"),
        pytest.param(BatchPolicy(8, delay_s=1), [("a", 1)], 0.5, "", id="a delay that has not passed"),
        pytest.param(BatchPolicy(8, delay_s=1), [("a", 1)], 1.0, "a", id="a delay that has"),
        pytest.param(BatchPolicy(8, delay_s=1), [("a", 4), ("b", 4)], 0, "ab", id="full does not wait"),
        pytest.param(BatchPolicy(8, delay_s=1), [("a", 4), ("b", 5)], 0, "a", id="cannot grow does not wait"),
        pytest.param(BatchPolicy(8, 1, frozenset({2})), [("a", 1), ("b", 1), ("c", 1)], 0, "ab", id="a preferred size"),
        pytest.param(BatchPolicy(8, 1, frozenset({2, 4})), [("a", 2), ("b", 2)], 0, "ab", id="the largest preferred size"),
        pytest.param(BatchPolicy(4, 1, frozenset({2})), [("a", 2), ("b", 2)], 0, "ab", id="full goes before preferred"),
        pytest.param(BatchPolicy(8, 0, frozenset({4})), [("a", 1)], 0, "a", id="no delay waits for no preferred size"),
    ],
)
def test_what_goes_next(policy: BatchPolicy, requests: list[tuple[str, int]], now_s: float, taken: str) -> None:
    queue: BatchQueue[Entry] = BatchQueue(policy)
    for name, rows in requests:
        queue.offer(waiting(name, rows))
    assert names(queue.take(now_s)) == taken


def test_another_shape_ends_the_batch() -> None:
    queue: BatchQueue[Entry] = BatchQueue(BatchPolicy(8, delay_s=1))
    for name, shape in (("a", 1), ("b", 1), ("c", 2), ("d", 1)):
        queue.offer(waiting(name, shape=shape))
    assert [names(queue.take(0)), names(queue.take(0)), names(queue.take(0))] == ["ab", "c", ""]


def test_the_urgent_go_first() -> None:
    queue: BatchQueue[Entry] = BatchQueue(BatchPolicy(2, priority_levels=3, default_priority=3))
    for name, priority in (("a", 3), ("b", 1), ("c", 3), ("d", 1), ("e", 2)):
        queue.offer(waiting(name, priority=priority))
    assert [names(queue.take(0)) for _ in range(3)] == ["bd", "ea", "c"]


def test_a_priority_that_is_none_of_the_levels_is_the_default_one() -> None:
    queue: BatchQueue[Entry] = BatchQueue(BatchPolicy(1, priority_levels=3, default_priority=2))
    for name, priority in (("a", 3), ("b", 0), ("c", 4), ("d", 2**60), ("e", 1)):
        queue.offer(waiting(name, priority=priority))
    assert names(queue) == "ebcda"


def test_without_levels_all_requests_are_alike() -> None:
    queue: BatchQueue[Entry] = BatchQueue(BatchPolicy(8))
    for name, priority in (("a", 9), ("b", 1), ("c", 0)):
        queue.offer(waiting(name, priority=priority))
    assert names(queue) == "abc"


def test_a_full_queue_says_so_and_a_withdrawn_request_frees_its_place() -> None:
    queue: BatchQueue[Entry] = BatchQueue(BatchPolicy(1, max_requests=2))
    first, second = waiting("a"), waiting("b")
    queue.offer(first)
    queue.offer(second)
    with pytest.raises(QueueFull, match="Exceeds maximum queue size: 2 of 2 requests wait; "):
        queue.offer(waiting("c"))
    assert queue.withdraw(first)
    assert not queue.withdraw(first)
    queue.offer(waiting("d"))
    assert names(queue) == "bd"


def test_a_full_level_leaves_the_others_open_and_the_whole_queue_is_bounded_beside_it() -> None:
    policy = BatchPolicy(1, max_requests=3, priority_levels=2, default_priority=2, queues={1: QueuePolicy(max_queue_size=1)})
    queue: BatchQueue[Entry] = BatchQueue(policy)
    queue.offer(waiting("a", priority=1))
    with pytest.raises(QueueFull, match="1 of 1 requests wait at this priority"):
        queue.offer(waiting("b", priority=1))
    queue.offer(waiting("c"))
    queue.offer(waiting("d"))
    with pytest.raises(QueueFull, match="3 of 3 requests wait; "):
        queue.offer(waiting("e"))


@pytest.mark.parametrize(
    ("default_s", "may_override", "asked_s", "allowed_s"),
    [
        (None, True, None, None),
        (None, True, 3.0, 3.0),
        (None, False, 3.0, None),
        (5.0, True, None, 5.0),
        (5.0, True, 3.0, 3.0),
        (5.0, True, 9.0, 5.0),
        (5.0, False, 3.0, 5.0),
    ],
)
def test_a_request_may_shorten_its_wait_where_the_policy_lets_it(
    default_s: float | None, may_override: bool, asked_s: float | None, allowed_s: float | None
) -> None:
    policy = QueuePolicy(default_timeout_s=default_s, allow_timeout_override=may_override)
    assert allowed_wait_s(policy, asked_s) == allowed_s


def test_each_level_has_a_timeout_of_its_own() -> None:
    policy = BatchPolicy(
        8,
        priority_levels=2,
        default_priority=2,
        queues={1: QueuePolicy(default_timeout_s=1), 2: QueuePolicy(default_timeout_s=5)},
    )
    queue: BatchQueue[Entry] = BatchQueue(policy)
    queue.offer(waiting("a", priority=1))
    queue.offer(waiting("b", priority=2))
    assert queue.earliest_s == 1
    assert names(queue.overdue(4.9)) == "a"
    assert names(queue.overdue(5)) == "ab"


DELAYS = QueuePolicy(TimeoutAction.DELAY, default_timeout_s=1)


def test_the_delayed_run_when_nothing_in_time_waits_and_the_oldest_first() -> None:
    policy = BatchPolicy(1, priority_levels=2, default_priority=2, queues={1: DELAYS})
    queue: BatchQueue[Entry] = BatchQueue(policy)
    queue.offer(waiting("b", at_s=0.5, priority=1))
    queue.offer(waiting("a", at_s=0.0, priority=1), timeout_s=0.9)
    assert not queue.overdue(1)
    assert not queue.overdue(2)
    queue.offer(waiting("c", at_s=2, priority=2))
    queue.offer(waiting("d", at_s=2, priority=1))
    assert names(queue) == "dcab"
    assert "".join(names(queue.take(2)) for _ in range(4)) == "dcab"


def test_a_delayed_request_still_has_its_deadline_and_its_place_counts() -> None:
    queue: BatchQueue[Entry] = BatchQueue(BatchPolicy(1, default_queue=QueuePolicy(TimeoutAction.DELAY, 1, max_queue_size=1)))
    late = waiting("a", deadline_s=5)
    queue.offer(late)
    assert not queue.overdue(2)
    assert late.late
    assert queue.earliest_s == 5
    with pytest.raises(QueueFull):
        queue.offer(waiting("b", at_s=2))
    assert names(queue.overdue(5)) == "a"
    queue.abandon(late)
    queue.offer(waiting("c", at_s=5))
    assert queue.requests == queue.rows == 1


def test_when_it_is_due() -> None:
    queue: BatchQueue[Entry] = BatchQueue(BatchPolicy(8, delay_s=2, priority_levels=2, default_priority=1))
    assert queue.due_s() is None
    queue.offer(waiting("a", at_s=5, priority=2))
    queue.offer(waiting("b", at_s=6, priority=1))
    assert queue.due_s() == 7


def test_a_manifest_gives_the_policy() -> None:
    own = QueuePolicy(TimeoutAction.DELAY, 1.0, False, 7)
    batching = BatchingSpec(2500, (4, 8), 0, 3, 2, QueuePolicy(max_queue_size=5), {1: own}, False)
    assert batch_policy(spec(max_batch_size=16, batching=batching)) == BatchPolicy(
        16, 0.0025, frozenset({4, 8}), 1024, 3, 2, QueuePolicy(max_queue_size=5), {1: own}
    )


QUEUES = st.builds(
    QueuePolicy,
    timeout_action=st.sampled_from(TimeoutAction),
    default_timeout_s=st.none() | st.integers(1, 20).map(float),
    allow_timeout_override=st.booleans(),
    max_queue_size=st.sampled_from((0, 1, 3)),
)
POLICIES = st.integers(0, 3).flatmap(
    lambda levels: st.builds(
        BatchPolicy,
        max_rows=st.integers(0, 6),
        delay_s=st.sampled_from((0.0, 3.0)),
        preferred_rows=st.frozensets(st.integers(1, 6), max_size=2),
        max_requests=st.integers(1, 8),
        priority_levels=st.just(levels),
        default_priority=st.integers(1, levels) if levels else st.just(0),
        default_queue=QUEUES,
        queues=st.dictionaries(st.integers(1, levels), QUEUES) if levels else st.just({}),
    )
)
LIMITS = st.none() | st.integers(1, 30).map(float)
ARRIVALS = st.tuples(st.just("arrive"), st.integers(1, 6), st.integers(0, 1), st.integers(0, 4), LIMITS, LIMITS)
STEPS = st.lists(
    ARRIVALS | st.tuples(st.sampled_from(("take", "expire"))) | st.tuples(st.just("withdraw"), st.integers(0, 20)), max_size=60
)


class Rules:
    """What is to hold of a queue, told by what goes in and comes out."""

    def __init__(self, policy: BatchPolicy) -> None:
        self.policy = policy
        self.queue: BatchQueue[Entry] = BatchQueue(policy)
        self.inside: list[Entry] = []

    def limits(self, entry: Entry) -> QueuePolicy:
        return self.policy.queues.get(entry.priority, self.policy.default_queue)

    def arrive(self, entry: Entry, timeout_s: float | None) -> None:
        known = 1 <= entry.priority <= self.policy.priority_levels
        level = entry.priority if known else self.policy.default_priority
        same = sum(other.priority == level for other in self.inside)
        bound = self.policy.queues.get(level, self.policy.default_queue).max_queue_size or math.inf
        if len(self.inside) == self.policy.max_requests or same >= bound:
            with pytest.raises(QueueFull):
                self.queue.offer(entry, timeout_s)
            return
        self.queue.offer(entry, timeout_s)
        assert entry.priority == level
        self.inside.append(entry)

    def expire(self, now_s: float) -> list[Entry]:
        before = set(map(id, self.inside))
        gone = list(self.queue.overdue(now_s))
        assert before == set(map(id, self.queue)), "the caller withdraws"
        for entry in self.inside:
            over = entry.deadline_s is not None and entry.deadline_s <= now_s
            expired = entry.expires_s is not None and entry.expires_s <= now_s
            rejects = self.limits(entry).timeout_action is TimeoutAction.REJECT
            assert (entry in gone) == (over or (expired and rejects)), "rejected when its time is up, and only then"
            assert entry.late == (expired and not rejects and entry not in gone) or over, "delayed, and only then"
        for entry in gone:
            assert not self.queue.abandon(entry)
        assert self.queue.earliest_s > now_s
        return gone

    def take(self, now_s: float) -> tuple[list[Entry], list[Entry]]:
        expired = self.expire(now_s)
        for entry in expired:
            self.inside.remove(entry)
        due_s = self.queue.due_s()
        taken = list(self.queue.take(now_s))
        # Sorting is stable: arrival order within a priority.
        in_order = sorted(self.inside, key=lambda e: (e.late, e.arrived_s if e.late else 0, 0 if e.late else e.priority))
        assert [e.arrived_s for e in taken] == [e.arrived_s for e in in_order[: len(taken)]]
        assert all(e in in_order[: len(taken)] for e in taken), "the urgent first, then first in first out, the late last"
        assert len({e.shape for e in taken}) <= 1, "one shape"
        assert len(taken) <= 1 or sum(e.rows for e in taken) <= self.policy.max_rows, "capacity"
        for entry in taken:
            if self.limits(entry).timeout_action is TimeoutAction.REJECT:
                assert entry.expires_s is None or entry.expires_s > now_s, "nothing expired is executed"
        if due_s is not None and due_s <= now_s:
            assert taken, "what is due goes"
        return expired, taken


@given(POLICIES, STEPS)
def test_every_request_leaves_once_in_order_in_time_and_within_bounds(
    policy: BatchPolicy, steps: list[tuple[object, ...]]
) -> None:
    rules = Rules(policy)
    for now_s, step in enumerate(steps):
        gone: list[Entry] = []
        match step:
            case ("arrive", int(rows), shape, int(priority), timeout_s, deadline_s):
                deadline_at_s = None if deadline_s is None else now_s + deadline_s  # type: ignore[operator]
                rules.arrive(waiting("", rows, shape, now_s, priority, None, deadline_at_s), timeout_s)  # type: ignore[arg-type]
            case ("withdraw", int(index)) if rules.inside:
                gone = [rules.inside[index % len(rules.inside)]]
                assert rules.queue.withdraw(gone[0])
            case ("expire",):
                gone = rules.expire(now_s)
            case ("take",):
                _, gone = rules.take(now_s)
        for entry in gone:
            rules.inside.remove(entry)
            assert not entry.queued
            assert not rules.queue.withdraw(entry), "it left once"
        queue = rules.queue
        assert queue.requests == len(rules.inside) <= policy.max_requests
        assert queue.rows == sum(e.rows for e in rules.inside)
        assert Counter(map(id, queue)) == Counter(map(id, rules.inside)), "conservation"
        for entry in rules.inside:
            for limit_s in (None if entry.late else entry.expires_s, entry.deadline_s):
                assert limit_s is None or queue.earliest_s <= limit_s, "nothing expires unseen"
