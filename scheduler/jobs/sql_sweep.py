"""Jobs in SQL, as time alone changes them: they expire, their claims run out, their keeping is over. And how many there are.

A few at a time. Any number of schedulers sweep one database: each row is looked at by one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from runtime.database import Database
from scheduler.jobs.policy import Verdict, expired
from scheduler.jobs.rows import apply, job_of
from scheduler.jobs.schema import jobs, tenants
from scheduler.jobs.tenants import Changes
from scheduler.jobs.types import Job, JobCounts, JobId, JobState


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did."""

    changed: tuple[JobId, ...] = ()
    lost: int = 0
    expired: int = 0
    forgotten: int = 0

    @property
    def looked_at(self) -> int:
        return len(self.changed) + self.forgotten


class SweepStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def sweep(self, judge_lost: Callable[[Job], Verdict], now_ms: int, most: int) -> Swept:
        due = (jobs.c.look_at_ms > 0) & (jobs.c.look_at_ms <= now_ms)
        asked = select(jobs).where(due).order_by(jobs.c.look_at_ms, jobs.c.job_id).limit(most)
        async with self._database.writing() as connection:
            rows = (await connection.execute(asked.with_for_update(skip_locked=True))).all()
            by_state = {state: [row for row in rows if row.state == state.value] for state in JobState}
            changes = Changes()
            for row in by_state[JobState.RUNNING]:
                await apply(connection, row, judge_lost(job_of(row)), now_ms, changes)
            for row in by_state[JobState.QUEUED]:
                await apply(connection, row, expired(), now_ms, changes)
            over = [row for row in rows if row.state not in (JobState.RUNNING.value, JobState.QUEUED.value)]
            await _forget(connection, over, changes)
            await changes.write(connection)
        running, queued = by_state[JobState.RUNNING], by_state[JobState.QUEUED]
        changed = tuple(JobId(row.job_id) for row in (*running, *queued))
        return Swept(changed, len(running), len(queued), len(over))

    async def count(self, now_ms: int) -> JobCounts:
        counted = (
            select(jobs.c.state, func.count()).where(jobs.c.state.in_(("queued", "running", "dead"))).group_by(jobs.c.state)
        )
        async with self._database.reading() as connection:
            numbers = {row[0]: row[1] for row in await connection.execute(counted)}
            soonest = await connection.scalar(select(func.min(tenants.c.next_due_ms)))
        overdue_ms = 0 if soonest is None else max(now_ms - int(soonest), 0)
        return JobCounts(numbers.get("queued", 0), numbers.get("running", 0), numbers.get("dead", 0), overdue_ms)


async def _forget(connection: AsyncConnection, rows: Sequence[Row[Any]], changes: Changes) -> None:
    """Call, answer and history go with the row."""
    if not rows:
        return
    await connection.execute(delete(jobs).where(jobs.c.job_id.in_([row.job_id for row in rows])))
    for row in rows:
        changes.of(row.tenant).add(stored_bytes=-row.call_bytes - row.answer_bytes)
