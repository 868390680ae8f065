"""The cache's rows: what belongs to a sequence stays with it, wherever its row goes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engines.llm.key_values import KeyValues, Place

SLOTS, CONTEXT = 5, 600
NAMES = (("past.0.key", "present.0.key"), ("past.0.value", "present.0.value"))


def cache() -> KeyValues:
    return KeyValues(NAMES, (2, 4), np.float32, slots=SLOTS, context_length=CONTEXT)


def write(values: KeyValues, slot: int, length: int, content: float) -> None:
    for _, _, array in values.views(Place(values.row(slot), 1)):
        array[0, :, :length] = content


def content(values: KeyValues, slot: int, length: int) -> set[float]:
    views = list(values.views(Place(values.row(slot), 1)))
    return {float(value) for _, _, array in views for value in array[0, :, :length].reshape(-1)}


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 20), min_size=SLOTS, max_size=SLOTS),
    st.lists(st.sets(st.integers(0, SLOTS - 1), min_size=1).map(sorted), min_size=1, max_size=10),
    st.integers(0, 9),
)
def test_each_step_finds_its_sequences_first_and_every_sequence_whole(
    lengths: list[int], steps: list[list[int]], grown_at: int
) -> None:
    values = cache()
    for slot, length in enumerate(lengths):
        write(values, slot, length, slot + 1)
    for index, slots in enumerate(steps):
        if index == grown_at:
            assert values.grow(300, lengths)
        values.gather(slots, lengths)
        assert sorted(values.row(slot) for slot in slots) == list(range(len(slots)))
        assert sorted(values.row(slot) for slot in range(SLOTS)) == list(range(SLOTS))
        for slot, length in enumerate(lengths):
            assert content(values, slot, length) == {slot + 1}


def test_it_grows_by_doubling_up_to_the_context_and_shrinks_back() -> None:
    values = cache()
    assert (values.tokens, values.grow(256, [0] * SLOTS)) == (256, False)
    assert (values.grow(257, [0] * SLOTS), values.tokens) == (True, 512)
    assert (values.grow(CONTEXT, [0] * SLOTS), values.tokens) == (True, CONTEXT)
    assert (values.shrink(), values.tokens) == (True, 256)
    assert not values.shrink()


@pytest.mark.parametrize("place", [Place(0, 3), Place(2, 1), Place(0, SLOTS)])
def test_views_are_the_memory_itself(place: Place) -> None:
    values = cache()
    for past, present, array in values.views(place):
        assert (past, present) in NAMES
        assert array.flags.c_contiguous
        array[:] = 7
    assert content(values, place.first, 256) == {7}
