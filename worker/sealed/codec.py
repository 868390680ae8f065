"""Sealed answers as messages, and what a payload says it is for. Decides nothing; calls are `runtime.sealing`'s."""

from __future__ import annotations

from penstock.worker.v1 import sealed_pb2, worker_pb2

from runtime.errors import InvalidArgument, PenstockError
from worker.execute.frames import Method
from worker.generation.codec import parse_generate
from worker.kserve.codec import parse


def named(method: int, payload: bytes) -> tuple[str, str]:
    """Model and version as the payload has them, empty where it leaves them open. Raises InvalidArgument."""
    if method == Method.GENERATE:
        return parse_generate(payload)[0], ""
    if method not in (Method.INFER, Method.STREAM_INFER):
        raise InvalidArgument(f"method {method} is none this worker knows; known are 1 to {max(Method)}")
    request = parse(payload)
    return request.model_name, request.model_version


def data_answer(data: bytes) -> bytes:
    """A serialised SealedAnswer of one response message."""
    return sealed_pb2.SealedAnswer(data=data).SerializeToString()


def failure_answer(error: PenstockError) -> bytes:
    """A serialised SealedAnswer that says how the call failed."""
    failure = worker_pb2.Failure(code=int(error.code), reason=error.reason, message=error.message)
    if error.retry_after_s is not None:
        failure.retry_after_ms = max(1, int(error.retry_after_s * 1000))
    return sealed_pb2.SealedAnswer(failure=failure).SerializeToString()
