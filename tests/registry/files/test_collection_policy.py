"""What may go: tables and invariants, without a database."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.files.collection import FileFacts, is_orphan, is_stale_upload, judged
from registry.files.types import DAY_MS, FileLimits, ObjectId
from runtime.ids import TenantId

A, B = TenantId("a"), TenantId("b")
LIMITS = FileLimits()
NOW_MS = 100 * DAY_MS
OLD_MS, YOUNG_MS = NOW_MS - 2 * DAY_MS, NOW_MS - DAY_MS // 2

TENANTS = st.sampled_from([A, B, TenantId("c")])
TIMES = st.integers(0, NOW_MS)
FACTS = st.builds(FileFacts, TIMES, st.dictionaries(TENANTS, TIMES), st.frozensets(TENANTS))


@pytest.mark.parametrize(
    ("facts", "claims", "file"),
    [
        (FileFacts(OLD_MS, {A: OLD_MS}, frozenset()), {A}, True),
        (FileFacts(OLD_MS, {}, frozenset()), set(), True),
        (FileFacts(OLD_MS, {A: YOUNG_MS}, frozenset()), set(), False),
        (FileFacts(OLD_MS, {A: OLD_MS, B: YOUNG_MS}, frozenset()), {A}, False),
        (FileFacts(YOUNG_MS, {A: OLD_MS}, frozenset()), {A}, False),
        (FileFacts(OLD_MS, {A: OLD_MS}, frozenset({A})), set(), False),
        (FileFacts(OLD_MS, {A: OLD_MS, B: OLD_MS}, frozenset({A})), {B}, False),
        (FileFacts(OLD_MS, {}, frozenset({A})), set(), False),
    ],
)
def test_what_goes(facts: FileFacts, claims: set[TenantId], file: bool) -> None:
    verdict = judged(facts, NOW_MS, LIMITS)
    assert (set(verdict.claims), verdict.file) == (claims, file)


@given(FACTS, TIMES)
def test_what_a_version_or_a_young_claim_needs_never_goes(facts: FileFacts, now_ms: int) -> None:
    verdict = judged(facts, now_ms, LIMITS)
    if facts.named_by or any(at_ms >= now_ms - LIMITS.grace_ms for at_ms in facts.claimed_at_ms.values()):
        assert not verdict.file
    assert not verdict.claims & facts.named_by
    assert all(facts.claimed_at_ms[tenant] < now_ms - LIMITS.grace_ms for tenant in verdict.claims)


@given(FACTS, TIMES, st.integers(0, DAY_MS))
def test_what_may_go_may_go_later_too(facts: FileFacts, now_ms: int, more_ms: int) -> None:
    now, later = judged(facts, now_ms, LIMITS), judged(facts, now_ms + more_ms, LIMITS)
    assert later.file >= now.file
    assert later.claims >= now.claims


@pytest.mark.parametrize(
    ("touched_days_ago", "verifying_in_ms", "stale"), [(8, 0, True), (8, 1, False), (6, 0, False), (7, 0, False)]
)
def test_an_upload_goes_once_nobody_goes_on_with_it(touched_days_ago: int, verifying_in_ms: int, stale: bool) -> None:
    touched_at_ms = NOW_MS - touched_days_ago * DAY_MS
    assert is_stale_upload(touched_at_ms, NOW_MS + verifying_in_ms, NOW_MS, LIMITS) is stale


@pytest.mark.parametrize(
    ("object_id", "modified_at_ms", "orphan"),
    [
        (ObjectId(b"x" * 16), OLD_MS, True),
        (ObjectId(b"x" * 16), YOUNG_MS, False),
        (ObjectId(b"n" * 16), OLD_MS, False),
        (None, OLD_MS, False),
    ],
)
def test_an_object_goes_that_is_ours_old_and_named_by_nothing(
    object_id: ObjectId | None, modified_at_ms: int, orphan: bool
) -> None:
    assert is_orphan(object_id, modified_at_ms, {ObjectId(b"n" * 16)}, NOW_MS, LIMITS) is orphan
