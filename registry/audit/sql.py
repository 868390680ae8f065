"""The trail read back, in SQL. The one file with SQL of this room, but for the writing in `trail.py`.

An entry whose seal does not fit is shown as failed and says that it was altered: hiding it would do the work of whoever did
that, and refusing the whole list would too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Row, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.audit.types import AuditEntry, AuditOutcome, EntryWish
from registry.schema import audit
from registry.seals import RowAltered, Seals

ALTERED = "this entry was altered in the database; it is shown as it stands there now"


class AuditSql:
    def __init__(self, seals: Seals) -> None:
        self._seals = seals

    async def entries(
        self, connection: AsyncConnection, wish: EntryWish
    ) -> tuple[tuple[AuditEntry, ...], tuple[RowAltered, ...]]:
        """Newest first; and what was found altered among them."""
        rows = await connection.execute(select(audit).where(*_where(wish)).order_by(audit.c.entry.desc()).limit(wish.limit))
        found, altered = [], []
        for row in rows:
            try:
                found.append(_entry(self._seals.check(audit, row)))
            except RowAltered as error:
                found.append(replace(_entry(row), outcome=AuditOutcome.FAILED.value, detail=ALTERED))
                altered.append(error)
        return tuple(found), tuple(altered)


def _where(wish: EntryWish) -> list[ColumnElement[bool]]:
    where = [
        column == asked
        for column, asked in ((audit.c.tenant, wish.tenant), (audit.c.actor_id, wish.actor_id), (audit.c.subject, wish.subject))
        if asked
    ]
    if wish.action:  # LIKE would ignore case on SQLite and not on PostgreSQL
        where.append(func.substr(audit.c.action, 1, len(wish.action)) == wish.action)
    if wish.before:
        where.append(audit.c.entry < wish.before)
    return where


def _entry(row: Row[Any]) -> AuditEntry:
    names = AuditEntry.__dataclass_fields__
    return AuditEntry(**{name: row._mapping[name] for name in names})
