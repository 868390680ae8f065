"""Failures as OpenAI's clients read them: an HTTP status and {"error": {message, type, param, code}}.

Decides the status and the code of every failure. Statuses follow what the official clients do with them: they try 408, 409, 429
and 5xx again, so nothing that will fail again gets one of those.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from runtime.errors import Code, PenstockError


class RequestRefused(PenstockError, code=Code.INVALID_ARGUMENT, reason="OPENAI_REQUEST_REFUSED"):
    """The request's JSON is not what the API takes. `param` says where, `fault` is OpenAI's code for it."""

    def __init__(
        self, message: str, *, param: str | None = None, fault: str = "invalid_value", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.param, self.fault = param, fault


class BodyTooLarge(PenstockError, code=Code.INVALID_ARGUMENT, reason="OPENAI_BODY_TOO_LARGE"):
    """More JSON than is parsed at once."""


class AnswerCutShort(PenstockError, code=Code.UNAVAILABLE, reason="ANSWER_CUT_SHORT"):
    """The worker's answer ended without its last piece."""


class AnswerUnusable(PenstockError, code=Code.INTERNAL, reason="ANSWER_UNUSABLE"):
    """The model answered with something that is no embedding."""


class UrlUnknown(PenstockError, code=Code.INVALID_ARGUMENT, reason="OPENAI_URL_UNKNOWN"):
    """A job or a batch for a path that cannot be asked this way."""


class FileUnknown(PenstockError, code=Code.NOT_FOUND, reason="OPENAI_FILE_UNKNOWN"):
    """There is no such file of this tenant's."""


class BatchUnknown(PenstockError, code=Code.NOT_FOUND, reason="OPENAI_BATCH_UNKNOWN"):
    """There is no such batch of this tenant's."""


class ContentCutShort(PenstockError, code=Code.UNAVAILABLE, reason="CONTENT_CUT_SHORT"):
    """A file's bytes ended before its size was reached."""


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """What to write: the body, and beside it the headers, the inner status header among them."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...]


STATUS_HEADER = "x-penstock-http-status"
"""The edge makes it the HTTP status."""

_BY_REASON: dict[str, tuple[int, str]] = {
    "KEY_MISSING": (401, "missing_api_key"),
    "KEY_REFUSED": (401, "invalid_api_key"),
    "MODEL_NOT_ALLOWED": (403, "model_not_allowed"),
    "RATE_LIMITED": (429, "rate_limit_exceeded"),
    "TOO_MANY_KEYS_REFUSED": (429, "rate_limit_exceeded"),
    "UPSTREAM_RATE_LIMITED": (429, "rate_limit_exceeded"),
    "CONTEXT_EXCEEDED": (400, "context_length_exceeded"),
    "CAPABILITY_LACKING": (400, "unsupported_parameter"),
    "OPENAI_BODY_TOO_LARGE": (413, "request_too_large"),
    "OPENAI_URL_UNKNOWN": (400, "invalid_value"),
    "URL_UNKNOWN": (404, "unknown_url"),
    "OPENAI_FILE_UNKNOWN": (404, "file_not_found"),
    "OPENAI_BATCH_UNKNOWN": (404, "batch_not_found"),
}
_PARAMS: dict[str, str | None] = {
    "CONTEXT_EXCEEDED": "messages",
    "OPENAI_URL_UNKNOWN": "endpoint",
    "OPENAI_FILE_UNKNOWN": "file_id",
    "OPENAI_BATCH_UNKNOWN": "batch_id",
    "URL_UNKNOWN": None,
}
_BY_CODE: dict[Code, tuple[int, str]] = {
    Code.INVALID_ARGUMENT: (400, "invalid_value"),
    Code.OUT_OF_RANGE: (400, "invalid_value"),
    Code.FAILED_PRECONDITION: (400, "failed_precondition"),
    Code.UNIMPLEMENTED: (400, "unsupported"),
    Code.ALREADY_EXISTS: (400, "already_exists"),
    Code.UNAUTHENTICATED: (401, "invalid_api_key"),
    Code.PERMISSION_DENIED: (403, "permission_denied"),
    Code.NOT_FOUND: (404, "model_not_found"),
    Code.RESOURCE_EXHAUSTED: (503, "overloaded"),
    Code.UNAVAILABLE: (503, "unavailable"),
    Code.ABORTED: (503, "unavailable"),
    Code.CANCELLED: (503, "unavailable"),
    Code.DEADLINE_EXCEEDED: (504, "timeout"),
}
_WORTH_WAITING = (429, 503)
_RETRY_AFTER_S = 1.0
"""What a client is told to wait where nobody knows better."""

_INTERNAL = (500, "internal_error")
_TYPES = {403: "permission_error", 429: "rate_limit_error"}


def error_answer(error: PenstockError) -> ErrorAnswer:
    status, code = _status(error)
    headers = [(STATUS_HEADER, str(status))]
    wait_s = _RETRY_AFTER_S if error.retry_after_s is None and status in _WORTH_WAITING else error.retry_after_s
    if wait_s is not None:
        # Whole seconds are all that HTTP knows; the official clients prefer the finer one.
        headers.append(("retry-after", str(max(1, math.ceil(wait_s)))))
        headers.append(("retry-after-ms", str(max(1, math.ceil(wait_s * 1000)))))
    return ErrorAnswer(status, _body(error, status, code), tuple(headers))


def error_event(error: PenstockError) -> bytes:
    """The failure as an event, for an answer that has begun: its status can be changed no more."""
    return b"data: %b\n\n" % error_answer(error).body


def _body(error: PenstockError, status: int, code: str) -> bytes:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    param = error.param if isinstance(error, RequestRefused) else _PARAMS.get(error.reason, "model" if status == 404 else None)
    fields = {"message": error.message, "type": kind, "param": param, "code": code}
    return json.dumps({"error": fields}).encode()


def _status(error: PenstockError) -> tuple[int, str]:
    if isinstance(error, RequestRefused):
        return 400, error.fault
    return _BY_REASON.get(error.reason) or _BY_CODE.get(error.code, _INTERNAL)
