"""Whose turn it is to collect: one replica's at a time. Two at once would do no harm, and the same work twice.

On PostgreSQL a lock of a transaction that stays open meanwhile, and goes with its connection; an SQLite database has one
process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.files.errors import CollectionBusy
from runtime.database import Database

_COLLECTION_LOCK = 7_366_736_476  # any number that nobody else of the registry takes

StillMine = Callable[[], Awaitable[None]]
"""To be called now and then: the database ends a transaction that is silent for long. Raises DatabaseUnavailable."""


class Turn:
    def __init__(self, database: Database) -> None:
        self._database, self._here = database, asyncio.Lock()

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[StillMine]:
        """Raises CollectionBusy."""
        if self._here.locked():
            raise _busy()
        async with self._here, self._database.reading() as connection:
            if not await _locked(connection):
                raise _busy()

            async def still_mine() -> None:
                await connection.execute(text("SELECT 1"))

            yield still_mine


async def _locked(connection: AsyncConnection) -> bool:
    if connection.dialect.name != "postgresql":
        return True
    asked = text("SELECT pg_try_advisory_xact_lock(:lock)")
    return bool((await connection.execute(asked, {"lock": _COLLECTION_LOCK})).scalar_one())


def _busy() -> CollectionBusy:
    return CollectionBusy("garbage is being collected already; its result is in the audit trail", retry_after_s=10.0)
