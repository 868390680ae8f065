"""What makes two serialised ModelInferRequests one and the same, as a hash: read off the wire, the message never built.

Pure. The form is: parameters by name, without those that say how to be served and not what (priority, timeout) and without the
request's id; inputs by name, each as its bytes stand with its raw content; requested outputs in their order, which is that of
the answer. Whoever encodes otherwise asks something else, which costs a hit and never gives a wrong one. A request that belongs
to a sequence, that has tensors in shared memory, or that holds what ModelInferRequest does not have, has no form: it is not
for a cache. Source: protobuf encoding guide; inference/grpc_service.proto for the numbers.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

MAX_INPUT_BYTES = 4 * 1024 * 1024
"""Of a request that is looked for. Hashing more would hold up everybody else: it takes 0.6 ms for each MiB."""

_MODEL, _VERSION, _ID, _PARAMETER, _INPUT, _OUTPUT, _RAW = 0x0A, 0x12, 0x1A, 0x22, 0x2A, 0x32, 0x3A
_ENTRY_KEY, _ENTRY_VALUE = 0x0A, 0x12
_TENSOR_NAME, _TENSOR_PARAMETER, _OUTPUT_PARAMETER = 0x0A, 0x22, 0x12
_LENGTH_DELIMITED = 2
_SERVING = frozenset({b"priority", b"timeout"})
_STATEFUL = frozenset({b"sequence_id", b"sequence_start", b"sequence_end"})
_SHARED = b"shared_memory"
_NUMBER, _COUNTS = struct.Struct("<I").pack, struct.Struct("<4I").pack
_AT_ONCE_BYTES = 16 * 1024
"""A form of so many bytes is put together and hashed at once, which is less work than hashing its parts."""


class _Unfit(Exception):
    """No form. Never leaves this module."""


@dataclass(frozen=True, slots=True)
class Canonical:
    """A request's form."""

    sha256: bytes
    request_id: bytes
    """Its own, as the answer is to echo it; UTF-8."""


def canonical(payload: bytes) -> Canonical | None:
    """None for a request that is not for a cache, or that is no ModelInferRequest."""
    if len(payload) > MAX_INPUT_BYTES:
        return None
    try:
        return _canonical(payload)
    except (_Unfit, IndexError):
        return None


def _canonical(payload: bytes) -> Canonical:
    # Written out in one loop, like gateway.wire: a helper call for each field would double what this costs.
    at, end, view, request_id = 0, len(payload), memoryview(payload), b""
    parameters: dict[bytes, bytes] = {}
    inputs: list[tuple[bytes, memoryview]] = []
    outputs: list[memoryview] = []
    raw: list[memoryview] = []
    while at < end:
        tag, length = payload[at], payload[at + 1]
        at += 2
        if length > 0x7F:
            length, at = _length(payload, at - 1)
        start, at = at, at + length
        if at > end:
            raise _Unfit
        if tag == _RAW:
            raw.append(view[start:at])
        elif tag == _INPUT:
            inputs.append((_tensor_name(payload, start, at, _TENSOR_PARAMETER), view[start:at]))
        elif tag == _PARAMETER:
            name, value = _entry(payload, start, at)
            parameters[name] = value
        elif tag == _OUTPUT:
            _tensor_name(payload, start, at, _OUTPUT_PARAMETER)
            outputs.append(view[start:at])
        elif tag == _ID:
            request_id = payload[start:at]
        elif tag not in (_MODEL, _VERSION):  # these two are not needed: the key has the version's digest
            raise _Unfit
    if (parameters and not _STATEFUL.isdisjoint(parameters)) or (raw and len(raw) != len(inputs)):
        raise _Unfit
    parts = _form(parameters, inputs, outputs, raw)
    return Canonical(_digest(parts, end), request_id)


def _form(
    parameters: dict[bytes, bytes], inputs: list[tuple[bytes, memoryview]], outputs: list[memoryview], raw: list[memoryview]
) -> list[bytes | memoryview]:
    """Every part behind its length and every list behind its count: no two forms read alike."""
    asked = sorted(parameters.keys() - _SERVING) if parameters else ()
    parts: list[bytes | memoryview] = [_COUNTS(len(asked), len(outputs), len(inputs), len(raw))]
    for name in asked:
        value = parameters[name]
        parts += (_NUMBER(len(name)), name, _NUMBER(len(value)), value)
    for output in outputs:
        parts += (_NUMBER(len(output)), output)
    places = range(len(inputs))
    for place in sorted(places, key=lambda each: inputs[each][0]) if len(inputs) > 1 else places:
        tensor = inputs[place][1]
        parts += (_NUMBER(len(tensor)), tensor)
        if raw:
            parts += (_NUMBER(len(raw[place])), raw[place])
    return parts


def _digest(parts: list[bytes | memoryview], size_bytes: int) -> bytes:
    if size_bytes <= _AT_ONCE_BYTES:
        return hashlib.sha256(b"".join(parts)).digest()
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part)
    return hashed.digest()


def _length(buffer: bytes, at: int) -> tuple[int, int]:
    """A length and where it ends. Raises _Unfit, IndexError."""
    value = shift = 0
    while shift < 35:  # lengths are below 2 GiB
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _Unfit


def _entry(buffer: bytes, at: int, end: int) -> tuple[bytes, bytes]:
    """One entry of map<string, InferParameter>, written as everybody writes it. Raises _Unfit, IndexError."""
    found: list[bytes] = []
    for tag in (_ENTRY_KEY, _ENTRY_VALUE):
        if buffer[at] != tag:
            raise _Unfit
        length, start = _length(buffer, at + 1)
        at = start + length
        found.append(buffer[start:at])
    if at != end:
        raise _Unfit
    return found[0], found[1]


def _tensor_name(buffer: bytes, at: int, end: int, parameter: int) -> bytes:
    """By which inputs are put in order. Raises _Unfit for a tensor in shared memory: its content is not here."""
    name = b""
    while at < end:
        tag, length = buffer[at], buffer[at + 1]
        if tag & 7 == 0:  # a shape that is not packed
            at = _past_number(buffer, at + 1)
            continue
        if tag > 0x7F or tag & 7 != _LENGTH_DELIMITED:
            raise _Unfit
        at += 2
        if length > 0x7F:
            length, at = _length(buffer, at - 1)
        start, at = at, at + length
        if tag == _TENSOR_NAME:
            name = buffer[start:at]
        elif tag == parameter and _entry(buffer, start, at)[0].startswith(_SHARED):
            raise _Unfit
    if at != end:
        raise _Unfit
    return name


def _past_number(buffer: bytes, at: int) -> int:
    """Where a number of up to ten bytes ends. Raises _Unfit, IndexError."""
    for end in range(at, at + 10):
        if buffer[end] < 0x80:
            return end + 1
    raise _Unfit
