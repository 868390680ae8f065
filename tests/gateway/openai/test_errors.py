"""Failures as HTTP clients read them."""

from __future__ import annotations

import json

import pytest

from gateway.admission import KeyMissing, KeyRefused, ModelNotAllowed, RateLimited, TooManyGuesses
from gateway.openai.errors import BodyTooLarge, RequestRefused, error_answer, error_event
from gateway.refusals import FleetFull, ModelCold, ModelUnknown
from runtime.errors import (
    CapabilityLacking,
    ContextExceeded,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    PenstockError,
    ResourceExhausted,
    Unimplemented,
)


@pytest.mark.parametrize(
    ("error", "status", "kind", "param", "code"),
    [
        (RequestRefused("x", param="n", fault="f"), 400, "invalid_request_error", "n", "f"),
        (InvalidArgument("x"), 400, "invalid_request_error", None, "invalid_value"),
        (ContextExceeded("x"), 400, "invalid_request_error", "messages", "context_length_exceeded"),
        (CapabilityLacking("x"), 400, "invalid_request_error", None, "unsupported_parameter"),
        (FailedPrecondition("x"), 400, "invalid_request_error", None, "failed_precondition"),
        (Unimplemented("x"), 400, "invalid_request_error", None, "unsupported"),
        (KeyMissing("x"), 401, "invalid_request_error", None, "missing_api_key"),
        (KeyRefused("x"), 401, "invalid_request_error", None, "invalid_api_key"),
        (ModelNotAllowed("x"), 403, "permission_error", None, "model_not_allowed"),
        (ModelUnknown("x"), 404, "invalid_request_error", "model", "model_not_found"),
        (BodyTooLarge("x"), 413, "invalid_request_error", None, "request_too_large"),
        (RateLimited("x"), 429, "rate_limit_error", None, "rate_limit_exceeded"),
        (TooManyGuesses("x"), 429, "rate_limit_error", None, "rate_limit_exceeded"),
        (Internal("x"), 500, "server_error", None, "internal_error"),
        (ResourceExhausted("x"), 503, "server_error", None, "overloaded"),
        (FleetFull("x"), 503, "server_error", None, "overloaded"),
        (ModelCold("x"), 503, "server_error", None, "unavailable"),
        (DeadlineExceeded("x"), 504, "server_error", None, "timeout"),
    ],
)
def test_status_and_body(error: PenstockError, status: int, kind: str, param: str | None, code: str) -> None:
    answer = error_answer(error)
    assert answer.status == status
    waits = (("retry-after", "1"), ("retry-after-ms", "1000")) if status in (429, 503) else ()
    assert answer.headers == (("x-penstock-http-status", str(status)), *waits)
    assert json.loads(answer.body) == {"error": {"message": "x", "type": kind, "param": param, "code": code}}


@pytest.mark.parametrize(("wait_s", "seconds", "ms"), [(0.0001, "1", "1"), (0.25, "1", "250"), (1.5, "2", "1500")])
def test_how_long_to_wait(wait_s: float, seconds: str, ms: str) -> None:
    headers = dict(error_answer(RateLimited("x", retry_after_s=wait_s)).headers)
    assert (headers["retry-after"], headers["retry-after-ms"]) == (seconds, ms)


def test_a_failure_as_an_event() -> None:
    event = error_event(Internal('say "less"\n'))
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
