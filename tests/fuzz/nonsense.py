"""A good message with one thing in it at its worst, at any depth: what a client sends that is broken, or means harm.

The words are those that something could take for a path, a pattern, a key of etcd, SQL, or the end of a line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

MEGABYTE = 1_000_000
MANY = 10_000
TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    "\x1b[2J",
    "\r\nx: y",
    "%",
    "%s%n",
    "*",
    "[!a-z]",
    "' OR 1=1 --",
    "..",
    "../..",
    "here/../../policy",
    "/penstock/control/policy/routing",
    "penstock://operator/" + "a" * 20,
    "\N{RIGHT-TO-LEFT OVERRIDE}abc",
    "\ufffe\U0010ffff",
    "٣",
    "-1",
    "0",
    "1e9",
    "9" * 5000,
    "x" * 129,
    "x" * MEGABYTE,
    "\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}" * (MEGABYTE // 3),
)
_WHOLE = (0, 1, -1, 2, 63, 2**31 - 1, -(2**31), 2**32 - 1, 2**53, 2**63 - 1, -(2**63), 2**64 - 1)
_FLOATS = (0.0, -0.0, -1.0, 5e-324, 3e38, 1e308, math.nan, math.inf, -math.inf)
_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def spoilt_everywhere(good: Message) -> Iterator[tuple[str, Message]]:
    """Each field of each part of it, in each way of being bad; and what it was."""
    for field in good.DESCRIPTOR.fields:
        yield from _spoilt(good, field)


def _spoilt(good: Any, field: Any) -> Iterator[tuple[str, Any]]:
    name, held = field.name, getattr(good, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        yield from _spoilt_map(good, field)
    elif field.message_type is None:
        for value in _worst(field):
            bad = _without(good, name)
            _give(bad, field, value)
            yield f"{name}={_shown(value)}", bad
    elif field.is_repeated:
        for what, part in spoilt_everywhere(held[0]) if held else ():
            bad = _without(good, name)
            getattr(bad, name).extend([part, *held[1:]])
            yield f"{name}[0].{what}", bad
        bad = _without(good, name)
        getattr(bad, name).extend([held[0] if held else getattr(type(good)(), name).add()] * MANY)
        yield f"{MANY} {name}", bad
    elif good.HasField(name):
        for what, part in spoilt_everywhere(held):
            bad = _without(good, name)
            getattr(bad, name).CopyFrom(part)
            yield f"{name}.{what}", bad
        yield f"no {name}", _without(good, name)
        empty = _without(good, name)
        getattr(empty, name).SetInParent()
        yield f"an empty {name}", empty


def _spoilt_map(good: Any, field: Any) -> Iterator[tuple[str, Any]]:
    key, value = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
    if key.cpp_type != FieldDescriptor.CPPTYPE_STRING or value.message_type is not None:
        return
    some = True if value.cpp_type == FieldDescriptor.CPPTYPE_BOOL else "x"
    for text in TEXTS:
        bad = _without(good, field.name)
        getattr(bad, field.name)[text] = some
        yield f"{field.name}[{_shown(text)}]", bad
        if value.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            bad = _without(good, field.name)
            getattr(bad, field.name)["x"] = text
            yield f"{field.name}[x]={_shown(text)}", bad
    bad = _without(good, field.name)
    for number in range(MANY):
        getattr(bad, field.name)[f"x{number}"] = some
    yield f"{MANY} {field.name}", bad


def _worst(field: Any) -> Iterator[Any]:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        yield from (text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text for text in TEXTS)
        if field.is_repeated and field.type != FieldDescriptor.TYPE_BYTES:
            yield ["x"] * MANY
            yield [f"x{number}" for number in range(MANY)]
    elif field.cpp_type in _BITS:
        least, most = _BITS[field.cpp_type]
        yield from (edge for edge in _WHOLE if least <= edge <= most)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        yield from (99, -1, 2**31 - 1)
    elif field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        yield from _FLOATS


def _without(good: Any, name: str) -> Any:
    bad = type(good)()
    bad.CopyFrom(good)
    bad.ClearField(name)
    return bad


def _give(bad: Any, field: Any, value: Any) -> None:
    if field.is_repeated:
        getattr(bad, field.name).extend(value if isinstance(value, list) else [value])
    else:
        setattr(bad, field.name, value)


def _shown(value: Any) -> str:
    return repr(value[:24] if isinstance(value, str | bytes | list) else value)
