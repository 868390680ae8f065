"""Jobs in SQL, as those who submit them see them: submit, look, list, cancel, replay. Who runs them: `sql_claims.py`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import sha256
from typing import Any

from sqlalchemy import Row, Select, delete, insert, select, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from runtime.database import Database, DatabaseBusy
from runtime.ids import TenantId
from scheduler.jobs.errors import IdempotencyKeyTaken, JobUnknown
from scheduler.jobs.policy import Retries, Verdict, cancelled, expiry_of_replay_ms, is_open, rank_ms
from scheduler.jobs.rows import answer_of, apply, histories, job_of
from scheduler.jobs.schema import answers, calls, jobs
from scheduler.jobs.tenants import Change, Changes, change, check_room, locked
from scheduler.jobs.types import Call, Job, JobId, JobLimits, JobQuestion, JobState, Submission, new_job_id

_TURNS = 5
_REPLAYED_AT_ONCE = 200


class JobStore:
    def __init__(self, database: Database, limits: JobLimits, retries: Retries) -> None:
        self._database, self._limits, self._retries = database, limits, retries

    async def submit(self, asked: Submission, now_ms: int) -> tuple[Job, bool]:
        """The job, and whether it existed under its idempotency key. Raises IdempotencyKeyTaken, JobsFull."""
        for _ in range(_TURNS):
            try:
                async with self._database.writing() as connection:
                    tenant = await locked(connection, asked.owner.tenant)
                    if asked.idempotency_key and (known := await _known(connection, asked)) is not None:
                        return job_of(known), True
                    check_room(tenant, self._limits, jobs=1, size_bytes=len(asked.call.body))
                    row = row_of(asked, new_job_id(), now_ms, self._limits, self._retries)
                    await connection.execute(insert(jobs).values(row))
                    await connection.execute(insert(calls).values(call_row(row["job_id"], asked.call)))
                    by = Change(1, len(asked.call.body), row["due_at_ms"])
                    await change(connection, asked.owner.tenant, by)
                    return job_of(await _row(connection, row["job_id"])), False
            except IntegrityError:
                continue  # the tenant's very first job was submitted twice at once
        raise DatabaseBusy("others submit for the same tenant again and again; try once more", retry_after_s=1.0)

    async def job(self, job_id: JobId, tenant: TenantId | None) -> Job:
        """With its history, and its answer. Raises JobUnknown."""
        async with self._database.reading() as connection:
            row = (await connection.execute(_one(job_id, tenant))).first()
            if row is None:
                raise unknown(job_id)
            history = (await histories(connection, [job_id])).get(job_id, [])
            return job_of(row, history, None if is_open(JobState(row.state)) else await answer_of(connection, job_id))

    async def revisions(self, job_ids: Collection[JobId]) -> dict[JobId, int]:
        """Of those that there are."""
        async with self._database.reading() as connection:
            asked = select(jobs.c.job_id, jobs.c.revision).where(jobs.c.job_id.in_(job_ids))
            return {JobId(row.job_id): row.revision for row in await connection.execute(asked)}

    async def page(self, asked: JobQuestion) -> tuple[list[Job], bool]:
        """Newest first, and whether there are more."""
        async with self._database.reading() as connection:
            rows = (await connection.execute(_page(asked).limit(asked.page_size + 1))).all()
            shown = rows[: asked.page_size]
            ids = [row.job_id for row in shown]
            tried = await histories(connection, ids) if asked.with_history and ids else {}
            return [job_of(row, tried.get(row.job_id, ())) for row in shown], len(rows) > len(shown)

    async def cancel(self, job_id: JobId, tenant: TenantId | None, now_ms: int) -> Job:
        """One that has ended stays as it is. Raises JobUnknown."""
        async with self._database.writing() as connection:
            row = (await connection.execute(_one(job_id, tenant).with_for_update())).first()
            if row is None:
                raise unknown(job_id)
            if is_open(JobState(row.state)):
                changes = Changes()
                await apply(connection, row, cancelled(), now_ms, changes)
                await changes.write(connection)
        return await self.job(job_id, tenant)

    async def replay(self, tenant: TenantId | None, job_ids: Sequence[JobId], model: str, now_ms: int) -> list[JobId]:
        """Dead letters that are jobs again. A few at a time, so that nobody else waits; what was done stays done."""
        dead = (jobs.c.state == JobState.DEAD.value) & (jobs.c.ended_at_ms <= now_ms)
        if tenant is not None:
            dead &= jobs.c.tenant == tenant
        if job_ids:
            dead &= jobs.c.job_id.in_(job_ids)
        if model:
            dead &= jobs.c.model == model
        asked = select(jobs).where(dead).order_by(jobs.c.job_id).limit(_REPLAYED_AT_ONCE).with_for_update(skip_locked=True)
        replayed: list[JobId] = []
        while True:
            async with self._database.writing() as connection:
                rows, changes = (await connection.execute(asked)).all(), Changes()
                for row in rows:
                    await _revive(connection, row, now_ms, changes)
                await changes.write(connection)
            replayed += [JobId(row.job_id) for row in rows]
            if len(rows) < _REPLAYED_AT_ONCE:
                return replayed


def unknown(job_id: JobId) -> JobUnknown:
    return JobUnknown(f"there is no job {job_id[:64]!r}; jobs are forgotten some days after they end")


def fingerprint(call: Call, model: str) -> bytes:
    """The same for the same call."""
    digest = sha256()
    for part in (call.path.encode(), model.encode(), call.body):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def row_of(asked: Submission, job_id: JobId, now_ms: int, limits: JobLimits, retries: Retries) -> dict[str, Any]:
    due_at_ms = max(asked.due_at_ms, now_ms)
    return {
        "job_id": job_id,
        "tenant": asked.owner.tenant,
        "key_id": asked.owner.key_id,
        "allowed_models": list(asked.owner.allowed_models),
        "model": asked.model,
        "state": JobState.QUEUED.value,
        "priority": asked.priority,
        "rank_ms": rank_ms(due_at_ms, asked.priority),
        "max_attempts": asked.max_attempts or retries.max_attempts,
        "created_at_ms": now_ms,
        "due_at_ms": due_at_ms,
        "expires_at_ms": asked.expires_at_ms,
        "look_at_ms": asked.expires_at_ms,
        "keep_ms": asked.keep_ms or limits.keep_ms,
        "idempotency_key": asked.idempotency_key or None,
        "fingerprint": fingerprint(asked.call, asked.model),
        "call_bytes": len(asked.call.body),
        "reason": "it waits for its turn" if due_at_ms <= now_ms else "it is not due yet",
    }


def call_row(job_id: JobId, call: Call) -> dict[str, Any]:
    return {"job_id": job_id, "path": call.path, "body": call.body}


async def _known(connection: AsyncConnection, asked: Submission) -> Row[Any] | None:
    is_known = (jobs.c.tenant == asked.owner.tenant) & (jobs.c.idempotency_key == asked.idempotency_key)
    row = (await connection.execute(select(jobs).where(is_known))).first()
    if row is not None and bytes(row.fingerprint) != fingerprint(asked.call, asked.model):
        raise IdempotencyKeyTaken(
            f"idempotency key {asked.idempotency_key!r} stands for job {row.job_id}, which has another call; use another key"
        )
    return row


async def _row(connection: AsyncConnection, job_id: str) -> Row[Any]:
    return (await connection.execute(select(jobs).where(jobs.c.job_id == job_id))).one()


def _one(job_id: JobId, tenant: TenantId | None) -> Select[Any]:
    asked = select(jobs).where(jobs.c.job_id == job_id)
    return asked if tenant is None else asked.where(jobs.c.tenant == tenant)


def _page(asked: JobQuestion) -> Select[Any]:
    listed = select(jobs).order_by(jobs.c.created_at_ms.desc(), jobs.c.job_id.desc())
    if asked.tenant is not None:
        listed = listed.where(jobs.c.tenant == asked.tenant)
    if asked.state is not None:
        listed = listed.where(jobs.c.state == asked.state.value)
    if asked.batch_id is not None:
        listed = listed.where(jobs.c.batch_id == asked.batch_id)
    if asked.model:
        listed = listed.where(jobs.c.model == asked.model)
    if asked.before is not None:
        listed = listed.where(tuple_(jobs.c.created_at_ms, jobs.c.job_id) < asked.before)
    return listed


async def _revive(connection: AsyncConnection, row: Row[Any], now_ms: int, changes: Changes) -> None:
    """A dead letter is a job again; its history stays, and an answer that it died with goes."""
    await connection.execute(delete(answers).where(answers.c.job_id == row.job_id))
    await apply(connection, row, Verdict(JobState.QUEUED, "it was replayed", due_at_ms=now_ms), now_ms, changes)
    expires_at_ms = expiry_of_replay_ms(job_of(row), now_ms)
    again = {"tries": 0, "expires_at_ms": expires_at_ms, "look_at_ms": expires_at_ms}
    await connection.execute(update(jobs).where(jobs.c.job_id == row.job_id).values(again))
