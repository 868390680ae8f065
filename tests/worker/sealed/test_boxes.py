"""Which boxes are remembered, and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.sealed.boxes import Boxes
from worker.sealed.types import ReservationWorn, SealedReplayed


@given(st.lists(st.tuples(st.sampled_from("abc"), st.binary(max_size=2))))
def test_each_box_is_opened_once_for_each_reservation(sent: list[tuple[str, bytes]]) -> None:
    boxes, seen = Boxes(lambda _: True, at_most=1_000), set[tuple[str, bytes]]()
    for hold_id, box in sent:
        if (hold_id, box) in seen:
            with pytest.raises(SealedReplayed):
                boxes.note(hold_id, box)
        else:
            boxes.note(hold_id, box)
        seen.add((hold_id, box))


def test_what_is_over_is_forgotten_when_another_begins() -> None:
    kept = {"a", "b"}
    boxes = Boxes(kept.__contains__, at_most=10)
    for hold_id in ("a", "b"):
        boxes.note(hold_id, b"box")
    kept.clear()
    kept.add("c")
    boxes.note("c", b"box")
    assert len(boxes) == 1


def test_a_reservation_is_worn_after_so_many() -> None:
    boxes = Boxes(lambda _: True, at_most=2)
    boxes.note("a", b"1")
    boxes.note("a", b"2")
    with pytest.raises(ReservationWorn):
        boxes.note("a", b"3")
    with pytest.raises(SealedReplayed):
        boxes.note("a", b"1")
    boxes.note("b", b"3")
