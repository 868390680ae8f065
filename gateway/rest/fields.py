"""Reads the JSON of a request field by field, and says of a wrong one where it stands, what it is and what it should be.

Pure. Never decides what a field means.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NoReturn

from gateway.rest.errors import BodyTooLarge, RequestRefused

MAX_JSON_BYTES = 16 * 1024 * 1024
"""Parsing holds up everybody else: 16 MiB of numbers take some 200 ms. Binary data beside the JSON does not count."""

MAX_ENTRIES = 16_384
"""Tensors and parameters of one request, as over gRPC."""

_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "a boolean"),
    (str, "a string"),
    (int, "an integer"),
    (float, "a number"),
    (list, "an array"),
    (dict, "an object"),
)
Fields = Mapping[str, object]

written = json.JSONEncoder(separators=(",", ":")).encode
"""JSON without spaces. One for all: `json.dumps` makes an encoder for each call that has a wish."""


def object_of(body: memoryview, max_bytes: int = MAX_JSON_BYTES) -> Fields:
    """The JSON object of a body; an empty body is an empty one. Raises RequestRefused, BodyTooLarge."""
    if len(body) > max_bytes:
        raise BodyTooLarge(
            f"the request's JSON has {len(body)} bytes; up to {max_bytes} are taken: send tensors as binary data"
        )
    if not body:
        return {}
    try:
        value = json.loads(str(body, "utf-8"))
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise RequestRefused(f"failed to parse the request JSON buffer: it is no valid JSON{where}; send one object") from None
    if not isinstance(value, dict):
        raise RequestRefused(f"the request's JSON is {kind_of(value)}; send one object")
    return value


def text(fields: Fields, name: str, path: str = "") -> str:
    """A string; empty where there is none."""
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        wrong(path + name, value, "a string")
    return checked_text(value, path + name)


def checked_text(value: str, path: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can name half of a surrogate pair, UTF-8 cannot
        raise RequestRefused(f"{path[:80]!r} holds half a surrogate pair, which is no text; send both halves") from None
    return value


def flag(fields: Fields, name: str, path: str = "") -> bool:
    value = fields.get(name)
    if value is None:
        return False
    return value if isinstance(value, bool) else wrong(path + name, value, "a boolean")


def inner(fields: Fields, name: str, path: str = "") -> Fields:
    """An object; empty where there is none."""
    value = fields.get(name)
    if value is None:
        return {}
    return value if isinstance(value, dict) else wrong(path + name, value, "an object")


def entries(fields: Fields, name: str) -> list[Fields]:
    """An array of objects; empty where there is none."""
    value = fields.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        wrong(name, value, "an array")
    if len(value) > MAX_ENTRIES:
        raise RequestRefused(f"{name!r} has {len(value)} entries; at most {MAX_ENTRIES} are taken")
    return [
        each if isinstance(each, dict) else wrong(f"{name}[{place}]", each, "an object") for place, each in enumerate(value)
    ]


def kind_of(value: object) -> str:
    return next((name for kind, name in _KINDS if isinstance(value, kind)), "null")


def wrong(path: str, value: object, expected: str) -> NoReturn:
    raise RequestRefused(f"{path[:80]!r} is {kind_of(value)}; expected {expected}")
