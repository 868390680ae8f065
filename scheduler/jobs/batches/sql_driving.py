"""Batches in SQL, as the one who drives them sees them: a lease fences each thing that is written.

Any scheduler may drive any batch. Whoever takes one has its lease for a minute, and renews it with each transaction; one who
was paused past it finds out in the transaction itself. Locks: the batch's row, then jobs', then the tenant's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import case, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from runtime.clock import Clock
from runtime.database import Database
from scheduler.jobs.batches.policy import line_job_id
from scheduler.jobs.batches.rows import batch_of
from scheduler.jobs.batches.types import (
    LINE_PRIORITY,
    MAX_ERRORS,
    Batch,
    BatchStatus,
    Fault,
    Lease,
    Line,
    LineCounts,
    Progress,
    Written,
    new_lease,
)
from scheduler.jobs.errors import LeaseLost
from scheduler.jobs.files.sql import publish
from scheduler.jobs.policy import Retries, Verdict
from scheduler.jobs.rows import apply, end_queued_lines
from scheduler.jobs.schema import batches, calls, jobs
from scheduler.jobs.sql import call_row, row_of
from scheduler.jobs.tenants import Change, Changes, change
from scheduler.jobs.types import Call, JobId, JobLimits, JobState, Submission

LEASE_MS = 60_000
_QUEUED_AT_ONCE, _RUNNING_AT_ONCE = 2_000, 200


class DrivenBatch:
    """One batch, while its lease is held. Each method raises LeaseLost where it is not any more."""

    def __init__(
        self, database: Database, clock: Clock, batch: Batch, lease: Lease, limits: JobLimits, retries: Retries
    ) -> None:
        self._database, self._clock, self._lease = database, clock, lease
        self._limits, self._retries = limits, retries
        self.batch = batch

    async def guard(self, connection: AsyncConnection) -> None:
        """Whoever else wants the batch waits until this transaction is over. A cancellation in between counts as a loss."""
        is_mine = (batches.c.lease == self._lease) & (batches.c.status == self.batch.status.value)
        this = (batches.c.batch_id == self.batch.batch_id) & is_mine
        renewed = update(batches).where(this).values(lease_until_ms=self.now_ms() + LEASE_MS)
        if not (await connection.execute(renewed)).rowcount:
            raise LeaseLost(f"batch {self.batch.batch_id} is driven by another, or was cancelled")

    async def check(self) -> None:
        """Renew the lease, and nothing else."""
        async with self._database.writing() as connection:
            await self.guard(connection)

    async def change(self, **values: Any) -> None:
        async with self._database.writing() as connection:
            await self.guard(connection)
            await self._set(connection, **values)

    async def begin(self, total: int) -> None:
        """The file is in order and has so many requests."""
        await self.change(status=BatchStatus.IN_PROGRESS.value, total=total, in_progress_at_ms=self.now_ms())

    async def fail(self, faults: Sequence[Fault]) -> None:
        listed = [[fault.line, fault.code, fault.message] for fault in faults[:MAX_ERRORS]]
        now_ms = self.now_ms()
        await self.change(
            status=BatchStatus.FAILED.value, failed_at_ms=now_ms, errors=listed, look_at_ms=now_ms + self._limits.file_keep_ms
        )

    async def make_jobs(self, lines: Sequence[Line], progress: Progress) -> None:
        """Jobs of these lines, and how far that is: both or neither, so that no line becomes two."""
        batch, now_ms = self.batch, self.now_ms()
        rows = [self._job_row(line, now_ms) for line in lines]
        async with self._database.writing() as connection:
            await self.guard(connection)
            if rows:
                await connection.execute(insert(jobs), rows)
                made = [call_row(row["job_id"], Call(batch.endpoint, line.body)) for row, line in zip(rows, lines, strict=True)]
                await connection.execute(insert(calls), made)
                await change(connection, batch.tenant, Change(0, sum(len(line.body) for line in lines), now_ms))
            await self._set(
                connection,
                lines_made=progress.lines_made,
                lines_read=progress.lines_read,
                bytes_read=progress.bytes_read,
            )
        self.batch = replace(batch, progress=progress)

    async def count(self) -> LineCounts:
        asked = select(jobs.c.state, func.count()).where(jobs.c.batch_id == self.batch.batch_id).group_by(jobs.c.state)
        async with self._database.reading() as connection:
            found = {JobState(row[0]): int(row[1]) for row in await connection.execute(asked)}
        is_open = found.get(JobState.QUEUED, 0) + found.get(JobState.RUNNING, 0)
        ended = (found.get(state, 0) for state in (JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED))
        return LineCounts(is_open, *ended)

    async def end_lines(self, verdict: Verdict) -> list[JobId]:
        """Some of the lines that have not ended are, now."""
        batch, now_ms = self.batch, self.now_ms()
        runs = (jobs.c.batch_id == batch.batch_id) & (jobs.c.state == JobState.RUNNING.value)
        asked = select(jobs).where(runs).limit(_RUNNING_AT_ONCE).with_for_update(skip_locked=True)
        kept_until_ms = max(now_ms, batch.at.expires_ms) + self._limits.keep_ms
        async with self._database.writing() as connection:
            await self.guard(connection)
            ended = await end_queued_lines(connection, batch.batch_id, verdict, kept_until_ms, now_ms, _QUEUED_AT_ONCE)
            rows, changes = (await connection.execute(asked)).all(), Changes()
            for row in rows:
                await apply(connection, row, verdict, now_ms, changes)
            await changes.write(connection)
        return ended + [JobId(row.job_id) for row in rows]

    async def end(self, status: BatchStatus, counts: LineCounts, output: Written, errors: Written) -> None:
        """Its files can be seen, and it has ended: all at once."""
        now_ms = self.now_ms()
        async with self._database.writing() as connection:
            await self.guard(connection)
            for written in (output, errors):
                if written.file_id is not None:
                    await publish(connection, written.file_id, written.digest, self._limits.file_keep_ms, now_ms)
            await self._set(
                connection,
                status=status.value,
                output_file_id=output.file_id or "",
                error_file_id=errors.file_id or "",
                look_at_ms=now_ms + self._limits.file_keep_ms,
                **{f"{status.value}_at_ms": now_ms},
                **numbers(counts),
            )

    async def forget(self) -> None:
        async with self._database.writing() as connection:
            await self.guard(connection)
            await connection.execute(delete(batches).where(batches.c.batch_id == self.batch.batch_id))

    async def release(self, look_at_ms: int) -> None:
        """Anybody may go on with it then, or at once where its status has changed. Never raises LeaseLost."""
        this = (batches.c.batch_id == self.batch.batch_id) & (batches.c.lease == self._lease)
        at_ms = case((batches.c.status == self.batch.status.value, look_at_ms), else_=batches.c.look_at_ms)
        async with self._database.writing() as connection:
            await connection.execute(update(batches).where(this).values(lease="", lease_until_ms=0, look_at_ms=at_ms))

    def now_ms(self) -> int:
        return int(self._clock.wall_s() * 1_000)

    async def _set(self, connection: AsyncConnection, **values: Any) -> None:
        await connection.execute(update(batches).where(batches.c.batch_id == self.batch.batch_id).values(values))

    def _job_row(self, line: Line, now_ms: int) -> dict[str, Any]:
        batch = self.batch
        asked = Submission(
            batch.owner,
            Call(batch.endpoint, line.body),
            line.model,
            priority=LINE_PRIORITY,
            expires_at_ms=max(batch.at.expires_ms, now_ms + 1),
        )
        row = row_of(asked, line_job_id(batch.batch_id, line.number), now_ms, self._limits, self._retries)
        of_batch = {"batch_id": batch.batch_id, "line": line.number, "custom_id": line.custom_id}
        return row | of_batch | {"look_at_ms": 0}  # what expires is the batch


class DrivingStore:
    """Which batch is to be gone on with next."""

    def __init__(self, database: Database, clock: Clock, limits: JobLimits, retries: Retries) -> None:
        self._database, self._clock, self._limits, self._retries = database, clock, limits, retries

    async def take(self) -> DrivenBatch | None:
        now_ms, lease = int(self._clock.wall_s() * 1_000), new_lease()
        is_due = (batches.c.look_at_ms > 0) & (batches.c.look_at_ms <= now_ms) & (batches.c.lease_until_ms <= now_ms)
        async with self._database.reading() as connection:
            if await connection.scalar(select(batches.c.batch_id).where(is_due).limit(1)) is None:
                return None
        asked = select(batches).where(is_due).order_by(batches.c.look_at_ms, batches.c.batch_id).limit(1)
        async with self._database.writing() as connection:
            row = (await connection.execute(asked.with_for_update(skip_locked=True))).first()
            if row is None:
                return None
            taken = update(batches).where(batches.c.batch_id == row.batch_id)
            await connection.execute(taken.values(lease=lease, lease_until_ms=now_ms + LEASE_MS))
        return DrivenBatch(self._database, self._clock, batch_of(row), lease, self._limits, self._retries)


def numbers(counts: LineCounts) -> dict[str, int]:
    """As a batch shows them: what was cancelled is neither completed nor failed."""
    return {"completed": counts.succeeded, "failed": counts.dead}
