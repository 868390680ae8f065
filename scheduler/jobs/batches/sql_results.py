"""What became of a batch's lines, read in order and a bounded number of bytes at a time. Writes nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from runtime.database import Database
from scheduler.jobs.batches.types import Outcome
from scheduler.jobs.schema import answers, attempts, jobs
from scheduler.jobs.types import Answer, BatchId, JobState, MiB

_ROWS = 500
_BYTES = 4 * MiB

Results = list[tuple[Outcome, Answer | None]]


class ResultStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def results(self, batch_id: BatchId) -> AsyncGenerator[Results, None]:
        """Some lines at a time, by line; with the answers that there are."""
        after = 0
        while page := await self._page(batch_id, after):
            for some in _slices(page):
                found = await self._answers([outcome.job_id for outcome in some])
                yield [(outcome, found.get(outcome.job_id)) for outcome in some]
            after = page[-1].line

    async def _page(self, batch_id: BatchId, after: int) -> list[Outcome]:
        shown = (jobs.c.job_id, jobs.c.line, jobs.c.custom_id, jobs.c.state, jobs.c.answer_bytes, jobs.c.reason)
        asked = select(*shown).where((jobs.c.batch_id == batch_id) & (jobs.c.line > after)).order_by(jobs.c.line).limit(_ROWS)
        async with self._database.reading() as connection:
            rows = (await connection.execute(asked)).all()
            last = await _last_outcomes(connection, [row.job_id for row in rows if row.state == JobState.DEAD.value])
        return [_outcome(row, last.get(row.job_id, "")) for row in rows]

    async def _answers(self, job_ids: Sequence[str]) -> dict[str, Answer]:
        async with self._database.reading() as connection:
            rows = await connection.execute(select(answers).where(answers.c.job_id.in_(job_ids)))
            return {row.job_id: Answer(row.status, bytes(row.body)) for row in rows}


async def _last_outcomes(connection: AsyncConnection, job_ids: Sequence[str]) -> dict[str, str]:
    if not job_ids:
        return {}
    is_last = (attempts.c.job_id == jobs.c.job_id) & (attempts.c.number == jobs.c.attempts)
    asked = select(attempts.c.job_id, attempts.c.outcome).select_from(jobs.join(attempts, is_last))
    return {row.job_id: row.outcome for row in await connection.execute(asked.where(jobs.c.job_id.in_(job_ids)))}


def _slices(page: Sequence[Outcome]) -> Iterator[list[Outcome]]:
    """Each of so many bytes of answers, or one line."""
    some: list[Outcome] = []
    size_bytes = 0
    for outcome in page:
        if some and size_bytes + outcome.answer_bytes > _BYTES:
            yield some
            some, size_bytes = [], 0
        some.append(outcome)
        size_bytes += outcome.answer_bytes
    if some:
        yield some


def _outcome(row: Any, last_outcome: str) -> Outcome:
    return Outcome(row.job_id, row.line, row.custom_id, JobState(row.state), row.answer_bytes, row.reason, last_outcome)
