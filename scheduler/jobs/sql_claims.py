"""Jobs in SQL, as those who run them see them: claim, extend, settle.

Several schedulers do so on one database. On PostgreSQL a claim skips what another is about to take; on SQLite one
transaction writes at a time. An attempt is fenced by its claim: once the row has another, or none, the old one changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from runtime.database import Database
from runtime.ids import NodeId
from scheduler.jobs.errors import ClaimLost
from scheduler.jobs.policy import Verdict, shares
from scheduler.jobs.rows import apply, begin_attempt, job_of, owner_of
from scheduler.jobs.schema import NO_DUE_MS, calls, jobs, tenants
from scheduler.jobs.tenants import Changes
from scheduler.jobs.types import Call, Claim, ClaimedJob, Job, JobId, JobLimits, JobState, new_claim

_QUEUED, _RUNNING = JobState.QUEUED.value, JobState.RUNNING.value
_MOST_CLAIMS = 1_000


@dataclass(slots=True)
class _Chosen:
    """Locked rows, within so many bytes of calls."""

    bytes_left: int
    rows: list[Row[Any]] = field(default_factory=list)
    drained: set[str] = field(default_factory=set)
    """Tenants that had less due than was asked for."""

    def take(self, rows: Sequence[Row[Any]]) -> bool:
        """Whether all of them fitted; the first always does."""
        for row in rows:
            if self.rows and row.call_bytes > self.bytes_left:
                return False
            self.rows.append(row)
            self.bytes_left -= row.call_bytes
        return True


class ClaimStore:
    def __init__(self, database: Database, limits: JobLimits) -> None:
        self._database, self._limits = database, limits

    async def next_due_ms(self) -> int:
        """No job is due before."""
        async with self._database.reading() as connection:
            found = await connection.scalar(select(func.min(tenants.c.next_due_ms)))
        return NO_DUE_MS if found is None else int(found)

    async def claim(self, places: int, by: NodeId, now_ms: int) -> list[ClaimedJob]:
        """Up to so many jobs that are due, shared equally among tenants that have some, in turn."""
        async with self._database.writing() as connection:
            chosen = await self._choose(connection, min(places, self._limits.most_claimed), now_ms)
            claimed = [await self._begin(connection, row, by, now_ms) for row in chosen.rows]
            await _note_turns(connection, chosen)
        return claimed

    async def extend(self, claims: Collection[Claim], now_ms: int) -> list[Claim]:
        """Those that hold, now for another visibility timeout. A job that has expired is not waited for any longer."""
        held = jobs.c.claim.in_(list(claims)[:_MOST_CLAIMS]) & (jobs.c.state == _RUNNING) & _lives(now_ms)
        extended = update(jobs).where(held).values(look_at_ms=now_ms + self._limits.visibility_ms).returning(jobs.c.claim)
        async with self._database.writing() as connection:
            return [Claim(row.claim) for row in await connection.execute(extended)]

    async def settle(self, claim: Claim, judge: Callable[[Job], Verdict], now_ms: int) -> tuple[JobId, JobState]:
        """How the attempt ended, as it is judged. Raises ClaimLost, and then nothing has changed."""
        async with self._database.writing() as connection:
            asked = select(jobs).where((jobs.c.claim == claim) & (jobs.c.state == _RUNNING)).with_for_update()
            row = (await connection.execute(asked)).first()
            if row is None:
                raise ClaimLost(
                    "this claim does not hold any more: it ran out, was settled, or the job was cancelled; drop the result"
                )
            changes, verdict = Changes(), judge(job_of(row))
            await apply(connection, row, verdict, now_ms, changes)
            await changes.write(connection)
        return JobId(row.job_id), verdict.state

    async def _choose(self, connection: AsyncConnection, places: int, now_ms: int) -> _Chosen:
        chosen, asked = _Chosen(self._limits.claim_bytes), set[str]()
        turn = await _tenants_in_turn(connection, places, now_ms)
        while turn and (left := places - len(chosen.rows)) > 0:
            filled: list[str] = []
            for tenant, share in zip(turn, shares(left, len(turn)), strict=True):
                if not share:
                    continue
                asked.add(tenant)
                rows = await _due(connection, tenant, share, now_ms, [row.job_id for row in chosen.rows])
                if not chosen.take(rows):
                    return chosen
                (filled.append if len(rows) == share else chosen.drained.add)(tenant)
            turn = filled or await _tenants_in_turn(connection, places, now_ms, asked)
        return chosen

    async def _begin(self, connection: AsyncConnection, row: Row[Any], by: NodeId, now_ms: int) -> ClaimedJob:
        claim = new_claim()
        await begin_attempt(connection, row, by, claim, now_ms, now_ms + self._limits.visibility_ms)
        call = (await connection.execute(select(calls).where(calls.c.job_id == row.job_id))).one()
        timeout_ms = max(row.expires_at_ms - now_ms, 0)
        return ClaimedJob(
            JobId(row.job_id), owner_of(row), Call(call.path, bytes(call.body)), row.attempts + 1, claim, timeout_ms
        )


def _lives(now_ms: int) -> Any:
    return (jobs.c.expires_at_ms == 0) | (jobs.c.expires_at_ms > now_ms)


async def _tenants_in_turn(connection: AsyncConnection, places: int, now_ms: int, besides: Collection[str] = ()) -> list[str]:
    """Those that may have something due, who were served longest ago first."""
    due = (tenants.c.next_due_ms <= now_ms) & tenants.c.tenant.not_in(besides)
    asked = select(tenants.c.tenant).where(due).order_by(tenants.c.served, tenants.c.tenant).limit(places)
    return list((await connection.execute(asked)).scalars())


async def _due(connection: AsyncConnection, tenant: str, share: int, now_ms: int, besides: Sequence[str]) -> Sequence[Row[Any]]:
    is_due = (jobs.c.tenant == tenant) & (jobs.c.state == _QUEUED) & (jobs.c.due_at_ms <= now_ms) & _lives(now_ms)
    asked = select(jobs).where(is_due & jobs.c.job_id.not_in(besides)).order_by(jobs.c.rank_ms, jobs.c.job_id).limit(share)
    return (await connection.execute(asked.with_for_update(skip_locked=True))).all()


async def _note_turns(connection: AsyncConnection, chosen: _Chosen) -> None:
    """Whose turn it was; and when those who have nothing due any more have something next.

    A tenant's row is locked before its jobs are looked at: who submits or gives back one meanwhile waits, and says afterwards
    when it is due.
    """
    served = {row.tenant for row in chosen.rows}
    last = int(await connection.scalar(select(func.max(tenants.c.served))) or 0) if served else 0
    for place, tenant in enumerate(sorted(served | chosen.drained), 1):
        this = tenants.c.tenant == tenant
        values: dict[str, Any] = {}
        if tenant in chosen.drained:
            await connection.execute(select(tenants.c.tenant).where(this).with_for_update())
            is_queued = (jobs.c.tenant == tenant) & (jobs.c.state == _QUEUED)
            soonest = await connection.scalar(select(func.min(jobs.c.due_at_ms)).where(is_queued))
            values["next_due_ms"] = NO_DUE_MS if soonest is None else soonest
        if tenant in served:
            values["served"] = last + place
        await connection.execute(update(tenants).where(this).values(values))
