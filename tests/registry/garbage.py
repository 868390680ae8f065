"""Messages that nobody in their senses sends: made from the contracts' descriptors, by bytes that are choices.

The same bytes make the same message (`tests/fuzz/choices.py`), so hypothesis can shrink them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tests.fuzz.choices import Choices

MEGABYTE = 1_000_000
MARKS = "a" + "\u0316\u0300" * (MEGABYTE // 4)
"""A megabyte that takes as long to normalise as its square: each mark has to be put into its place among all others."""

TEXTS = (
    "",
    "\0",
    "a\0b",
    "\x7f\x1b[2J",
    "\r\nx: y",
    "%",
    "' OR 1=1 --",
    "../../../etc/passwd",
    "\N{RIGHT-TO-LEFT OVERRIDE}abc",
    "\N{LATIN SMALL LIGATURE FI}",
    "\ufffe\uffff\U0010ffff",
    "٣",
    "9" * 5000,
    "x" * 129,
    "x" * MEGABYTE,
    "\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}" * (MEGABYTE // 3),
    MARKS,
)
_EDGES = (0, 1, -1, 2**31 - 1, -(2**31), 2**32 - 1, 2**53, 2**63 - 1, -(2**63), 2**64 - 1)
_FLOATS = (0.0, -0.0, -1.0, 5e-324, 1e308, math.nan, math.inf, -math.inf)
_MANY = 10_000
_DEEPEST = 8
"""Of messages in messages, some of which hold their own kind."""

_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def garbage(choices: Choices, kind: Descriptor, words: Sequence[str], depth: int = 0) -> Message:
    """Some fields set, to anything of their type; `words`: names of things that there are."""
    message: Any = GetMessageClass(kind)()
    for field in kind.fields:
        is_too_deep = field.message_type is not None and depth >= _DEEPEST
        if not choices.flag(3) and not is_too_deep:
            _set(message, field, partial(_value, choices, field, words, depth), choices)
    return message  # type: ignore[no-any-return]


def spoilt_fields(good: Message) -> Iterator[tuple[str, Message]]:
    """The good message with one of its fields at its worst, for each field and each way of being bad."""
    for field in good.DESCRIPTOR.fields:
        for value in _worst(field):
            bad = type(good)()
            bad.CopyFrom(good)
            bad.ClearField(field.name)
            if field.is_repeated:
                getattr(bad, field.name).extend(value if isinstance(value, list) else [value])
            else:
                setattr(bad, field.name, value)
            shown = value[:20] if isinstance(value, str | bytes | list) else value
            yield f"{field.name}={shown!r}", bad


def _worst(field: Any) -> Iterator[Any]:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        as_bytes = field.type == FieldDescriptor.TYPE_BYTES
        yield from (text.encode() if as_bytes else text for text in TEXTS)
        if field.is_repeated:
            yield ["x"] * _MANY
            yield [f"x{number}" for number in range(_MANY)]
    elif field.cpp_type in _BITS:
        least, most = _BITS[field.cpp_type]
        yield from (edge for edge in _EDGES if least <= edge <= most)
    elif field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        yield from _FLOATS


def _set(message: Any, field: FieldDescriptor, value: Callable[[], Any], choices: Choices) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = value()
        entries = getattr(message, field.name)
        if isinstance(entry.value, Message):
            entries[entry.key].CopyFrom(entry.value)
        else:
            entries[entry.key] = entry.value
    elif not field.is_repeated:
        given = value()
        if isinstance(given, Message):
            getattr(message, field.name).CopyFrom(given)
        else:
            setattr(message, field.name, given)
    else:
        first = value()
        is_long = isinstance(first, Message) or (isinstance(first, str | bytes) and len(first) > 100)
        more = [first] * _MANY if choices.flag(6) and not is_long else [value() for _ in range(choices.below(3))]
        getattr(message, field.name).extend([first, *more])


def _value(choices: Choices, field: FieldDescriptor, words: Sequence[str], depth: int) -> Any:
    if field.message_type is not None:
        return garbage(choices, field.message_type, words, depth + 1)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        text = choices.one_of((*words, *words, *TEXTS))
        if field.type == FieldDescriptor.TYPE_BYTES:
            return choices.blob(200) if choices.flag() else text.encode()
        return text
    if field.cpp_type in _BITS:
        least, most = _BITS[field.cpp_type]
        return choices.one_of([edge for edge in _EDGES if least <= edge <= most])
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return choices.flag()
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return choices.one_of((0, 1, 99, -1, 2**31 - 1))
    return choices.one_of(_FLOATS)
