"""The error table: one class, one code, one reason; and the way back from the wire."""

import pytest

from runtime.errors import Code, DataLoss, Internal, PenstockError, ResourceExhausted, error_from_wire


class QueueFullForTest(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="QUEUE_FULL_FOR_TEST"):
    """A reason that only this module knows."""


def test_known_reason_comes_back_as_its_class() -> None:
    error = error_from_wire(8, "QUEUE_FULL_FOR_TEST", "full", 1.5)
    assert type(error) is QueueFullForTest
    assert (error.message, error.retry_after_s) == ("full", 1.5)


def test_unknown_reason_falls_back_to_the_code() -> None:
    assert type(error_from_wire(15, "SOMETHING_NEWER", "m")) is DataLoss


def test_reason_with_another_code_is_not_believed() -> None:
    assert type(error_from_wire(8, "DATA_LOSS", "m")) is ResourceExhausted


def test_code_outside_the_table_is_internal() -> None:
    assert type(error_from_wire(99, "", "m")) is Internal


def test_a_reason_belongs_to_one_class() -> None:
    with pytest.raises(TypeError, match="taken by"):
        type("Other", (PenstockError,), {}, code=Code.NOT_FOUND, reason="QUEUE_FULL_FOR_TEST")
