"""Batches in SQL, as those who make them see them. Who drives them: `sql_driving.py`.

Locks: a file's row, then the tenant's.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, case, func, insert, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from runtime.database import Database, DatabaseBusy
from runtime.ids import TenantId
from scheduler.jobs.batches.rows import batch_of, row_of
from scheduler.jobs.batches.types import UNDER_WAY, Batch, BatchQuestion, BatchStatus, NewBatch, new_batch_id
from scheduler.jobs.errors import BatchesFull, BatchUnknown
from scheduler.jobs.files.sql import unknown as unknown_file
from scheduler.jobs.files.types import Purpose
from scheduler.jobs.schema import batches, files
from scheduler.jobs.tenants import locked
from scheduler.jobs.types import BatchId, JobLimits

_TURNS = 5
_CANCELLABLE = (BatchStatus.VALIDATING.value, BatchStatus.IN_PROGRESS.value)


class BatchStore:
    def __init__(self, database: Database, limits: JobLimits) -> None:
        self._database, self._limits = database, limits

    async def create(self, new: NewBatch, now_ms: int) -> Batch:
        """Its file is kept at least as long as it may need it. Raises FileUnknown, BatchesFull."""
        batch_id = new_batch_id()
        for _ in range(_TURNS):
            try:
                return await self._create(new, batch_id, now_ms)
            except IntegrityError:
                continue  # the tenant's row was made by another at this moment
        raise DatabaseBusy("others begin with the same tenant again and again; try once more", retry_after_s=1.0)

    async def batch(self, batch_id: BatchId, tenant: TenantId | None) -> Batch:
        """Raises BatchUnknown."""
        async with self._database.reading() as connection:
            row = (await connection.execute(_one(batch_id, tenant))).first()
        if row is None:
            raise unknown(batch_id)
        return batch_of(row)

    async def page(self, asked: BatchQuestion) -> tuple[list[Batch], bool]:
        """Newest first, and whether there are more. Raises BatchUnknown where the last of the page before is gone."""
        listed = select(batches).order_by(batches.c.created_at_ms.desc(), batches.c.batch_id.desc())
        if asked.tenant is not None:
            listed = listed.where(batches.c.tenant == asked.tenant)
        if asked.after is not None:
            last = await self.batch(asked.after, asked.tenant)
            listed = listed.where(tuple_(batches.c.created_at_ms, batches.c.batch_id) < (last.at.created_ms, last.batch_id))
        async with self._database.reading() as connection:
            rows = (await connection.execute(listed.limit(asked.page_size + 1))).all()
        return [batch_of(row) for row in rows[: asked.page_size]], len(rows) > asked.page_size

    async def cancel(self, batch_id: BatchId, tenant: TenantId | None, now_ms: int) -> Batch:
        """One that has ended, or is about to, stays as it is. Raises BatchUnknown."""
        under_way = (batches.c.batch_id == batch_id) & batches.c.status.in_(_CANCELLABLE)
        if tenant is not None:
            under_way &= batches.c.tenant == tenant
        cancelling = {"status": BatchStatus.CANCELLING.value, "cancelling_at_ms": now_ms, "look_at_ms": now_ms}
        async with self._database.writing() as connection:
            await connection.execute(update(batches).where(under_way).values(cancelling))
        return await self.batch(batch_id, tenant)

    async def _create(self, new: NewBatch, batch_id: BatchId, now_ms: int) -> Batch:
        expires_at_ms = now_ms + new.window_ms
        readable = (files.c.file_id == new.input_file_id) & (files.c.tenant == new.owner.tenant) & (files.c.stored_at_ms > 0)
        kept = case((files.c.expires_at_ms < expires_at_ms, expires_at_ms), else_=files.c.expires_at_ms)
        async with self._database.writing() as connection:
            held = update(files).where(readable & (files.c.purpose == Purpose.BATCH)).values(expires_at_ms=kept)
            if not (await connection.execute(held)).rowcount:
                raise unknown_file(new.input_file_id)
            await locked(connection, new.owner.tenant)
            theirs = (batches.c.tenant == new.owner.tenant) & batches.c.status.in_([status.value for status in UNDER_WAY])
            open_batches = int(await connection.scalar(select(func.count()).select_from(batches).where(theirs)) or 0)
            if open_batches >= self._limits.open_batches:
                raise BatchesFull(
                    f"tenant {new.owner.tenant!r} has {open_batches} batches under way, which is all; wait for one to end",
                    retry_after_s=60.0,
                )
            await connection.execute(insert(batches).values(row_of(new, batch_id, now_ms)))
            return batch_of((await connection.execute(_one(batch_id, None))).one())


def unknown(batch_id: BatchId) -> BatchUnknown:
    return BatchUnknown(f"there is no batch {batch_id[:64]!r}; batches are forgotten some weeks after they end")


def _one(batch_id: BatchId, tenant: TenantId | None) -> Select[Any]:
    asked = select(batches).where(batches.c.batch_id == batch_id)
    return asked if tenant is None else asked.where(batches.c.tenant == tenant)
