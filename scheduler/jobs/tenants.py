"""What each tenant has here: open jobs, stored bytes, when its next job is due. Counted in the transaction that changes it.

The order of locks, for all who write: rows of jobs, then rows of tenants, those by name. Who submits locks its tenant's row
alone, and adds rows that nobody else can wait for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, case, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from runtime.ids import TenantId
from scheduler.jobs.errors import JobsFull
from scheduler.jobs.schema import NO_DUE_MS, tenants
from scheduler.jobs.types import JobLimits, MiB

_SOON_S = 30.0


@dataclass(slots=True)
class Change:
    """What one transaction does to one tenant's numbers."""

    open_jobs: int = 0
    stored_bytes: int = 0
    due_at_ms: int = NO_DUE_MS
    """A job of it is due then."""

    def add(self, *, open_jobs: int = 0, stored_bytes: int = 0, due_at_ms: int = NO_DUE_MS) -> None:
        self.open_jobs += open_jobs
        self.stored_bytes += stored_bytes
        self.due_at_ms = min(self.due_at_ms, due_at_ms)


class Changes(dict[TenantId, Change]):
    """By tenant."""

    def of(self, tenant: str) -> Change:
        return self.setdefault(TenantId(tenant), Change())

    async def write(self, connection: AsyncConnection) -> None:
        for tenant in sorted(self):
            await change(connection, tenant, self[tenant])


async def locked(connection: AsyncConnection, tenant: TenantId) -> Row[Any]:
    """The tenant's row, made if there is none, locked until the end.

    Raises IntegrityError where another makes it at this moment: the transaction is to be begun anew.
    """
    asked = select(tenants).where(tenants.c.tenant == tenant).with_for_update()
    if (row := (await connection.execute(asked)).first()) is not None:
        return row
    await connection.execute(insert(tenants).values(tenant=tenant, next_due_ms=NO_DUE_MS))
    return (await connection.execute(asked)).one()


async def change(connection: AsyncConnection, tenant: TenantId, by: Change) -> None:
    sooner = case((tenants.c.next_due_ms > by.due_at_ms, by.due_at_ms), else_=tenants.c.next_due_ms)
    values: Mapping[str, Any] = {
        "open_jobs": tenants.c.open_jobs + by.open_jobs,
        "stored_bytes": tenants.c.stored_bytes + by.stored_bytes,
        "next_due_ms": sooner,
    }
    await connection.execute(update(tenants).where(tenants.c.tenant == tenant).values(values))


def check_room(row: Row[Any], limits: JobLimits, *, jobs: int = 0, size_bytes: int = 0) -> None:
    """Raises JobsFull."""
    if jobs and row.open_jobs + jobs > limits.open_jobs:
        raise JobsFull(
            f"tenant {row.tenant!r} has {row.open_jobs} jobs that have not ended, of {limits.open_jobs} at most; wait for some",
            retry_after_s=_SOON_S,
        )
    if row.stored_bytes + size_bytes > limits.stored_bytes:
        used, most = row.stored_bytes // MiB, limits.stored_bytes // MiB
        raise JobsFull(
            f"tenant {row.tenant!r} has {used} MiB of calls, answers and files stored, and {size_bytes} bytes more are over "
            f"its {most} MiB; delete files, or wait until ended jobs are forgotten",
            retry_after_s=_SOON_S,
        )
