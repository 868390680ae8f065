"""What becomes of a job: the table of its states, when it is tried again, when it is given up, and whose turn it is.

Takes values and returns values; the clock's reading and the random draw are arguments. Never decides who runs a job.

    queued ──claimed──▶ running ──answered──▶ succeeded
      ▲  │                │  │
      │  │                │  ├─ failed, an attempt is left, or the claim ran out ──▶ queued
      │  │                │  └─ failed for good, or no attempt is left ──▶ dead ──replayed──▶ queued
      │  └─ expired ──▶ dead
      └──── cancelled, from queued and running ──▶ cancelled
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runtime.errors import Code
from scheduler.jobs.types import MAX_ANSWER_BYTES, MAX_TEXT_LETTERS, OPEN, Answer, Failure, Job, JobState, MiB

TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.DEAD, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.QUEUED, JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.DEAD: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset(),
}

FINAL = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.PERMISSION_DENIED,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.UNIMPLEMENTED,
        Code.UNAUTHENTICATED,
    }
)
"""The same call would fail the same way, until a person changed something; then the dead letter is replayed."""

LOST = "LOST"
OK = "OK"
AGEING_MS = 60_000
"""A job of one priority lower is overtaken by those alone that come within so much later: nothing starves."""

PATIENCE_MS = 24 * 3_600_000
"""A job that finds no room has not been tried, for so long; then attempts count, so that none goes round for ever."""

_NO_ROOM_TRIES = 2
"""The back-off of one that found no room is this try's, however often it was."""

_LONGEST_RETRY_AFTER_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Retries:
    """When a job is tried again: full jitter, so that what failed together does not come back together.

    Source: M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
    """

    max_attempts: int = 5
    first_ms: int = 5_000
    factor: float = 4.0
    longest_ms: int = 600_000

    def delay_ms(self, tries: int, draw: float, retry_after_ms: int = 0) -> int:
        """After so many tries; `draw` is from [0, 1). Never sooner than it was asked for."""
        bound_ms = min(self.first_ms * self.factor ** min(max(tries, 1) - 1, 32), self.longest_ms)
        return min(retry_after_ms, _LONGEST_RETRY_AFTER_MS) + int(draw * bound_ms)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where a job goes, and why."""

    state: JobState
    reason: str
    outcome: str = ""
    """Of the attempt that this ends; empty: none."""
    message: str = ""
    due_at_ms: int = 0
    """Of one that is queued."""
    answer: Answer | None = None
    attempt_counts: bool = True


def rank_ms(due_at_ms: int, priority: int) -> int:
    """Jobs of a tenant are claimed by ascending rank. It does not change while a job waits."""
    return due_at_ms + priority * AGEING_MS


def look_at_ms(state: JobState, *, expires_at_ms: int, claimed_until_ms: int, forgotten_at_ms: int) -> int:
    """When time alone changes the job; 0: never."""
    if state is JobState.QUEUED:
        return expires_at_ms
    return claimed_until_ms if state is JobState.RUNNING else forgotten_at_ms


def forgotten_at_ms(job: Job, now_ms: int) -> int:
    """Of one that ends now. Lines of a batch are kept until the batch has ended for sure."""
    from_ms = now_ms if job.batch_id is None else max(now_ms, job.expires_at_ms)
    return from_ms + job.keep_ms


def answered(answer: Answer) -> Verdict:
    """The gateway has an answer. HTTP answers of 400 and above are failures that the caller gets to see."""
    if (size := len(answer.body)) > MAX_ANSWER_BYTES:
        reason = f"its answer has {size} bytes, of {MAX_ANSWER_BYTES // MiB} MiB at most; ask for less in one job"
        return Verdict(JobState.DEAD, reason, Code.OUT_OF_RANGE.name, reason)
    if answer.status >= 400:
        reason = f"it was answered with HTTP status {answer.status}"
        return Verdict(JobState.DEAD, reason, OK, reason, answer=answer)
    return Verdict(JobState.SUCCEEDED, "it was answered", OK, answer=answer)


def failed(job: Job, failure: Failure, now_ms: int, draw: float, retries: Retries) -> Verdict:
    """The attempt that `job.tries` counts already has failed."""
    if failure.returned:
        due_at_ms = now_ms + min(failure.retry_after_ms, _LONGEST_RETRY_AFTER_MS) + int(draw * 1_000)
        return Verdict(JobState.QUEUED, "a gateway gave it back untried", due_at_ms=due_at_ms, attempt_counts=False)
    name, message = failure.code.name, _shortened(failure.message)
    said = f"{name}: {message}"
    if failure.final or failure.code in FINAL:
        answer = failure.answer
        if answer is not None and len(answer.body) > MAX_ANSWER_BYTES:
            answer = None
        return Verdict(JobState.DEAD, _shortened(f"it failed for good: {said}"), name, message, answer=answer)
    if failure.code is Code.RESOURCE_EXHAUSTED and now_ms - job.created_at_ms < PATIENCE_MS:
        due_at_ms = now_ms + retries.delay_ms(_NO_ROOM_TRIES, draw, failure.retry_after_ms)
        if not job.expires_at_ms or due_at_ms < job.expires_at_ms:
            reason = _shortened(f"there was no room for it: {said}")
            return Verdict(JobState.QUEUED, reason, due_at_ms=due_at_ms, attempt_counts=False)
    return _again(job, name, message, said, now_ms, retries.delay_ms(job.tries, draw, failure.retry_after_ms))


def lost(job: Job, now_ms: int, draw: float, retries: Retries) -> Verdict:
    """The claim ran out: whoever had the job is gone, or has forgotten it."""
    said = "nobody extended its claim in time"
    return _again(job, LOST, "", said, now_ms, retries.delay_ms(job.tries, draw))


def _again(job: Job, outcome: str, message: str, said: str, now_ms: int, delay_ms: int) -> Verdict:
    due_at_ms = now_ms + delay_ms
    if job.tries >= job.max_attempts:
        reason = f"attempt {job.tries} of {job.max_attempts} was the last: {said}"
        return Verdict(JobState.DEAD, _shortened(reason), outcome, message)
    if job.expires_at_ms and due_at_ms >= job.expires_at_ms:
        return Verdict(JobState.DEAD, _shortened(f"it expires before it could be tried again: {said}"), outcome, message)
    reason = f"attempt {job.tries} of {job.max_attempts} failed: {said}"
    return Verdict(JobState.QUEUED, _shortened(reason), outcome, message, due_at_ms)


def cancelled() -> Verdict:
    return Verdict(JobState.CANCELLED, "it was cancelled", Code.CANCELLED.name, "the job was cancelled")


def expired() -> Verdict:
    return Verdict(JobState.DEAD, "it expired before it was done")


def expiry_of_replay_ms(job: Job, now_ms: int) -> int:
    """A replayed job that had a time to be done in has it anew."""
    return now_ms + max(job.expires_at_ms - job.created_at_ms, 1) if job.expires_at_ms else 0


def is_open(state: JobState) -> bool:
    return state in OPEN


def shares(places: int, tenants: int) -> tuple[int, ...]:
    """How many of the places each tenant gets, those who were served longest ago first: as equal as can be."""
    each, left = divmod(places, tenants)
    return tuple(each + (index < left) for index in range(tenants))


def _shortened(text: str) -> str:
    """What fits, and what databases take: PostgreSQL stores no NUL, and nobody half of a surrogate pair."""
    text = text if text.isprintable() else "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= MAX_TEXT_LETTERS else f"{text[: MAX_TEXT_LETTERS - 1]}…"
