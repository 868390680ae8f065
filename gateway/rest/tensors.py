"""Tensors as JSON has them, to and from the bytes in which they travel: every datatype of the protocol.

Pure. Numbers keep their full precision both ways: INT64 and UINT64 are never floats on the way. FP16 and BF16 have no place in
the protocol's JSON. Source: Open Inference Protocol, "Tensor Data"; Triton's protocol/extension_binary_data.md for BYTES.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gateway.rest.errors import AnswerUnusable, OutputUnfit, RequestRefused
from gateway.rest.fields import written
from gateway.rest.types import Part

DTYPES: dict[str, np.dtype[Any] | None] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": None,
}
"""How each lies in memory; BYTES elements are a little-endian uint32 length and so many bytes. BF16 has no numpy type."""

ONLY_BINARY = ("FP16", "BF16")
_LENGTH = struct.Struct("<I")
_AT_ONCE = 16_384
"""Elements rendered before others get their turn: some 10 ms."""

_TYPES: dict[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "i": frozenset({int}),
    "u": frozenset({int}),
    "f": frozenset({int, float}),
    "S": frozenset({str}),
}
"""What JSON may hold, by the kind of the datatype."""

_WORDS: dict[type, str] = {bool: "booleans", int: "integers", float: "decimals", str: "strings", dict: "objects"}


def raw_of(data: object, datatype: str, shape: Sequence[int], name: str) -> Part:
    """The bytes of a tensor that came as JSON, nested or flat. Raises RequestRefused."""
    if datatype in ONLY_BINARY:
        raise RequestRefused(f"input {name!r} is {datatype}, which JSON has no form for; send it as binary data after the JSON")
    values = _flat(data, name)
    if len(values) != (expected := element_count(shape)):
        raise RequestRefused(f"input {name!r} has {len(values)} values in 'data'; shape {list(shape)} takes {expected}")
    dtype = DTYPES[datatype]
    allowed = _TYPES["S" if dtype is None else dtype.kind]
    if wrong := set(map(type, values)) - allowed:
        names = ", ".join(sorted(_WORDS.get(each, "nothing (null)") for each in wrong))
        expected_words = " or ".join(sorted(_WORDS[each] for each in allowed))
        raise RequestRefused(f"'data' of input {name!r} holds {names}; {datatype} is expected, as {expected_words}")
    if dtype is None:
        return b"".join([_element(str(each), name) for each in values])
    try:
        with np.errstate(over="raise"):
            return np.array(values, dtype).tobytes()
    except (OverflowError, FloatingPointError):
        raise RequestRefused(f"'data' of input {name!r} holds a number that {datatype} cannot hold") from None


def rendered(raw: Part, datatype: str, name: str) -> Iterator[bytes]:
    """A tensor's bytes as a flat JSON array, piece by piece: between two of them others may have their turn.

    Raises OutputUnfit, AnswerUnusable.
    """
    if datatype in ONLY_BINARY:
        raise OutputUnfit(f"output {name!r} is {datatype}, which JSON has no form for; ask for it with binary_data true")
    values = _texts(raw, name) if datatype == "BYTES" else _array(raw, datatype, name)
    yield b"["
    for start in range(0, len(values), _AT_ONCE):
        part = values[start : start + _AT_ONCE]
        text = written(part if isinstance(part, list) else part.tolist())
        yield (b"," if start else b"") + text[1:-1].encode()
    yield b"]"


def element_count(shape: Sequence[int]) -> int:
    """Exact at any size."""
    count = 1
    for dimension in shape:
        count *= dimension
    return count


def with_length(content: Part) -> Sequence[Part]:
    """One BYTES element as it travels."""
    return (_LENGTH.pack(len(content)), content)


def _flat(data: object, name: str) -> list[object]:
    """The elements in row-major order. How they are nested is their sender's affair, as with Triton: they are counted."""
    values: list[object] = data if isinstance(data, list) else [data]
    while list in (kinds := set(map(type, values))):
        if len(kinds) > 1:
            raise RequestRefused(f"'data' of input {name!r} is nested unevenly; send rows of one depth, or one flat array")
        values = list(chain.from_iterable(cast("list[list[object]]", values)))
    return values


def _element(text: str, name: str) -> bytes:
    try:
        content = text.encode()
    except UnicodeEncodeError:  # JSON can name half of a surrogate pair, UTF-8 cannot
        raise RequestRefused(f"a string of input {name!r} holds half a surrogate pair; send both halves") from None
    return _LENGTH.pack(len(content)) + content


def _array(raw: Part, datatype: str, name: str) -> NDArray[Any]:
    dtype = DTYPES.get(datatype)
    if dtype is None or len(raw) % dtype.itemsize:
        raise AnswerUnusable(f"output {name!r} came as {len(raw)} bytes of {datatype[:20]!r}")
    return np.frombuffer(raw, dtype)


def _texts(raw: Part, name: str) -> list[str]:
    texts: list[str] = []
    view, at = memoryview(raw), 0
    while at < len(view):
        if at + _LENGTH.size > len(view):
            raise AnswerUnusable(f"output {name!r} ends within the length of an element")
        (size,) = _LENGTH.unpack_from(view, at)
        at += _LENGTH.size + size
        if at > len(view):
            raise AnswerUnusable(f"output {name!r} ends within an element")
        try:
            texts.append(str(view[at - size : at], "utf-8"))
        except UnicodeDecodeError:
            raise OutputUnfit(
                f"element {len(texts)} of output {name!r} is no UTF-8, which JSON has no form for;"
                " ask for it with binary_data true"
            ) from None
    return texts
