"""Tensors as JSON has them, for every datatype, and back."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rest.errors import AnswerUnusable, OutputUnfit, RequestRefused
from gateway.rest.tensors import DTYPES, ONLY_BINARY, raw_of, rendered

INTEGERS = [name for name, dtype in DTYPES.items() if dtype is not None and dtype.kind in "iu" and name not in ONLY_BINARY]
Values = list[Any]


def back(raw: Any, datatype: str) -> Values:
    found: Values = json.loads(b"".join(rendered(bytes(raw), datatype, "x")))
    return found


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, Values]:
    datatype = draw(st.sampled_from([name for name in DTYPES if name not in ONLY_BINARY]))
    dtype = DTYPES[datatype]
    if dtype is None:
        elements: st.SearchStrategy[Any] = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    elif dtype.kind == "b":
        elements = st.booleans()
    elif dtype.kind == "f":
        elements = st.floats(width=32 if dtype.itemsize == 4 else 64, allow_nan=False)
    else:
        elements = st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    return datatype, draw(st.lists(elements, max_size=20))


@given(tensors())
def test_what_goes_in_comes_out_to_the_last_digit(tensor: tuple[str, Values]) -> None:
    datatype, values = tensor
    assert back(raw_of(json.loads(json.dumps(values)), datatype, [len(values)], "x"), datatype) == values


@given(st.lists(st.lists(st.integers(-128, 127), min_size=3, max_size=3), max_size=5))
def test_rows_are_the_same_as_one_flat_array(rows: list[list[int]]) -> None:
    flat = [value for row in rows for value in row]
    assert raw_of(rows, "INT8", [len(rows), 3], "x") == raw_of(flat, "INT8", [len(rows), 3], "x")


def test_elements_of_bytes_carry_their_length() -> None:
    assert raw_of(["a", "é"], "BYTES", [2], "x") == struct.pack("<I", 1) + b"a" + struct.pack("<I", 2) + "é".encode()


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integers_keep_their_bounds(datatype: str) -> None:
    limits = np.iinfo(DTYPES[datatype])
    assert back(raw_of([int(limits.min), int(limits.max)], datatype, [2], "x"), datatype) == [limits.min, limits.max]
    for beyond in (int(limits.min) - 1, int(limits.max) + 1):
        with pytest.raises(RequestRefused, match=f"{datatype} cannot hold"):
            raw_of([0, beyond], datatype, [2], "x")


REFUSED: list[tuple[object, str, list[int], str]] = [
    ([1.0], "INT32", [1], "decimals; INT32 is expected, as integers"),
    ([True], "INT32", [1], "booleans; INT32"),
    ([1], "BOOL", [1], "integers; BOOL is expected, as booleans"),
    ([None], "FP32", [1], r"nothing \(null\); FP32 is expected, as decimals or integers"),
    (["1"], "FP32", [1], "strings; FP32"),
    ([1, "x" * 100_000], "FP32", [2], "strings"),
    ([{}], "BYTES", [1], "objects; BYTES is expected, as strings"),
    (["\ud800"], "BYTES", [1], "half a surrogate pair"),
    ([1e39], "FP32", [1], "FP32 cannot hold"),
    ([10**400], "FP64", [1], "FP64 cannot hold"),
    ([1, 2], "FP32", [3], r"2 values in 'data'; shape \[3\] takes 3"),
    ([[1], 2], "FP32", [2], "nested unevenly"),
    ([1.0], "FP16", [1], "no form for"),
    ([1.0], "BF16", [1], "no form for"),
    ([], "FP32", [10**12], "takes 1000000000000"),
]


@pytest.mark.parametrize(("data", "datatype", "shape", "says"), REFUSED, ids=[says[:20] for *_, says in REFUSED])
def test_what_does_not_fit_is_refused_by_its_name(data: object, datatype: str, shape: list[int], says: str) -> None:
    with pytest.raises(RequestRefused, match=says):
        raw_of(data, datatype, shape, "x")


def test_depth_beyond_reason_is_no_error_of_ours() -> None:
    deep: list[Any] = [1]
    for _ in range(900):
        deep = [deep]
    assert raw_of(deep, "INT8", [1], "x") == b"\x01"


def test_infinities_pass_both_ways() -> None:
    assert back(raw_of([float("inf"), float("-inf")], "FP32", [2], "x"), "FP32") == [float("inf"), float("-inf")]


def test_large_arrays_come_in_pieces() -> None:
    pieces = list(rendered(np.arange(40_000, dtype="<i4").tobytes(), "INT32", "x"))
    assert len(pieces) == 5
    assert json.loads(b"".join(pieces)) == list(range(40_000))


def test_what_json_has_no_form_for_is_to_be_asked_for_as_bytes() -> None:
    for raw, datatype in ((b"\x00\x00", "FP16"), (b"\x00\x00", "BF16"), (b"\x01\x00\x00\x00\xff", "BYTES")):
        with pytest.raises(OutputUnfit, match="binary_data true"):
            back(raw, datatype)


@pytest.mark.parametrize(
    ("raw", "datatype"), [(b"\x00", "FP32"), (b"\x09\x00\x00\x00a", "BYTES"), (b"\x09", "BYTES"), (b"", "?")]
)
def test_answers_that_are_none_are_found_out(raw: bytes, datatype: str) -> None:
    with pytest.raises(AnswerUnusable):
        back(raw, datatype)
