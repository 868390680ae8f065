"""The request log on PostgreSQL: a partition for each day (UTC), made ahead and dropped whole.

Any number of gateways make and drop them: one at a time, by an advisory lock. Dropping never reads what is dropped.
Source: PostgreSQL, 5.12.2 "Declarative Partitioning".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.request_log.schema import requests
from gateway.request_log.types import DAY_MS
from runtime.database import Database

_LOCK = 7_366_736_476  # any number, as long as it is this log's alone
_PARENT = requests.name
_NAME = re.compile(rf"{_PARENT}_(\d{{8}})")
_PARTITIONS = text(
    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = to_regclass(:parent)"
)


class DailyPartitions:
    """Of one gateway: remembers which are there."""

    def __init__(self) -> None:
        self._known: set[int] = set()

    async def prepare(self, database: Database, days_ms: Sequence[int]) -> None:
        missing = [day_ms for day_ms in days_ms if day_ms not in self._known]
        if not missing:
            return
        async with database.writing() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            there = await _days_there(connection)
            for day_ms in missing:
                if day_ms not in there:
                    await connection.execute(text(_making(day_ms)))
        self._known.update(missing)

    def doubt(self) -> None:
        self._known.clear()

    async def forget(self, database: Database, before_ms: int) -> bool:
        """One day. While another gateway is at it, there is nothing to do here."""
        async with database.writing() as connection:
            taken = await connection.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            if not taken:
                return False
            over = sorted(day_ms for day_ms in await _days_there(connection) if day_ms + DAY_MS <= before_ms)
            if over:
                await connection.execute(text(f"DROP TABLE {_name(over[0])}"))
        self._known.difference_update(over)
        return len(over) > 1


def _name(day_ms: int) -> str:
    return f"{_PARENT}_{datetime.fromtimestamp(day_ms / 1000, UTC):%Y%m%d}"


def _making(day_ms: int) -> str:
    return f"CREATE TABLE {_name(day_ms)} PARTITION OF {_PARENT} FOR VALUES FROM ({day_ms}) TO ({day_ms + DAY_MS})"


async def _days_there(connection: AsyncConnection) -> set[int]:
    names = [str(row[0]) for row in await connection.execute(_PARTITIONS, {"parent": _PARENT})]
    found = [match[1] for match in map(_NAME.fullmatch, names) if match is not None]
    return {int(datetime.strptime(day, "%Y%m%d").replace(tzinfo=UTC).timestamp()) * 1000 for day in found}
