"""The request log on SQLite: one table in the order of time, whose oldest rows go a few at a time; the file shrinks with them.

Source: SQLite, "PRAGMA incremental_vacuum": each step of the statement gives one page back, and of a statement without columns
Python's driver takes all steps in a script alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, select, tuple_

from gateway.request_log.schema import requests
from runtime.database import Database

AT_ONCE = 1_000
_PAGES = 2_000


class OneTable:
    async def prepare(self, database: Database, days_ms: Sequence[int]) -> None:
        """Nothing: any day's may be written."""

    def doubt(self) -> None:
        """Nothing is prepared."""

    async def forget(self, database: Database, before_ms: int) -> bool:
        place = tuple_(requests.c.at_ms, requests.c.row_id)
        oldest = select(requests.c.at_ms, requests.c.row_id).where(requests.c.at_ms < before_ms)
        oldest = oldest.order_by(requests.c.at_ms, requests.c.row_id).limit(AT_ONCE)
        async with database.writing() as connection:
            gone = (await connection.execute(delete(requests).where(place.in_(oldest)))).rowcount
        if gone:
            async with database.reading() as connection:
                driver: Any = (await connection.get_raw_connection()).driver_connection
                await driver.executescript(f"PRAGMA incremental_vacuum({_PAGES})")
        return gone == AT_ONCE
