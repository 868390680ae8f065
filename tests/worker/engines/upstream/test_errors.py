"""Statuses and error objects of upstreams as our own errors."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import Code, PenstockError, UpstreamUnavailable
from worker.engines.upstream.errors import (
    DEFAULT_RETRY_AFTER_S,
    MAX_MESSAGE_CHARACTERS,
    ErrorObject,
    UpstreamKeyRefused,
    UpstreamRefused,
    described_error,
    error_in_answer,
    error_object,
    error_of,
    retry_after_s,
)

NOW_S = 1_800_000_000.0

CODES = {
    300: Code.FAILED_PRECONDITION,
    301: Code.FAILED_PRECONDITION,
    400: Code.INVALID_ARGUMENT,
    401: Code.FAILED_PRECONDITION,
    402: Code.FAILED_PRECONDITION,
    403: Code.FAILED_PRECONDITION,
    404: Code.NOT_FOUND,
    405: Code.NOT_FOUND,
    408: Code.DEADLINE_EXCEEDED,
    413: Code.INVALID_ARGUMENT,
    418: Code.INVALID_ARGUMENT,
    422: Code.INVALID_ARGUMENT,
    425: Code.UNAVAILABLE,
    429: Code.RESOURCE_EXHAUSTED,
    500: Code.UNAVAILABLE,
    501: Code.UNAVAILABLE,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
    529: Code.UNAVAILABLE,
    204: Code.INTERNAL,
    700: Code.INTERNAL,
}


@pytest.mark.parametrize(("status", "code"), CODES.items())
def test_every_status_has_a_code(status: int, code: Code) -> None:
    assert error_of(status, ErrorObject()).code is code


@given(st.integers(100, 999), st.text(st.characters(exclude_characters="xyz")), st.text("xyz", min_size=3))
@settings(deadline=None)
def test_no_sentence_is_long_or_tells_the_key(status: int, said: str, key: str) -> None:
    for error in (
        error_of(status, ErrorObject(said + key + said), secret=key),
        error_in_answer(ErrorObject(key + said, status), secret=key),
    ):
        assert len(error.message) < MAX_MESSAGE_CHARACTERS + 150
        assert error.message.isprintable()
        assert key not in error.message


def test_a_rate_limit_says_when_to_come_back() -> None:
    assert error_of(429, ErrorObject()).retry_after_s == DEFAULT_RETRY_AFTER_S
    assert error_of(429, ErrorObject(), 0.0).retry_after_s == 0.0
    assert error_of(429, ErrorObject(retry_after_s=5.0)).retry_after_s == 5.0
    assert error_of(429, ErrorObject(retry_after_s=5.0), 2.0).retry_after_s == 2.0
    assert error_of(503, ErrorObject(), 3.0).retry_after_s == 3.0
    assert error_of(503, ErrorObject()).retry_after_s is None
    assert error_of(400, ErrorObject(), 3.0).retry_after_s is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Fri, 15 Jan 2027 08:00:30 GMT"}, 30.0),
        ({"retry-after": "Fri, 15 Jan 2027 07:00:00 GMT"}, 0.0),
        ({"retry-after": "Fri, 15 Jan 2100 07:00:00 GMT"}, 3600.0),
        ({"retry-after": "999999"}, 3600.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "1" * 400}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, NOW_S) == seconds


def test_googles_error_in_an_array_with_its_delay_and_its_reason() -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.5s"}, {"reason": "API_KEY_INVALID"}, 1]
    raw = json.dumps([{"error": {"code": 400, "message": "API key not valid", "details": details}}]).encode()
    said = error_object(raw)
    assert said == ErrorObject("API key not valid", 400, ("API_KEY_INVALID",), 34.5)
    assert isinstance(error_of(400, said), UpstreamKeyRefused)
    assert "not valid" not in error_of(400, said).message


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"no", b"{}", b'{"error": "text"}', b'{"detail": "x"}', b'{"error": {"message": 7}}', b"\xff"]
)
def test_what_says_nothing(raw: bytes) -> None:
    assert error_object(raw) == ErrorObject()


def test_errors_in_answers() -> None:
    def error(**fields: object) -> PenstockError:
        return error_in_answer(described_error(fields))

    assert isinstance(error(message="bad", code=400), UpstreamRefused)
    assert isinstance(error(message="bad", code="server_error"), UpstreamUnavailable)
    assert isinstance(error(message="bad", code=True), UpstreamUnavailable)
    assert isinstance(error(message="bad", code=7), UpstreamUnavailable)
