"""What can be a job, and what is said of what cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.ids import TenantId
from scheduler.jobs.errors import JobRefused
from scheduler.jobs.submission import checked, http_model
from scheduler.jobs.types import DAY_MS, MAX_CALL_BYTES, Call, Owner
from tests.scheduler.jobs.ground import ACME, submission

NOW_MS = 1_700_000_000_000


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"owner": Owner(TenantId(""))}, "owner.tenant"),
        ({"owner": Owner(TenantId("a\x00"))}, "owner.tenant"),
        ({"owner": Owner(ACME, allowed_models=("x" * 257,))}, "allowed_models"),
        ({"owner": Owner(ACME, allowed_models=("x",) * 1001)}, "1000 at most"),
        ({"call": Call("/v1/models", b"{}")}, "/v1/models"),
        ({"call": Call("", bytes(MAX_CALL_BYTES + 1))}, "16 MiB"),
        ({"model": ""}, "no model"),
        ({"model": "x" * 257}, "256"),
        ({"idempotency_key": "k" * 129}, "128"),
        ({"idempotency_key": "k\n"}, "printed"),
        ({"priority": 1_001}, "1000"),
        ({"max_attempts": 101}, "100"),
        ({"keep_ms": 31 * DAY_MS}, "keep_s"),
        ({"due_at_ms": NOW_MS + 400 * DAY_MS}, "year"),
        ({"due_at_ms": -1}, "due_at_ms"),
        ({"expires_at_ms": NOW_MS}, "after now"),
        ({"expires_at_ms": -5}, "expires_at_ms"),
        ({"due_at_ms": NOW_MS + 10, "expires_at_ms": NOW_MS + 10}, "after due_at_ms"),
    ],
)
def test_refused_with_what_was_seen(change: dict[str, Any], named: str) -> None:
    with pytest.raises(JobRefused, match=named):
        checked(replace(submission(), **change), NOW_MS)


def test_what_is_in_order_is_due_now_or_later() -> None:
    assert checked(submission(due_at_ms=5), NOW_MS).due_at_ms == NOW_MS
    assert checked(submission(due_at_ms=NOW_MS + 5), NOW_MS).due_at_ms == NOW_MS + 5


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"{}", b'{"model": 7}', b'{"model": ""}', b'{"model": "a", "stream": true}', b"[" * 99_999],
)
def test_bodies_that_are_no_call(body: bytes) -> None:
    with pytest.raises(JobRefused):
        http_model(body)


@given(st.binary(max_size=100))
def test_any_bytes_are_answered(body: bytes) -> None:
    try:
        http_model(body)
    except JobRefused as refused:
        assert body.decode(errors="ignore").strip() not in refused.message or len(body.strip()) < 12
