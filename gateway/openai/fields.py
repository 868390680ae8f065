"""Reads the JSON of a request field by field, and says of a wrong one where it stands, what it is and what it should be.

Pure. Never decides what a field means.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import NoReturn

from gateway.openai.errors import BodyTooLarge, RequestRefused

MAX_BODY_BYTES = 16 * 1024 * 1024
"""Parsing holds up everybody else: 16 MiB of JSON take some 100 ms."""

_SHOWN = 80
_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "a boolean"),
    (str, "a string"),
    (int, "an integer"),
    (float, "a number"),
    (list, "an array"),
    (dict, "an object"),
)


class Fields:
    """One JSON object. A field that is null counts as one that is not there."""

    __slots__ = ("_path", "_values")

    def __init__(self, values: Mapping[str, object], path: str = "") -> None:
        self._values, self._path = values, path

    def path(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._values)

    def get(self, name: str) -> object:
        return self._values.get(name)

    def required(self, name: str) -> object:
        value = self._values.get(name)
        if value is None:
            path = self.path(name)
            raise RequestRefused(f"{path!r} is missing; it is required", param=path, fault="missing_required_parameter")
        return value

    def only(self, taken: Collection[str], inert: Mapping[str, tuple[object, ...]]) -> None:
        """Refuse what nobody knows, and what is known but not done here unless its value asks for nothing."""
        for name, value in self._values.items():
            if name in taken or value is None:
                continue
            path = self.path(name)[:_SHOWN]
            if name not in inert:
                raise RequestRefused(
                    f"{path!r} is no parameter of this call; leave it out", param=path, fault="unknown_parameter"
                )
            if not any(_same(value, harmless) for harmless in inert[name]):
                raise _unsupported(path, inert[name])

    def text(self, name: str) -> str | None:
        value = self._values.get(name)
        return None if value is None else text_of(value, self.path(name))

    def flag(self, name: str) -> bool:
        value = self._values.get(name)
        if value is None:
            return False
        return value if isinstance(value, bool) else _wrong(self.path(name), value, "a boolean")

    def integer(self, name: str, at_least: int, at_most: int) -> int | None:
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            _wrong(self.path(name), value, "an integer")
        _check_range(self.path(name), value, at_least, at_most)
        return value

    def number(self, name: str, at_least: float, at_most: float) -> float | None:
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool):
            _wrong(self.path(name), value, "a number")
        _check_range(self.path(name), value, at_least, at_most)
        return float(value)

    def fields(self, name: str) -> Fields | None:
        value = self._values.get(name)
        return None if value is None else fields_of(value, self.path(name))

    def items(self, name: str, at_most: int) -> list[object]:
        """The array there. Raises RequestRefused also where it is empty or longer than that."""
        value, path = self.required(name), self.path(name)
        if not isinstance(value, list):
            _wrong(path, value, "an array")
        if not value:
            raise RequestRefused(f"{path!r} is empty; at least one entry is needed", param=path, fault="empty_array")
        if len(value) > at_most:
            raise RequestRefused(
                f"{path!r} has {len(value)} entries; at most {at_most} are taken", param=path, fault="array_above_max_length"
            )
        return value


def body_of(data: bytes) -> Fields:
    """The request's JSON object. Raises RequestRefused, BodyTooLarge."""
    if len(data) > MAX_BODY_BYTES:
        raise BodyTooLarge(f"the request's JSON has {len(data)} bytes; at most {MAX_BODY_BYTES} are taken")
    try:
        value = json.loads(data, parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise RequestRefused(f"the request's body is no valid JSON{where}; send one object", fault="invalid_json") from None
    if not isinstance(value, dict):
        raise RequestRefused(f"the request's body is {kind_of(value)}; send one JSON object", fault="invalid_json")
    return Fields(value)


def fields_of(value: object, path: str) -> Fields:
    return Fields(value, path) if isinstance(value, dict) else _wrong(path, value, "an object")


def text_of(value: object, path: str) -> str:
    if not isinstance(value, str):
        _wrong(path, value, "a string")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can name half of a surrogate pair, UTF-8 cannot
        raise RequestRefused(f"{path!r} holds half a surrogate pair, which is no text; send both halves", param=path) from None
    return value


def kind_of(value: object) -> str:
    return next((name for kind, name in _KINDS if isinstance(value, kind)), "null")


def _wrong(path: str, value: object, expected: str) -> NoReturn:
    raise RequestRefused(f"{path!r} is {kind_of(value)}; expected {expected}", param=path, fault="invalid_type")


def _check_range(path: str, value: float, at_least: float, at_most: float) -> None:
    if at_least <= value <= at_most:
        return
    shown = f"{value:.20g}" if isinstance(value, float) or abs(value) < 10**18 else "that number"
    raise RequestRefused(f"{path!r} is {shown}; it is taken from {at_least} to {at_most}", param=path, fault="out_of_range")


def _unsupported(path: str, harmless: tuple[object, ...]) -> RequestRefused:
    allowed = " or ".join(json.dumps(value) for value in harmless)
    advice = f"leave it out or send {allowed}" if allowed else "leave it out"
    return RequestRefused(f"{path!r} is not supported here; {advice}", param=path, fault="unsupported_parameter")


def _same(one: object, other: object) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _no_json(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are no JSON")
