"""What is kept: never more than was allowed, the longest unused going first, nothing that is too old."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from gateway.cache.shelf import ENTRY_BYTES, Shelf, taken_bytes
from gateway.cache.types import Answer, CacheSettings, Key, answer_of
from runtime.ids import Digest

SMALL = CacheSettings(max_bytes=16 * 1024, ttl_s=10.0)


def key(number: int, tenant: str = "t") -> Key:
    return Key(tenant, Digest("d"), "infer", number.to_bytes(32, "big"))


def sized(size_bytes: int, messages: int = 1) -> Answer:
    return answer_of([bytes(size_bytes // messages)] * messages)


STEP = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 12), st.integers(0, 2_000), st.integers(1, 5)),
    st.tuples(st.just("get"), st.integers(0, 12), st.just(0), st.just(1)),
    st.tuples(st.just("drop"), st.integers(0, 12), st.just(0), st.just(1)),
    st.tuples(st.just("wait"), st.integers(0, 6), st.just(0), st.just(1)),
)


@given(st.lists(STEP, max_size=60))
def test_bytes_are_bounded_and_counted_to_the_last(steps: list[tuple[str, int, int, int]]) -> None:
    """And what is given back is what was put last under its key, no longer than it may be."""
    shelf, now_s, put = Shelf(SMALL), 0.0, dict[int, tuple[Answer, float]]()
    for what, number, size_bytes, messages in steps:
        if what == "put":
            answer = sized(size_bytes, messages)
            shelf.put(key(number), answer, now_s)
            put[number] = answer, now_s + SMALL.ttl_s
        elif what == "drop":
            shelf.drop(key(number))
            put.pop(number, None)
        elif what == "wait":
            now_s += number
        elif (found := shelf.get(key(number), now_s)) is not None:
            assert found is put[number][0]
            assert now_s < put[number][1]
        kept = [answer for number, (answer, _) in put.items() if shelf.get(key(number), -1.0) is not None]
        assert shelf.size_bytes == sum(map(taken_bytes, kept)) <= SMALL.max_bytes
        assert len(shelf) == len(kept)


def test_the_longest_unused_goes_first() -> None:
    shelf, fitting = Shelf(SMALL), SMALL.max_bytes // (taken_bytes(sized(500)))
    for number in range(fitting):
        shelf.put(key(number), sized(500), 0.0)
    assert shelf.get(key(0), 0.0) is not None
    shelf.put(key(fitting), sized(500), 0.0)
    assert (shelf.get(key(0), 0.0) is not None, shelf.get(key(1), 0.0), shelf.evicted) == (True, None, 1)


def test_no_answer_takes_the_place_of_many() -> None:
    shelf = Shelf(SMALL)
    shelf.put(key(1), sized(SMALL.answer_bytes), 0.0)
    shelf.put(key(2), sized(SMALL.answer_bytes + 1), 0.0)
    assert (shelf.get(key(1), 0.0) is not None, shelf.get(key(2), 0.0)) == (True, None)


def test_an_answer_that_is_too_large_takes_the_one_before_it_along() -> None:
    """What is kept under a key is never older than what was last put there."""
    shelf = Shelf(SMALL)
    shelf.put(key(1), sized(10), 0.0)
    shelf.put(key(1), sized(SMALL.answer_bytes + 1), 0.0)
    assert (shelf.get(key(1), 0.0), shelf.size_bytes) == (None, 0)


def test_many_small_messages_count_as_what_they_take() -> None:
    shelf = Shelf(SMALL)
    shelf.put(key(1), sized(1_000, 1_000), 0.0)
    assert len(shelf) == 0


def test_age() -> None:
    shelf, for_ever = Shelf(SMALL), Shelf(CacheSettings(ttl_s=0))
    for each in (shelf, for_ever):
        each.put(key(1), sized(1), 100.0)
    assert (shelf.get(key(1), 109.9) is not None, shelf.get(key(1), 110.0)) == (True, None)
    assert for_ever.get(key(1), 1e9) is not None


def test_an_entry_is_counted_as_more_than_it_takes() -> None:
    shelf, count = Shelf(CacheSettings()), 5_000
    tenant = "t" * 20
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(count):
            shelf.put(key(number, tenant), sized(64), 0.0)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    taken = (after - before) / count
    assert ENTRY_BYTES / 2 < taken < shelf.size_bytes / count
