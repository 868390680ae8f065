"""What becomes of a job: tables, and what holds whatever happens."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import Code
from runtime.ids import TenantId
from scheduler.jobs.policy import (
    AGEING_MS,
    FINAL,
    PATIENCE_MS,
    TRANSITIONS,
    Retries,
    answered,
    cancelled,
    expired,
    expiry_of_replay_ms,
    failed,
    forgotten_at_ms,
    is_open,
    lost,
    rank_ms,
    shares,
)
from scheduler.jobs.types import MAX_ANSWER_BYTES, MAX_TEXT_LETTERS, Answer, BatchId, Failure, Job, JobId, JobState, Owner

NOW_MS = 1_700_000_000_000
RETRIES = Retries()
DRAWS = st.floats(0, 1, exclude_max=True)


def running(tries: int = 1, *, max_attempts: int = 5, expires_at_ms: int = 0, batch: bool = False) -> Job:
    return Job(
        job_id=JobId("job_1"),
        owner=Owner(TenantId("acme")),
        model="sums",
        state=JobState.RUNNING,
        priority=0,
        attempts=tries,
        tries=tries,
        max_attempts=max_attempts,
        created_at_ms=NOW_MS - 1_000,
        due_at_ms=NOW_MS - 1_000,
        ended_at_ms=0,
        expires_at_ms=expires_at_ms,
        keep_ms=60_000,
        forgotten_at_ms=0,
        idempotency_key="",
        batch_id=BatchId("batch_1") if batch else None,
        reason="",
        revision=1,
    )


@pytest.mark.parametrize("code", list(Code))
def test_which_failures_are_tried_again(code: Code) -> None:
    state = failed(running(), Failure(code, "no"), NOW_MS, 0.5, RETRIES).state
    assert state is (JobState.DEAD if code in FINAL else JobState.QUEUED)
    assert failed(running(), Failure(code, "no", final=True), NOW_MS, 0.5, RETRIES).state is JobState.DEAD


@pytest.mark.parametrize(
    "code", [Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.ABORTED, Code.UNKNOWN]
)
def test_what_may_pass_is_not_final(code: Code) -> None:
    assert code not in FINAL


@given(st.integers(1, 100), st.integers(1, 100), st.sampled_from(list(Code)), DRAWS, st.integers(0, 2**40))
def test_no_job_is_tried_more_often_than_it_may(tries: int, most: int, code: Code, draw: float, after_ms: int) -> None:
    job = running(tries, max_attempts=most)
    for verdict in (
        failed(job, Failure(code, "no", retry_after_ms=after_ms), NOW_MS, draw, RETRIES),
        lost(job, NOW_MS, draw, RETRIES),
    ):
        assert verdict.state in TRANSITIONS[JobState.RUNNING]
        assert verdict.state is JobState.DEAD or tries < most or not verdict.attempt_counts
        assert verdict.due_at_ms >= NOW_MS or verdict.state is JobState.DEAD


@given(st.integers(1, 200), DRAWS, st.integers(0, 3_600_000))
def test_back_off_is_bounded_and_never_sooner_than_asked_for(tries: int, draw: float, after_ms: int) -> None:
    delay_ms = RETRIES.delay_ms(tries, draw, after_ms)
    assert after_ms <= delay_ms <= after_ms + RETRIES.longest_ms
    assert RETRIES.delay_ms(tries + 1, draw) >= RETRIES.delay_ms(tries, draw)


def test_back_off_grows() -> None:
    assert [RETRIES.delay_ms(tries, 0.999999) // 1_000 for tries in range(1, 7)] == [4, 19, 79, 319, 599, 599]


def test_asked_to_wait_for_ever_it_waits_an_hour() -> None:
    assert RETRIES.delay_ms(1, 0.0, 2**60) == 3_600_000


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (Answer(0, b""), JobState.SUCCEEDED),
        (Answer(200, b"{}"), JobState.SUCCEEDED),
        (Answer(399, b"{}"), JobState.SUCCEEDED),
        (Answer(400, b"{}"), JobState.DEAD),
        (Answer(503, b"{}"), JobState.DEAD),
        (Answer(0, bytes(MAX_ANSWER_BYTES)), JobState.SUCCEEDED),
        (Answer(0, bytes(MAX_ANSWER_BYTES + 1)), JobState.DEAD),
    ],
)
def test_answers(answer: Answer, state: JobState) -> None:
    verdict = answered(answer)
    assert verdict.state is state
    assert verdict.answer == (answer if len(answer.body) <= MAX_ANSWER_BYTES else None)


def test_a_failures_answer_is_kept_where_it_fits() -> None:
    failure = Failure(Code.INVALID_ARGUMENT, "no", answer=Answer(400, b"{}"))
    assert failed(running(), failure, NOW_MS, 0, RETRIES).answer == Answer(400, b"{}")
    large = replace(failure, answer=Answer(400, bytes(MAX_ANSWER_BYTES + 1)))
    assert failed(running(), large, NOW_MS, 0, RETRIES).answer is None


def test_given_back_it_is_due_soon_and_nothing_was_tried() -> None:
    verdict = failed(running(5), Failure(Code.UNAVAILABLE, "", returned=True), NOW_MS, 0.9, RETRIES)
    assert (verdict.state, verdict.attempt_counts) == (JobState.QUEUED, False)
    assert NOW_MS <= verdict.due_at_ms <= NOW_MS + 1_000


def test_a_busy_mesh_uses_no_attempts_up() -> None:
    full = Failure(Code.RESOURCE_EXHAUSTED, "all are busy", retry_after_ms=7_000)
    verdict = failed(running(5, max_attempts=5), full, NOW_MS, 0.0, RETRIES)
    assert (verdict.state, verdict.attempt_counts, verdict.due_at_ms) == (JobState.QUEUED, False, NOW_MS + 7_000)
    assert "no room" in verdict.reason
    expiring = running(5, max_attempts=5, expires_at_ms=NOW_MS + 7_000)
    assert failed(expiring, full, NOW_MS, 0.0, RETRIES).state is JobState.DEAD


def test_nor_for_ever() -> None:
    old = replace(running(5, max_attempts=5), created_at_ms=NOW_MS - PATIENCE_MS)
    assert failed(old, Failure(Code.RESOURCE_EXHAUSTED, "all are busy"), NOW_MS, 0.0, RETRIES).state is JobState.DEAD


def test_what_expires_before_the_next_attempt_is_not_tried_again() -> None:
    job = running(expires_at_ms=NOW_MS + 10_000)
    soon, late = (Failure(Code.UNAVAILABLE, "no", retry_after_ms=wait_ms) for wait_ms in (9_999, 10_000))
    assert failed(job, soon, NOW_MS, 0.0, RETRIES).state is JobState.QUEUED
    assert failed(job, late, NOW_MS, 0.0, RETRIES).state is JobState.DEAD


@given(st.text(max_size=3_000))
def test_reasons_are_bounded_and_storable(message: str) -> None:
    verdict = failed(running(), Failure(Code.INTERNAL, message), NOW_MS, 0, RETRIES)
    for text in (verdict.reason, verdict.message):
        assert len(text) <= MAX_TEXT_LETTERS
        assert text.isprintable()
        text.encode()


@given(st.integers(0, 1_000), st.integers(0, 10**9), st.integers(0, 10**9))
def test_nothing_starves(priority: int, due_ms: int, later_ms: int) -> None:
    waits = rank_ms(due_ms, priority)
    assert rank_ms(due_ms + priority * AGEING_MS + later_ms + 1, 0) > waits, "whatever comes later than that comes after it"


@given(st.integers(1, 500), st.integers(1, 64))
def test_shares_are_all_the_places_and_as_equal_as_can_be(places: int, tenants: int) -> None:
    found = shares(places, tenants)
    assert (len(found), sum(found)) == (tenants, places)
    assert max(found) - min(found) <= 1
    assert list(found) == sorted(found, reverse=True)


def test_what_ended_is_kept_from_its_end_and_a_line_from_its_batchs() -> None:
    assert forgotten_at_ms(running(), NOW_MS) == NOW_MS + 60_000
    assert forgotten_at_ms(running(expires_at_ms=NOW_MS + 5, batch=True), NOW_MS) == NOW_MS + 5 + 60_000


def test_a_replay_has_as_long_as_the_job_had() -> None:
    assert expiry_of_replay_ms(running(), NOW_MS) == 0
    assert expiry_of_replay_ms(running(expires_at_ms=NOW_MS + 4_000), NOW_MS + 9_000) == NOW_MS + 9_000 + 5_000


def test_open_states_go_on_and_of_the_others_only_the_dead() -> None:
    assert {state for state in JobState if TRANSITIONS[state]} == {state for state in JobState if is_open(state)} | {
        JobState.DEAD
    }
    assert cancelled().state in TRANSITIONS[JobState.QUEUED] & TRANSITIONS[JobState.RUNNING]
    assert expired().state in TRANSITIONS[JobState.QUEUED]
