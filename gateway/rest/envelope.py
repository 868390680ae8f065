"""What carries HTTP bodies, read and written without copying what it carries: messages, or HTTP itself.

Protobuf's own parser copies a body at least twice on its way in and on its way out. Pure. Source: protobuf encoding guide;
rest.proto and google/api/httpbody.proto for the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from gateway.rest.types import Body, Part, RestAsked
from runtime.errors import Code, PenstockError

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_SIZES = {_I64: 8, _I32: 4}
_NAMES = {1: "model", 2: "version", 4: "region", 5: "repository"}
_BODY, _DATA = 3, 2


class EnvelopeMalformed(PenstockError, code=Code.INVALID_ARGUMENT, reason="ENVELOPE_MALFORMED"):
    """What came is no message of the HTTP door, or names something twice."""


def asked_of(message: bytes) -> RestAsked:
    """A serialised penstock.gateway.v1.RestRequest. Raises EnvelopeMalformed."""
    names: dict[str, str] = {}
    body, twice = memoryview(b""), ""
    try:
        for number, value in fields(memoryview(message)):
            if number == _BODY:
                body = next((each for inner, each in fields(value) if inner == _DATA), memoryview(b""))
            elif number in _NAMES:
                twice = _NAMES[number] if _NAMES[number] in names else twice
                names[_NAMES[number]] = str(value, "utf-8")
    except (IndexError, UnicodeDecodeError):
        raise EnvelopeMalformed(f"{len(message)} bytes that are no RestRequest; ask over HTTP, below /v2") from None
    if twice:  # what comes later would count, and who looks at the path alone would not know
        raise _named_twice(twice)
    return RestAsked(**names, body=body)


def asked_by_http(given: Iterable[tuple[str, str]], body: bytes) -> RestAsked:
    """A request by what its path and its query set, in this order; other names mean nothing. Raises EnvelopeMalformed."""
    names: dict[str, str] = {}
    for name, value in given:
        if name in _NAMES.values():
            if name in names:
                raise _named_twice(name)
            names[name] = value
    return RestAsked(**names, body=memoryview(body))


def _named_twice(name: str) -> EnvelopeMalformed:
    return EnvelopeMalformed(f"the path names a {name}, and the query another; leave it out of the query")


def message_of(body: Body) -> bytes:
    """A serialised google.api.HttpBody."""
    kind, size = body.content_type.encode(), sum(map(len, body.parts))
    return b"".join((b"\x0a", varint(len(kind)), kind, b"\x12", varint(size), *body.parts))


def fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each field that has a length; the others are stepped over. Raises IndexError where it is cut."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _read_varint(message, at)
        kind = tag & 7
        if kind == _LEN:
            size, at = _read_varint(message, at)
            if at + size > end:
                raise IndexError
            yield tag >> 3, message[at : at + size]
            at += size
        elif kind == _VARINT:
            _, at = _read_varint(message, at)
        elif kind in _SIZES:
            at += _SIZES[kind]
        else:
            raise IndexError
    if at != end:
        raise IndexError


def varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


def field_of(number: int, content: Part) -> Sequence[Part]:
    """A field with a length, as parts of a message."""
    return (varint(number << 3 | _LEN), varint(len(content)), content)


def _read_varint(buffer: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte: int = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError
