"""Reads of a serialised ModelInferRequest what routing needs, and steps over the rest: tensor bytes are never touched.

Pure. What it accepts may still be refused by the worker, which parses all of it; what it refuses, a protobuf parser refuses
too, except where a bound of its own is exceeded. Source: protobuf encoding guide; inference/grpc_service.proto for the numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from runtime.errors import Code, PenstockError

Parameter = bool | int | str | float

MAX_FIELDS = 16_384
"""Top-level fields (tensors, parameters) of one request: a scan of more would hold up everybody else."""

_MAX_GROUP_DEPTH = 100
_NONE: Mapping[str, Parameter] = MappingProxyType({})
_VARINT, _I64, _LEN, _GROUP, _GROUP_END, _I32 = range(6)


class RequestMalformed(PenstockError, code=Code.INVALID_ARGUMENT, reason="REQUEST_MALFORMED"):
    """The bytes are no inference.ModelInferRequest."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """Whom a request is for, and what was asked of the way there."""

    model: str
    version: str = ""
    request_id: str = ""
    """The message's own `id`, which the answer echoes."""
    parameters: Mapping[str, Parameter] = field(default_factory=lambda: _NONE)

    @property
    def priority(self) -> int:
        """0 = the model's default; clients send it signed or unsigned."""
        value = self.parameters.get("priority", 0)
        return min(value, 0xFFFF_FFFF) if type(value) is int and value > 0 else 0

    @property
    def session_key(self) -> str:
        """Requests of one sequence prefer one worker. 0 and empty: none, as Triton has it."""
        value = self.parameters.get("sequence_id") if self.parameters else None
        return str(value) if value and type(value) in (int, str) else ""


def head_of(payload: bytes) -> RequestHead:
    """Raises RequestMalformed."""
    try:
        return _scan(payload)
    except IndexError:
        raise _cut_short(payload) from None
    except UnicodeDecodeError:
        raise RequestMalformed("a name in this ModelInferRequest is not UTF-8; send a serialised one") from None


def _scan(payload: bytes) -> RequestHead:
    # Written out in one loop: a helper call for each field would double what this costs on every request.
    at, end, fields = 0, len(payload), 0
    model, version, request_id = "", "", ""
    parameters: dict[str, Parameter] | None = None
    while at < end:
        tag = payload[at]
        at += 1
        if tag > 0x7F:
            tag, at = _varint(payload, at - 1)
        kind = tag & 7
        if kind != _LEN:
            at = _step_over(payload, at, tag, 0)
        else:
            length = payload[at]
            at += 1
            if length > 0x7F:
                length, at = _varint(payload, at - 1)
            start, at = at, at + length
            if at > end:
                raise _cut_short(payload)
            if tag == 0x0A:
                model = payload[start:at].decode()
            elif tag == 0x12:
                version = payload[start:at].decode()
            elif tag == 0x1A:
                request_id = payload[start:at].decode()
            elif tag == 0x22:
                parameters = {} if parameters is None else parameters
                if (entry := _entry(payload[start:at])) is not None:
                    parameters[entry[0]] = entry[1]
            elif tag < 8 or tag > 0xFFFF_FFFF:
                raise _no_field(tag)
        fields += 1
        if fields > MAX_FIELDS:
            raise RequestMalformed(f"a ModelInferRequest of more than {MAX_FIELDS} tensors and parameters; send fewer at once")
    if at != end:
        raise _cut_short(payload)
    return RequestHead(model, version, request_id, _NONE if parameters is None else parameters)


def _varint(buffer: bytes, at: int) -> tuple[int, int]:
    """A varint and where it ends."""
    value = shift = 0
    while True:
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
        if shift > 63:
            raise RequestMalformed("a number in this ModelInferRequest is longer than 10 bytes; send a serialised one")


def _step_over(buffer: bytes, at: int, tag: int, depth: int) -> int:
    """Where a field of no interest ends."""
    kind = tag & 7
    if tag < 8 or tag > 0xFFFF_FFFF:
        raise _no_field(tag)
    if kind == _VARINT:
        return _varint(buffer, at)[1]
    if kind == _I64:
        return _within(buffer, at + 8)
    if kind == _I32:
        return _within(buffer, at + 4)
    if kind == _LEN:
        length, at = _varint(buffer, at)
        return _within(buffer, at + length)
    if kind == _GROUP and depth < _MAX_GROUP_DEPTH:
        return _step_over_group(buffer, at, tag, depth + 1)
    raise RequestMalformed(f"wire type {kind} in this ModelInferRequest; send a serialised one")


def _step_over_group(buffer: bytes, at: int, opening: int, depth: int) -> int:
    fields = 0
    while True:
        tag, at = _varint(buffer, at)
        if tag & 7 == _GROUP_END:
            if tag >> 3 != opening >> 3:
                raise RequestMalformed("a group in this ModelInferRequest ends as another; send a serialised one")
            return at
        at = _step_over(buffer, at, tag, depth)
        fields += 1
        if fields > MAX_FIELDS:
            raise RequestMalformed(f"a group of more than {MAX_FIELDS} fields in this ModelInferRequest; send none")


def _within(buffer: bytes, at: int) -> int:
    if at > len(buffer):
        raise _cut_short(buffer)
    return at


def _fields(buffer: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Tag and value of each field; of those that carry neither a varint, 8 bytes nor a length, only the tag."""
    at, end = 0, len(buffer)
    while at < end:
        tag, at = _varint(buffer, at)
        start, kind = at, tag & 7
        if kind == _VARINT and 8 <= tag <= 0xFFFF_FFFF:
            value, at = _varint(buffer, at)
            yield tag, value
            continue
        at = _step_over(buffer, at, tag, 0)
        if kind == _LEN:
            _, start = _varint(buffer, start)
        yield tag, buffer[start:at]


def _entry(buffer: bytes) -> tuple[str, Parameter] | None:
    """One entry of map<string, InferParameter>; None for one that says more than that, which parsers leave out of the map."""
    name, value = "", b""
    for tag, content in _fields(buffer):
        if tag == 0x0A and isinstance(content, bytes):
            name = content.decode()
        elif tag == 0x12 and isinstance(content, bytes):
            value += content  # messages that come twice are merged, which putting them end to end is
        else:
            return None
    return name, _parameter(value)


def _parameter(buffer: bytes) -> Parameter:
    """inference.InferParameter: the last one of the choices counts; "" where there is none."""
    found: Parameter = ""
    for tag, content in _fields(buffer):
        if isinstance(content, int):
            if tag == 0x08:
                found = bool(content)
            elif tag == 0x10:
                found = content - (1 << 64) if content >> 63 else content
            elif tag == 0x28:
                found = content
        elif tag == 0x1A:
            found = content.decode()
        elif tag == 0x21:
            found = _double(content)
    return found


def _double(content: bytes) -> float:
    return float(struct.unpack("<d", content)[0])


def _cut_short(payload: bytes) -> RequestMalformed:
    return RequestMalformed(f"{len(payload)} bytes that end within a field are no ModelInferRequest; send a serialised one")


def _no_field(tag: int) -> RequestMalformed:
    return RequestMalformed(f"no ModelInferRequest has a field of number {tag >> 3}; send a serialised one")
