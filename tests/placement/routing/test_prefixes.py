"""Prompts' beginnings: what their hashes share, and who is remembered for them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from placement.routing.prefixes import BLOCK_BYTES, HOLDERS, MAX_BLOCKS, PrefixMemory, hashes_of
from runtime.ids import WorkerId

A, B = WorkerId("a"), WorkerId("b")


@given(st.binary(max_size=200), st.binary(max_size=200), st.integers(1, 16), st.integers(1, 8))
def test_hashes_are_shared_exactly_as_far_as_the_text_is(one: bytes, other: bytes, block: int, at_most: int) -> None:
    mine, theirs = hashes_of(one, block, at_most), hashes_of(other, block, at_most)
    assert len(mine) == min(len(one) // block, at_most)
    for count in range(min(len(mine), len(theirs))):
        same = one[: (count + 1) * block] == other[: (count + 1) * block]
        assert (mine[: count + 1] == theirs[: count + 1]) is same
        assert (mine[count] == theirs[count]) is same


@given(st.text(max_size=100), st.integers(1, 16))
def test_text_is_its_bytes(text: str, block: int) -> None:
    assert hashes_of(text, block) == hashes_of(text.encode(errors="surrogatepass"), block)


def test_salts_keep_tenants_apart_and_long_prompts_cost_no_more() -> None:
    prompt = "x" * BLOCK_BYTES * (MAX_BLOCKS + 9)
    assert len(hashes_of(prompt)) == MAX_BLOCKS
    assert not set(hashes_of(prompt, salt="acme/llama")) & set(hashes_of(prompt, salt="other/llama"))
    assert hashes_of("short") == ()


def test_who_saw_how_much() -> None:
    memory = PrefixMemory()
    memory.learn((1, 2, 3, 4), A, 1)
    memory.learn((1, 2, 9), B, 2)
    assert memory.matches((1, 2, 3, 4)) == {(A, 1): 1.0, (B, 2): 0.5}
    assert memory.matches((1, 2, 9, 10)) == {(A, 1): 0.5, (B, 2): 0.75}
    assert memory.matches((7, 2, 3, 4)) == {}, "without its beginning nothing matches"
    assert memory.matches(()) == {}


def test_a_worker_that_came_back_has_seen_nothing() -> None:
    memory = PrefixMemory()
    memory.learn((1, 2), A, 1)
    memory.learn((1,), A, 5)
    assert memory.matches((1, 2)) == {(A, 5): 0.5}


prefixes = st.integers(0, 3).flatmap(lambda root: st.integers(1, 6).map(lambda size: tuple(root * 10 + n for n in range(size))))


@given(st.lists(st.tuples(prefixes, st.integers(0, 6)), max_size=40), st.integers(1, 20))
def test_memory_is_bounded_and_never_claims_what_was_not_seen(lessons: list[tuple[tuple[int, ...], int]], kept: int) -> None:
    memory, seen = PrefixMemory(kept), dict[WorkerId, set[int]]()
    for prefix, number in lessons:
        who = WorkerId(f"w{number}")
        memory.learn(prefix, who, 1)
        seen.setdefault(who, set()).update(prefix)
        assert len(memory) <= kept
        if len(prefix) <= kept:
            assert memory.matches(prefix)[who, 1] == 1.0, "the latest lesson is always known"
        for (holder, _), share in memory.matches(prefix).items():
            assert set(prefix[: round(share * len(prefix))]) <= seen[holder]
        assert len(memory.matches(prefix)) <= HOLDERS
