"""JSON that others wrote, read with types. Pure; knows no API.

A field that is null counts as one that is not there: upstreams differ in which of the two they write.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence


class Malformed(Exception):
    """A value is not of the kind that the API says. Never leaves the engines: its catchers say whose answer it was."""


def json_of(raw: bytes) -> object:
    """Raises Malformed unless it is JSON in UTF-8."""
    try:
        value: object = json.loads(raw.decode())
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise Malformed(f"{len(raw)} bytes that are no JSON") from error
    return value


def body_of(fields: Mapping[str, object]) -> bytes:
    """A request's body. What is None is left out."""
    present = {name: value for name, value in fields.items() if value is not None}
    return json.dumps(present, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def object_of(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise Malformed(f"{_kind(value)} where an object is expected")
    return value


def items_of(value: object) -> Sequence[object]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise Malformed(f"{_kind(value)} where an array is expected")
    return value


def text_of(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Malformed(f"{_kind(value)} where a string is expected")
    return value


def number_of(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Malformed(f"{_kind(value)} where a number is expected")
    try:
        return float(value)
    except OverflowError as error:
        raise Malformed("a number that is too large") from error


def count_of(value: object) -> int:
    """A number of tokens; absent counts as none."""
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
        raise Malformed(f"{value!r:.40} where a count is expected")
    return value


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__
