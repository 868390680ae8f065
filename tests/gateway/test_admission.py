"""Keys in headers, what keys allow, and how often is tried again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission import (
    AdminRequired,
    KeyFacts,
    KeyMissing,
    KeyRefused,
    ModelNotAllowed,
    secret_of,
)
from placement.routing.retry_budget import WINDOW_S, RetryBudget
from runtime.ids import KeyId, TenantId


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sk-1"},
        {"authorization": "bearer  sk-1 "},
        {"x-api-key": "sk-1"},
        {"api-key": "sk-1"},
        {"authorization": "Bearer sk-1", "x-api-key": "sk-2"},
    ],
)
def test_a_key_is_found(headers: dict[str, str | bytes]) -> None:
    assert secret_of(headers) == "sk-1"


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({}, KeyMissing),
        ({"authorization": "Bearer "}, KeyMissing),
        ({"authorization": "Bearer"}, KeyMissing),
        ({"x-api-key": ""}, KeyMissing),
        ({"authorization": "Basic c2s="}, KeyRefused),
        ({"authorization": "Bearer " + "x" * 300}, KeyRefused),
        ({"x-api-key": "sk-ü"}, KeyRefused),
        ({"x-api-key": b"sk-1"}, KeyMissing),
    ],
)
def test_what_is_no_key_is_refused(headers: dict[str, str | bytes], error: type[Exception]) -> None:
    with pytest.raises(error):
        secret_of(headers)


def test_a_key_is_for_the_models_it_names() -> None:
    facts = KeyFacts(KeyId("k"), TenantId("t"), allowed_models=frozenset({"m"}))
    facts.authorise("m")
    with pytest.raises(ModelNotAllowed, match="it is for: m"):
        facts.authorise("n")
    KeyFacts(KeyId("k"), TenantId("t")).authorise("anything")
    with pytest.raises(AdminRequired):
        facts.require_admin("loading")


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=300))
def test_retries_stay_a_share_of_the_requests(steps: list[tuple[float, bool]]) -> None:
    budget, now_s = RetryBudget(share=0.2, floor_per_s=1.0), 1000.0
    requests: list[int] = []
    retries: list[int] = []
    for gap_s, retry in steps:
        now_s += gap_s
        if not retry:
            budget.note_request(now_s)
            requests.append(int(now_s))
        elif budget.take(now_s):
            retries.append(int(now_s))
        since = int(now_s) - WINDOW_S
        within = sum(second > since for second in retries)
        seen = sum(second > since - WINDOW_S for second in requests)
        assert within <= 0.2 * seen + 1.0 * WINDOW_S + 1e-9


def test_a_quiet_gateway_has_its_floor_again_after_the_window() -> None:
    budget = RetryBudget(share=0.0, floor_per_s=0.2)
    assert [budget.take(5.0) for _ in range(3)] == [True, True, False]
    assert not budget.take(5.0 + WINDOW_S - 1)
    assert budget.take(5.0 + WINDOW_S)
