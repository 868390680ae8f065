"""Failures as Triton's HTTP clients read them: a status and {"error": "..."}.

Decides the status of every failure. Source: Triton's http_server.cc, HttpCodeFromError; what it has no word for is said as HTTP
does (401, 403, 413, 429, 504).
"""

from __future__ import annotations

import json
import math

from gateway.openai.errors import STATUS_HEADER
from gateway.rest.types import Body
from runtime.errors import Code, PenstockError


class BodyTooLarge(PenstockError, code=Code.INVALID_ARGUMENT, reason="REST_BODY_TOO_LARGE"):
    """More than is parsed, or unpacked, at once."""


class RequestRefused(PenstockError, code=Code.INVALID_ARGUMENT, reason="REST_REQUEST_REFUSED"):
    """The body is not what the protocol says."""


class OutputUnfit(PenstockError, code=Code.INVALID_ARGUMENT, reason="REST_OUTPUT_UNFIT"):
    """An output cannot be told in JSON: it has to be asked for as bytes."""


class AnswerUnusable(PenstockError, code=Code.INTERNAL, reason="REST_ANSWER_UNUSABLE"):
    """A worker answered with something that is no answer."""


class AnswerCutShort(PenstockError, code=Code.UNAVAILABLE, reason="REST_ANSWER_CUT_SHORT"):
    """The worker's answer ended without its last piece."""


_BY_REASON: dict[str, int] = {
    "RATE_LIMITED": 429,
    "UPSTREAM_RATE_LIMITED": 429,
    "TOO_MANY_KEYS_REFUSED": 429,
    "REST_BODY_TOO_LARGE": 413,
}
_BY_CODE: dict[Code, int] = {
    Code.INVALID_ARGUMENT: 400,
    Code.OUT_OF_RANGE: 400,
    Code.FAILED_PRECONDITION: 400,
    Code.ALREADY_EXISTS: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.CANCELLED: 499,
    Code.UNIMPLEMENTED: 501,
    Code.RESOURCE_EXHAUSTED: 503,
    Code.UNAVAILABLE: 503,
    Code.ABORTED: 503,
    Code.DEADLINE_EXCEEDED: 504,
}


def status_of(error: PenstockError) -> int:
    return _BY_REASON.get(error.reason) or _BY_CODE.get(error.code, 500)


def error_answer(error: PenstockError) -> Body:
    """The whole answer to a request that failed."""
    status = status_of(error)
    headers = [(STATUS_HEADER, str(status))]
    if error.retry_after_s is not None:
        headers.append(("retry-after", str(max(1, math.ceil(error.retry_after_s)))))
    return Body((_object(error),), headers=tuple(headers), status=status)


def error_event(error: PenstockError) -> bytes:
    """The last event of an answer that had begun."""
    return b"data: " + _object(error) + b"\n\n"


def _object(error: PenstockError) -> bytes:
    return json.dumps({"error": error.message}).encode()
