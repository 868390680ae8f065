"""The queue's rules, as tables and as invariants over any sequence of arrivals, withdrawals and takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.batching import BatchPolicy, BatchQueue, QueueFull, Waiting


def waiting(
    name: str = "", rows: int = 1, shape: object = "a", at_s: float = 0.0, priority: int = 100, expires_s: float | None = None
) -> Waiting[str]:
    return Waiting(name, rows, shape, at_s, priority, expires_s)


def names(taken: object) -> str:
    return "".join(entry.work for entry in taken)  # type: ignore[attr-defined]


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
    queue: BatchQueue[str] = BatchQueue(policy)
    for name, rows in requests:
        queue.offer(waiting(name, rows))
    assert names(queue.take(now_s)) == taken


def test_another_shape_ends_the_batch() -> None:
    queue: BatchQueue[str] = BatchQueue(BatchPolicy(8, delay_s=1))
    for name, shape in (("a", 1), ("b", 1), ("c", 2), ("d", 1)):
        queue.offer(waiting(name, shape=shape))
    assert [names(queue.take(0)), names(queue.take(0)), names(queue.take(0))] == ["ab", "c", ""]


def test_the_urgent_go_first() -> None:
    queue: BatchQueue[str] = BatchQueue(BatchPolicy(2))
    for name, priority in (("a", 100), ("b", 1), ("c", 100), ("d", 1), ("e", 7)):
        queue.offer(waiting(name, priority=priority))
    assert [names(queue.take(0)) for _ in range(3)] == ["bd", "ea", "c"]


def test_a_full_queue_says_so_and_a_withdrawn_request_frees_its_place() -> None:
    queue: BatchQueue[str] = BatchQueue(BatchPolicy(1, max_requests=2))
    first, second = waiting("a"), waiting("b")
    queue.offer(first)
    queue.offer(second)
    with pytest.raises(QueueFull, match="Exceeds maximum queue size: 2 of 2"):
        queue.offer(waiting("c"))
    assert queue.withdraw(first)
    assert not queue.withdraw(first)
    queue.offer(waiting("d"))
    assert names(queue) == "bd"


def test_when_it_is_due() -> None:
    queue: BatchQueue[str] = BatchQueue(BatchPolicy(8, delay_s=2))
    assert queue.due_s() is None
    queue.offer(waiting("a", at_s=5, priority=100))
    queue.offer(waiting("b", at_s=6, priority=1))
    assert queue.due_s() == 7


POLICIES = st.builds(
    BatchPolicy,
    max_rows=st.integers(0, 6),
    delay_s=st.sampled_from((0.0, 3.0)),
    preferred_rows=st.frozensets(st.integers(1, 6), max_size=2),
    max_requests=st.integers(1, 8),
)
ARRIVALS = st.tuples(
    st.just("arrive"), st.integers(1, 6), st.integers(0, 1), st.sampled_from((1, 2)), st.none() | st.integers(0, 30)
)
STEPS = st.lists(
    ARRIVALS | st.tuples(st.sampled_from(("take", "expire"))) | st.tuples(st.just("withdraw"), st.integers(0, 20)), max_size=60
)


@given(POLICIES, STEPS)
def test_every_request_leaves_once_in_order_and_within_bounds(policy: BatchPolicy, steps: list[tuple[object, ...]]) -> None:
    queue: BatchQueue[str] = BatchQueue(policy)
    inside: list[Waiting[str]] = []
    for now_s, step in enumerate(steps):
        gone: list[Waiting[str]] = []
        match step:
            case ("arrive", int(rows), shape, int(priority), expires_s):
                entry = waiting("", rows, shape, now_s, priority, expires_s)  # type: ignore[arg-type]
                if len(inside) == policy.max_requests:
                    with pytest.raises(QueueFull):
                        queue.offer(entry)
                else:
                    queue.offer(entry)
                    inside.append(entry)
            case ("withdraw", int(index)) if inside:
                gone = [inside[index % len(inside)]]
                assert queue.withdraw(gone[0])
            case ("expire",):
                gone = queue.expire(now_s)
                assert gone == [
                    e for e in sorted(inside, key=lambda e: e.priority) if e.expires_s is not None and e.expires_s <= now_s
                ]
            case ("take",):
                due_s = queue.due_s()
                gone = list(queue.take(now_s))
                in_order = sorted(inside, key=lambda e: e.priority)  # stable: arrival order within a priority
                assert gone == in_order[: len(gone)]
                assert len({e.shape for e in gone}) <= 1
                assert len(gone) <= 1 or sum(e.rows for e in gone) <= policy.max_rows
                if due_s is not None and due_s <= now_s:
                    assert gone, "what is due goes"
        for entry in gone:
            inside.remove(entry)
            assert not entry.queued
        assert queue.requests == len(inside)
        assert queue.rows == sum(e.rows for e in inside)
