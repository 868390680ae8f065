"""The Execute stream's messages as values: what a gateway asks, and how answers are encoded.

The only place on the worker that sees ExecuteRequest and ExecuteResponse. Decides nothing. Answers are encoded one frame at
a time, as entries of ExecuteResponse.frames, so that `runtime.streams` can put them end to end.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from penstock.worker.v1 import worker_pb2

from runtime.errors import InvalidArgument, PenstockError
from runtime.streams import parts_of
from worker.types import CallContext, Load


class Method(enum.IntEnum):
    """How a call is answered, by its wire number."""

    INFER = worker_pb2.METHOD_INFER
    STREAM_INFER = worker_pb2.METHOD_STREAM_INFER
    GENERATE = worker_pb2.METHOD_GENERATE


@dataclass(frozen=True, slots=True)
class Opened:
    """A call begins. `payload` is all of it if `payload_end`, else its first part of `payload_bytes`."""

    call_id: int
    method: int
    model: str
    version: str
    context: CallContext
    credit: int
    payload_bytes: int
    payload: bytes
    payload_end: bool


@dataclass(frozen=True, slots=True)
class PartCame:
    """A further part of a call's payload."""

    call_id: int
    part: bytes
    payload_end: bool


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """Nobody waits for this call any more."""

    call_id: int


@dataclass(frozen=True, slots=True)
class CreditGranted:
    """That many more messages may be sent for this call."""

    call_id: int
    messages: int


Event = Opened | PartCame | CancelAsked | CreditGranted


def events_of(raw: bytes, now_s: float) -> Iterator[Event]:
    """What one message says, in order. Raises InvalidArgument if it is no ExecuteRequest."""
    try:
        message = worker_pb2.ExecuteRequest.FromString(raw)
    except DecodeError as error:
        raise InvalidArgument(
            f"{len(raw)} bytes that are no penstock.worker.v1.ExecuteRequest; is the peer a gateway?"
        ) from error
    for frame in message.frames:
        kind = frame.WhichOneof("frame")
        if kind == "open":
            yield _opened(frame, now_s)
        elif kind == "grant":
            yield CreditGranted(frame.call_id, frame.grant)
        elif kind == "cancel":
            yield CancelAsked(frame.call_id)
        elif kind == "data":
            yield PartCame(frame.call_id, frame.data, frame.payload_end)
        else:
            raise InvalidArgument(
                f"call {frame.call_id}: a frame of a kind this worker does not know; upgrade it before gateways"
            )


def _opened(frame: worker_pb2.RequestFrame, now_s: float) -> Opened:
    opening = frame.open
    timeout_us = opening.timeout_us
    return Opened(
        frame.call_id,
        opening.method,
        opening.model,
        opening.version,
        CallContext(
            opening.request_id,
            opening.tenant,
            opening.priority,
            now_s + timeout_us / 1_000_000 if timeout_us else None,
            opening.traceparent,
            hold_id=opening.hold_id,
        ),
        opening.credit,
        opening.payload_bytes,
        opening.payload,
        frame.payload_end,
    )


def answer_frame(call_id: int, answer: bytes, *, end: bool) -> bytes:
    """A whole answer message in one frame."""
    response = worker_pb2.ExecuteResponse()
    response.frames.add(call_id=call_id, data=answer, end=end)
    return response.SerializeToString()


def answer_parts(call_id: int, answer: bytes, *, end: bool) -> Iterator[bytes]:
    """A large answer message, part by part."""
    for part, last in parts_of(answer):
        response = worker_pb2.ExecuteResponse()
        response.frames.add(call_id=call_id, data=bytes(part), more=not last, end=end and last)
        yield response.SerializeToString()


def end_frame(call_id: int) -> bytes:
    """Nothing follows; carries no message of its own."""
    response = worker_pb2.ExecuteResponse()
    response.frames.add(call_id=call_id, end=True)
    return response.SerializeToString()


def failure_frame(call_id: int, error: PenstockError) -> bytes:
    """The call failed, and how."""
    response = worker_pb2.ExecuteResponse()
    failure = response.frames.add(call_id=call_id, end=True).failure
    failure.code, failure.reason, failure.message = int(error.code), error.reason, error.message
    if error.retry_after_s is not None:
        failure.retry_after_ms = max(1, int(error.retry_after_s * 1000))
    return response.SerializeToString()


def load_prefix(load: Load, *, draining: bool) -> bytes:
    """The load, encoded to stand in front of frames."""
    return worker_pb2.ExecuteResponse(load=load_message(load, draining=draining)).SerializeToString()


def load_message(load: Load, *, draining: bool) -> worker_pb2.WorkerLoad:
    return worker_pb2.WorkerLoad(
        in_flight=load.in_flight, queued_rows=load.queued_rows, draining=draining, max_in_flight=load.max_in_flight
    )
