"""The request log in SQL: batches in, pages and sums out, old days away.

A batch is one transaction: its requests and what they add to the sums of their days. What one database does in another way than
the other is in `postgres.py` and `sqlite.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Protocol

from sqlalchemy import Dialect, Row, Select, insert, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.exchange import OK
from gateway.request_log.entries import sums_of
from gateway.request_log.postgres import DailyPartitions
from gateway.request_log.schema import requests, usage
from gateway.request_log.sqlite import OneTable
from gateway.request_log.types import (
    DAY_MS,
    MOST_SUMS,
    SUMS,
    EntriesRefused,
    Entry,
    Page,
    Place,
    Question,
    UsageKey,
    UsageQuestion,
    UsageSum,
)
from runtime.database import Database
from runtime.postgres import BACKEND

_values = attrgetter(*(column.name for column in requests.columns))
_WITHOUT_BODIES = [column for column in requests.columns if not column.name.endswith("_body")]


class Days(Protocol):
    """How the requests of a day are kept together, as far as they are."""

    async def prepare(self, database: Database, days_ms: Sequence[int]) -> None:
        """There is room for these days."""
        ...

    def doubt(self) -> None:
        """What was prepared may be gone."""
        ...

    async def forget(self, database: Database, before_ms: int) -> bool:
        """Some of what ended before; whether there may be more."""
        ...


class LogStore:
    def __init__(self, database: Database, dialect: Dialect) -> None:
        self._database = database
        is_postgres = dialect.name == BACKEND
        self._days: Days = DailyPartitions() if is_postgres else OneTable()
        self._upsert = postgresql.insert if is_postgres else sqlite.insert
        # Once, and rows go to the driver as they are: naming each value of each row costs more than writing it.
        self._insert = str(insert(requests).compile(dialect=dialect))

    @staticmethod
    async def on(database: Database) -> LogStore:
        async with database.reading() as connection:
            return LogStore(database, connection.dialect)

    async def write(self, entries: Sequence[Entry], *, again: bool = False) -> None:
        """All of them, or none. `again`: nobody knows what became of an attempt before; they are not written twice.

        Raises EntriesRefused, DatabaseUnavailable, DatabaseBusy.
        """
        try:
            await self._write(entries, again=again)
        except DBAPIError as error:
            if not _is_refusal(error):
                raise
            self._days.doubt()
            raise EntriesRefused(f"one of {len(entries)} entries is refused ({type(error).__name__})") from error

    async def page(self, asked: Question) -> Page:
        statement = _asked(asked).order_by(requests.c.at_ms.desc(), requests.c.row_id.desc()).limit(asked.limit + 1)
        async with self._database.reading() as connection:
            rows = (await connection.execute(statement)).all()
        entries = tuple(_entry(row) for row in rows[: asked.limit])
        is_more = len(rows) > asked.limit
        return Page(entries, Place(entries[-1].at_ms, entries[-1].row_id) if is_more else None)

    async def usage(self, asked: UsageQuestion) -> list[UsageSum]:
        """Newest day first; at most MOST_SUMS + 1 of them."""
        c = usage.c
        wanted = select(usage).where(c.tenant == asked.tenant, c.day_ms >= asked.since_ms, c.day_ms <= asked.until_ms)
        if asked.model:
            wanted = wanted.where(c.model == asked.model)
        if asked.key_id:
            wanted = wanted.where(c.key_id == asked.key_id)
        wanted = wanted.order_by(c.day_ms.desc(), c.model, c.key_id).limit(MOST_SUMS + 1)
        async with self._database.reading() as connection:
            rows = (await connection.execute(wanted)).all()
        return [
            UsageSum(UsageKey(row.tenant, row.day_ms, row.key_id, row.model), tuple(getattr(row, name) for name in SUMS))
            for row in rows
        ]

    async def prepare(self, now_ms: int, days: int) -> None:
        """There is room for today, and so many days more."""
        today_ms = now_ms - now_ms % DAY_MS
        await self._days.prepare(self._database, [today_ms + day * DAY_MS for day in range(days + 1)])

    async def forget(self, before_ms: int) -> bool:
        """Some of the requests that ended before; whether there may be more of them. Bounded work."""
        return await self._days.forget(self._database, before_ms)

    async def forget_sums(self, before_ms: int) -> None:
        """Of days that began before."""
        async with self._database.writing() as connection:
            await connection.execute(usage.delete().where(usage.c.day_ms < before_ms))

    async def _write(self, entries: Sequence[Entry], *, again: bool) -> None:
        await self._days.prepare(self._database, sorted({entry.day_ms for entry in entries}))
        async with self._database.writing() as connection:
            if again and await self._has(connection, entries[0]):
                return
            await connection.exec_driver_sql(self._insert, [_values(entry) for entry in entries])
            await self._add(connection, sums_of(entries))

    async def _has(self, connection: AsyncConnection, entry: Entry) -> bool:
        here = (requests.c.at_ms == entry.at_ms) & (requests.c.row_id == entry.row_id)
        return (await connection.execute(select(requests.c.row_id).where(here))).first() is not None

    async def _add(self, connection: AsyncConnection, sums: Sequence[UsageSum]) -> None:
        statement: Any = self._upsert(usage)
        more = {name: usage.c[name] + statement.excluded[name] for name in SUMS}
        statement = statement.on_conflict_do_update(index_elements=list(usage.primary_key.columns), set_=more)
        for each in sums:
            key = {"tenant": each.key.tenant, "day_ms": each.key.day_ms, "key_id": each.key.key_id, "model": each.key.model}
            await connection.execute(statement, {**key, **dict(zip(SUMS, each.sums, strict=True))})


def _is_refusal(error: DBAPIError) -> bool:
    """Data exceptions and violated constraints, among them that a day has no partition. Source: PostgreSQL, Appendix A."""
    state = str(getattr(error.orig, "sqlstate", None) or "")
    return isinstance(error, DataError | IntegrityError) or state.startswith(("22", "23"))


def _asked(asked: Question) -> Select[Any]:
    """Bodies come with one request that is named."""
    c = requests.c
    wanted = select(requests) if asked.request_id else select(*_WITHOUT_BODIES)
    wanted = wanted.where(c.tenant == asked.tenant)
    if asked.model:
        wanted = wanted.where(or_(c.model == asked.model, c.asked == asked.model))
    for column, value in ((c.code, asked.code), (c.key_id, asked.key_id), (c.request_id, asked.request_id)):
        if value:
            wanted = wanted.where(column == value)
    if asked.failed:
        wanted = wanted.where(c.code != OK)
    if asked.since_ms:
        wanted = wanted.where(c.at_ms >= asked.since_ms)
    if asked.until_ms:
        wanted = wanted.where(c.at_ms < asked.until_ms)
    if asked.before is not None:
        at_ms, row_id = asked.before.at_ms, asked.before.row_id
        wanted = wanted.where(c.at_ms <= at_ms).where(or_(c.at_ms < at_ms, c.row_id < row_id))
    return wanted


def _entry(row: Row[Any]) -> Entry:
    return Entry(**row._mapping)
