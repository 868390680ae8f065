"""Messages as the cache reads and writes them: whether a generation can be repeated, how it ended, whose id an answer bears.

With servicers and clients, the only place that sees them. An answer's id is cut out of its bytes and put at their end: of a
field that comes twice the last one counts (protobuf encoding guide, "Last One Wins"), and here it comes once.
"""

from __future__ import annotations

import enum

from google.protobuf.message import DecodeError
from penstock.worker.v1 import worker_pb2

_ID = 0x1A
_LENGTH_DELIMITED = 2
_ENDED_WELL = frozenset({worker_pb2.FINISH_REASON_STOP, worker_pb2.FINISH_REASON_LENGTH, worker_pb2.FINISH_REASON_TOOL_CALLS})


class Part(enum.Enum):
    """What one message of a generation is of its answer."""

    MORE_FOLLOWS = "more follows"
    WHOLE = "whole"
    """It was the last, and the answer may be given again."""
    UNFIT = "unfit"
    """The answer may not be given again: it was withheld, or cannot be read."""


def is_repeatable(payload: bytes) -> bool:
    """Whether a GenerateRequest has one answer, of a model that says so of itself.

    What is drawn at random differs each time, unless a seed is given. A request that says nothing of sampling is answered as
    the model's own configuration has it, which whoever declared the model knew.
    """
    try:
        message = worker_pb2.GenerateRequest.FromString(payload)
    except DecodeError:
        return False
    if message.resume_token_ids:
        return False
    sampling = message.sampling
    if sampling.HasField("seed") or sampling.top_k == 1:
        return True
    if sampling.HasField("temperature"):
        return sampling.temperature == 0
    return not (sampling.HasField("top_p") or sampling.HasField("top_k"))


def part_of(answer: bytes) -> Part:
    """Of a GenerateResponse."""
    try:
        finish = worker_pb2.GenerateResponse.FromString(answer).finish_reason
    except DecodeError:
        return Part.UNFIT
    if not finish:
        return Part.MORE_FOLLOWS
    return Part.WHOLE if finish in _ENDED_WELL else Part.UNFIT


def without_id(answer: bytes) -> bytes | None:
    """A ModelInferResponse without the id of the request that it answered; None for what is none as workers write it."""
    kept: list[bytes] = []
    at, from_, end = 0, 0, len(answer)
    try:
        while at < end:
            start, tag = at, answer[at]
            if tag > 0x7F or tag & 7 != _LENGTH_DELIMITED:
                return None
            length, at = _length(answer, at + 1)
            at += length
            if tag == _ID:
                kept.append(answer[from_:start])
                from_ = at
    except IndexError:
        return None
    if at != end:
        return None
    return b"".join([*kept, answer[from_:]]) if kept else answer


def with_id(answer: bytes, request_id: bytes) -> bytes:
    """The answer to the request of this id; an empty one is not echoed."""
    if not request_id:
        return answer
    return b"".join((answer, bytes((_ID,)), _written(len(request_id)), request_id))


def _length(buffer: bytes, at: int) -> tuple[int, int]:
    """A length, as far as one can go, and where it ends."""
    value = shift = 0
    while shift < 35:
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return value, at


def _written(length: int) -> bytes:
    parts = bytearray()
    while length > 0x7F:
        parts.append(length & 0x7F | 0x80)
        length >>= 7
    parts.append(length)
    return bytes(parts)
