"""When keys were used last: remembered here, written every ten seconds, so that reading a key never writes.

Bounded: of more keys than fit, some uses are not noted; and a process that dies loses what it has not written yet. Nothing is
granted by it. Gateways ask for a key once in a while, not at each request: the time is that of the last asking.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from sqlalchemy.exc import SQLAlchemyError

from registry.accounts.policy import to_the_minute
from registry.accounts.sql import AccountSql
from runtime.clock import Clock
from runtime.database import Database, DatabaseUnavailable
from runtime.ids import KeyId

EVERY_S = 10.0
LEAVING_S = 2.0
"""What a database that does not answer may keep a process from ending."""
MAX_PENDING = 10_000
_log = structlog.get_logger("penstock.registry")


class LastUse:
    """Belongs to one event loop."""

    def __init__(self, database: Database, sql: AccountSql, clock: Clock, *, pending: int = MAX_PENDING) -> None:
        self._database, self._sql, self._clock, self._most = database, sql, clock, pending
        self._pending: dict[KeyId, int] = {}

    def used(self, key_id: KeyId) -> None:
        if len(self._pending) < self._most or key_id in self._pending:
            self._pending[key_id] = to_the_minute(int(self._clock.wall_s() * 1000))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Written every ten seconds inside, and once more on leaving."""
        task = asyncio.create_task(self._keep_writing(), name="last use of keys")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))
            with suppress(TimeoutError):
                async with asyncio.timeout(LEAVING_S):
                    await self.write()

    async def write(self) -> None:
        """What could not be written is kept for the next time."""
        taken, self._pending = self._pending, {}
        written = False
        try:
            if taken:
                async with self._database.writing() as connection:
                    await self._sql.note_uses(connection, tuple(taken.items()))
            written = True
        except (DatabaseUnavailable, SQLAlchemyError) as error:
            _log.warning("last_use_not_written", keys=len(taken), error=str(error))
        finally:
            if not written:
                self._pending = dict([*taken.items(), *self._pending.items()][-self._most :])

    async def _keep_writing(self) -> None:
        while True:
            await self._clock.sleep(EVERY_S)
            await self.write()
