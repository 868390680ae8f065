"""Parts and chunks of files of any size: nothing twice, nothing left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.files.layout import Layout
from registry.files.parts import runs
from registry.files.types import ObjectId, object_id_in, part_key
from runtime.sealed_chunks import CHUNK_BYTES, OVERHEAD_BYTES

SIZES = st.one_of(
    st.integers(0, 70 * CHUNK_BYTES),
    st.builds(lambda parts, off: max(0, parts * CHUNK_BYTES + off), st.integers(0, 40), st.integers(-1, 1)),
)
LAYOUTS = st.builds(Layout, SIZES, st.integers(1, 8).map(lambda chunks: chunks * CHUNK_BYTES))


@given(LAYOUTS)
def test_parts_make_the_file_and_chunks_make_the_parts(layout: Layout) -> None:
    sizes = [layout.part_size(number) for number in range(layout.part_count)]
    assert sum(sizes) == layout.size_bytes
    assert all(0 < size <= layout.part_bytes for size in sizes)
    assert all(size == layout.part_bytes for size in sizes[:-1])
    chunks = [chunk for number in range(layout.part_count) for chunk in layout.chunks_of(number)]
    assert chunks == list(range(layout.chunk_count))
    assert [layout.part_of(chunk) for chunk in chunks] == [
        number for number in range(layout.part_count) for _ in layout.chunks_of(number)
    ]
    for number in range(layout.part_count):
        assert sum(layout.chunk_size(chunk) for chunk in layout.chunks_of(number)) == layout.part_size(number)


@given(LAYOUTS, st.integers(1, 9), st.data())
def test_runs_are_the_rest_of_the_file_in_stored_order(layout: Layout, at_once: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, layout.chunk_count))
    made = list(runs(layout, first, at_once))
    assert [chunk for run in made for chunk in run.chunks] == list(range(first, layout.chunk_count))
    for run in made:
        assert 1 <= len(run.chunks) <= at_once
        assert run.size_bytes == sum(layout.chunk_size(chunk) + OVERHEAD_BYTES for chunk in run.chunks)
        assert run.start_byte + run.size_bytes <= layout.sealed_part_size(run.part)
        ends = run.chunks.stop == layout.chunks_of(run.part).stop
        assert (run.start_byte + run.size_bytes == layout.sealed_part_size(run.part)) == ends


@given(st.binary(min_size=16, max_size=16), st.integers(0, 10_000))
def test_a_key_tells_its_object(object_id: bytes, number: int) -> None:
    assert object_id_in(part_key(object_id, number)) == ObjectId(object_id)


@pytest.mark.parametrize(
    "key", ["objects/xyz/0", f"objects/{'zz' * 16}/0", f"objects/{'0a' * 16}", "other/0a/0", "objects/a/b/c"]
)
def test_what_others_put_there_is_no_object_of_ours(key: str) -> None:
    assert object_id_in(key) is None
