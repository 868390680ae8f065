"""Tensors as they travel: raw bytes to arrays and back. Knows nothing of requests.

An array of fixed-size elements is a read-only view of the message's own bytes, not a copy. BYTES elements travel as a
little-endian uint32 length and the bytes. Source: the protocol's "binary tensor data" extension.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from runtime.errors import InvalidArgument
from worker.datatypes import DATATYPES, Datatype
from worker.engine import Array

_LENGTH = struct.Struct("<I")


def element_count(shape: Sequence[int]) -> int:
    """How many elements a shape has; exact at any size."""
    count = 1
    for dimension in shape:
        count *= dimension
    return count


def from_raw(raw: bytes | memoryview, datatype: Datatype, shape: Sequence[int], name: str) -> Array:
    """A view of `raw`, or an object array of bytes. Raises InvalidArgument where the size is not the shape's."""
    count = element_count(shape)
    size_bytes = datatype.size_bytes
    if not size_bytes:
        return shaped(bytes_elements(bytes(raw), count, name), shape, name)
    if len(raw) != count * size_bytes:
        raise InvalidArgument(
            f"input {name!r} has {len(raw)} bytes of data; {datatype.name} of shape {list(shape)} takes {count * size_bytes}"
        )
    if datatype.name == "BOOL":  # any byte may have been sent; numpy and engines know 0 and 1 only
        return shaped(np.frombuffer(raw, np.uint8) != 0, shape, name)
    return shaped(np.frombuffer(raw, datatype.dtype), shape, name)


def bytes_elements(raw: bytes, count: int, name: str) -> Array:
    """Split length-prefixed elements. Raises InvalidArgument unless there are exactly `count`."""
    if len(raw) < count * _LENGTH.size:
        raise InvalidArgument(
            f"input {name!r} has {len(raw)} bytes of data, too few for {count} BYTES elements with 4 bytes of length each"
        )
    elements: list[bytes] = []
    offset = 0
    while offset < len(raw):
        if len(elements) == count:
            raise InvalidArgument(f"input {name!r} has {len(raw) - offset} bytes of data after its {count} BYTES elements")
        end = offset + _LENGTH.size
        if end > len(raw):
            raise InvalidArgument(f"input {name!r} ends within the length of BYTES element {len(elements)}")
        length = _LENGTH.unpack_from(raw, offset)[0]
        offset = end + length
        if offset > len(raw):
            raise InvalidArgument(
                f"BYTES element {len(elements)} of input {name!r} claims {length} bytes; {len(raw) - end} are left"
            )
        elements.append(raw[end:offset])
    if len(elements) != count:
        raise InvalidArgument(f"input {name!r} has {len(elements)} BYTES elements; its shape takes {count}")
    return object_array(elements)


def from_typed(values: Sequence[object], datatype: Datatype, shape: Sequence[int], name: str) -> Array:
    """An array of the typed contents that other v2 clients send. Raises InvalidArgument on count or range."""
    count = element_count(shape)
    if len(values) != count:
        raise InvalidArgument(
            f"input {name!r} has {len(values)} values in {datatype.contents}; shape {list(shape)} takes {count}"
        )
    if not datatype.size_bytes:
        return shaped(object_array(values), shape, name)
    try:
        return shaped(np.array(list(values), datatype.dtype), shape, name)
    except OverflowError as error:
        raise InvalidArgument(f"input {name!r} has a value that {datatype.name} cannot hold") from error


def to_raw(array: Array) -> bytes:
    """The bytes of an output, in row-major order."""
    if not array.dtype.hasobject:
        return array.tobytes()
    parts: list[bytes] = []
    for element in array.reshape(-1):
        parts.append(_LENGTH.pack(len(element)))
        parts.append(element)
    return b"".join(parts)


def bytes_of(array: Array) -> memoryview:
    """As `to_raw`, without a copy where the array lies in that order already."""
    if array.dtype.hasobject:
        return memoryview(to_raw(array))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def object_array(elements: Sequence[object]) -> Array:
    """One dimension of Python objects, whatever they are."""
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def check_utf8(array: Array, name: str) -> None:
    """Raises InvalidArgument unless every BYTES element is UTF-8."""
    for index, element in enumerate(array.reshape(-1)):
        try:
            element.decode()
        except UnicodeDecodeError as error:
            raise InvalidArgument(
                f"BYTES element {index} of input {name!r} is not UTF-8, which this model's strings are"
            ) from error


def shaped(flat: Array, shape: Sequence[int], name: str) -> Array:
    """Reshape, with numpy's own limits as a sentence."""
    try:
        return flat.reshape(shape)
    except ValueError as error:
        raise InvalidArgument(f"input {name!r} has a shape that is too large: {list(shape)}") from error


def zeros(datatype: str, shape: Sequence[int]) -> Array:
    """Zeros, or empty BYTES."""
    dtype = DATATYPES[datatype].dtype
    if dtype.hasobject:
        return object_array([b""] * element_count(shape)).reshape(shape)
    return np.zeros(shape, dtype)
