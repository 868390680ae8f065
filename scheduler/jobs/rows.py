"""Rows of jobs and the nouns they stand for; and the one way in which a job's row changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from runtime.ids import KeyId, NodeId, TenantId
from scheduler.jobs.policy import TRANSITIONS, Verdict, forgotten_at_ms, is_open, look_at_ms, rank_ms
from scheduler.jobs.schema import NO_DUE_MS, answers, attempts, jobs
from scheduler.jobs.tenants import Changes
from scheduler.jobs.types import MAX_HISTORY, Answer, Attempt, BatchId, Job, JobId, JobState, Owner


def job_of(row: Row[Any], history: Sequence[Attempt] = (), answer: Answer | None = None) -> Job:
    return Job(
        job_id=JobId(row.job_id),
        owner=owner_of(row),
        model=row.model,
        state=JobState(row.state),
        priority=row.priority,
        attempts=row.attempts,
        tries=row.tries,
        max_attempts=row.max_attempts,
        created_at_ms=row.created_at_ms,
        due_at_ms=row.due_at_ms,
        ended_at_ms=row.ended_at_ms,
        expires_at_ms=row.expires_at_ms,
        keep_ms=row.keep_ms,
        forgotten_at_ms=row.forgotten_at_ms,
        idempotency_key=row.idempotency_key or "",
        batch_id=None if row.batch_id is None else BatchId(row.batch_id),
        reason=row.reason,
        revision=row.revision,
        history=tuple(history),
        answer=answer,
    )


def owner_of(row: Row[Any]) -> Owner:
    return Owner(TenantId(row.tenant), KeyId(row.key_id), tuple(row.allowed_models))


async def histories(connection: AsyncConnection, job_ids: Sequence[str]) -> dict[str, list[Attempt]]:
    """Attempts by job, oldest first."""
    asked = select(attempts).where(attempts.c.job_id.in_(job_ids)).order_by(attempts.c.job_id, attempts.c.number)
    found: dict[str, list[Attempt]] = {}
    for row in await connection.execute(asked):
        attempt = Attempt(row.number, NodeId(row.claimed_by), row.began_at_ms, row.ended_at_ms, row.outcome, row.message)
        found.setdefault(row.job_id, []).append(attempt)
    return found


async def answer_of(connection: AsyncConnection, job_id: str) -> Answer | None:
    row = (await connection.execute(select(answers).where(answers.c.job_id == job_id))).first()
    return None if row is None else Answer(row.status, bytes(row.body))


async def begin_attempt(connection: AsyncConnection, row: Row[Any], by: NodeId, claim: str, now_ms: int, until_ms: int) -> None:
    """The row is locked by this transaction, and queued."""
    number = row.attempts + 1
    values = {
        "state": JobState.RUNNING.value,
        "claim": claim,
        "attempts": number,
        "tries": row.tries + 1,
        "look_at_ms": until_ms,
        "reason": f"attempt {row.tries + 1} of {row.max_attempts} is under way",
        "revision": row.revision + 1,
    }
    await connection.execute(update(jobs).where(jobs.c.job_id == row.job_id).values(values))
    await connection.execute(insert(attempts).values(job_id=row.job_id, number=number, claimed_by=by, began_at_ms=now_ms))
    if number > MAX_HISTORY:
        stale = (attempts.c.job_id == row.job_id) & (attempts.c.number <= number - MAX_HISTORY)
        await connection.execute(delete(attempts).where(stale))


async def apply(connection: AsyncConnection, row: Row[Any], verdict: Verdict, now_ms: int, changes: Changes) -> None:
    """The row is locked by this transaction. What it means for its tenant is added to the changes."""
    job, is_over = job_of(row), not is_open(verdict.state)
    if verdict.state not in TRANSITIONS[job.state]:
        raise AssertionError(f"job {job.job_id} cannot go from {job.state.value} to {verdict.state.value}")
    due_at_ms = job.due_at_ms if is_over else verdict.due_at_ms
    ended_at_ms = now_ms if is_over else 0
    until_ms = forgotten_at_ms(job, now_ms) if is_over else 0
    looked_at_ms = look_at_ms(
        verdict.state, expires_at_ms=0 if job.batch_id else job.expires_at_ms, claimed_until_ms=0, forgotten_at_ms=until_ms
    )
    uncounted = 0 if verdict.attempt_counts else 1
    values = {
        "state": verdict.state.value,
        "reason": verdict.reason,
        "claim": None,
        "attempts": row.attempts - uncounted,
        "tries": row.tries - uncounted,
        "due_at_ms": due_at_ms,
        "rank_ms": rank_ms(due_at_ms, job.priority),
        "ended_at_ms": ended_at_ms,
        "forgotten_at_ms": until_ms,
        "look_at_ms": looked_at_ms,
        "answer_bytes": 0 if verdict.answer is None else len(verdict.answer.body),
        "revision": row.revision + 1,
    }
    await connection.execute(update(jobs).where(jobs.c.job_id == row.job_id).values(values))
    if job.state is JobState.RUNNING:
        await _end_attempt(connection, row, verdict, now_ms)
    if verdict.answer is not None:
        stored = {"job_id": row.job_id, "status": verdict.answer.status, "body": verdict.answer.body}
        await connection.execute(insert(answers).values(stored))
    changes.of(row.tenant).add(
        open_jobs=int(not is_over) - int(is_open(job.state)) if row.batch_id is None else 0,
        stored_bytes=values["answer_bytes"] - row.answer_bytes,
        due_at_ms=NO_DUE_MS if is_over else due_at_ms,
    )


async def end_queued_lines(
    connection: AsyncConnection, batch_id: BatchId, verdict: Verdict, kept_until_ms: int, now_ms: int, most: int
) -> list[JobId]:
    """`apply`, for many lines of one batch at once: no attempt of theirs is under way, and they count for no tenant."""
    waits = (jobs.c.batch_id == batch_id) & (jobs.c.state == JobState.QUEUED.value)
    some = select(jobs.c.job_id).where(waits).limit(most).with_for_update(skip_locked=True)
    job_ids = list((await connection.execute(some)).scalars())
    values = {
        "state": verdict.state.value,
        "reason": verdict.reason,
        "ended_at_ms": now_ms,
        "forgotten_at_ms": kept_until_ms,
        "look_at_ms": kept_until_ms,
        "revision": jobs.c.revision + 1,
    }
    if job_ids:
        await connection.execute(update(jobs).where(jobs.c.job_id.in_(job_ids)).values(values))
    return [JobId(job_id) for job_id in job_ids]


async def _end_attempt(connection: AsyncConnection, row: Row[Any], verdict: Verdict, now_ms: int) -> None:
    this = (attempts.c.job_id == row.job_id) & (attempts.c.number == row.attempts)
    if not verdict.attempt_counts:
        await connection.execute(delete(attempts).where(this))
        return
    ended_at_ms = 0 if verdict.outcome == "LOST" else now_ms
    ended = {"ended_at_ms": ended_at_ms, "outcome": verdict.outcome, "message": verdict.message}
    await connection.execute(update(attempts).where(this).values(ended))
