"""The request log of one gateway process: its queue, its database, and the loops between them.

Owns the database and the loops' lifetimes. A database that is away, or slow, holds up nothing: it is opened beside the traffic,
tried again and again, and what does not fit meanwhile is dropped and counted. On leaving, what waits is still written, for a
bounded time. Where no log is kept, nothing that speaks SQL is loaded.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import structlog
from prometheus_client import CollectorRegistry

from gateway.config import GatewaySettings
from gateway.request_log.log import RequestLog
from gateway.request_log.metrics import LogMetrics
from gateway.request_log.retention import Retention
from gateway.request_log.types import DAY_MS, Drop, LogNotKept, LogSettings, Origin
from gateway.request_log.writer import LogWriter
from runtime.backoff import Backoff, sleep_unless
from runtime.clock import Clock
from runtime.errors import PenstockError, Unavailable

if TYPE_CHECKING:
    from gateway.request_log.store import LogStore

_OPENING = Backoff(first_s=0.5, max_s=30.0)
_logger = structlog.get_logger("penstock.request_log")


class LogRoom:
    """What others see of it. Belongs to one event loop."""

    def __init__(self, log: RequestLog | None = None) -> None:
        """Without a log, none is kept."""
        self.log = log
        self.store: LogStore | None = None
        """Once its database is open."""

    def reading(self) -> LogStore:
        """Where to look requests up. Raises LogNotKept, Unavailable."""
        if self.log is None:
            raise LogNotKept(
                "this gateway keeps no log of requests; start it with --request-log, an SQLite file or a URL such as"
                " postgresql://user@host/name"
            )
        if self.store is None:
            raise Unavailable("the database of the request log has not answered yet; try again", retry_after_s=1.0)
        return self.store


@asynccontextmanager
async def request_log_room(
    address: str, settings: LogSettings, origin: Origin, clock: Clock, registry: CollectorRegistry
) -> AsyncIterator[LogRoom]:
    """A log in this database; empty: none. Raises FailedPrecondition on an address that means nothing."""
    if not address:
        yield LogRoom()
        return
    from runtime.database import database_url

    database_url(address)
    metrics = LogMetrics(registry)
    log = RequestLog(clock, metrics, settings)
    room, stop = LogRoom(log), asyncio.Event()
    keeping = asyncio.create_task(_keep(room, log, address, settings, origin, clock, metrics, stop), name="request log")
    try:
        yield room
    finally:
        stop.set()
        _, late = await asyncio.wait({keeping}, timeout=settings.flush_s)
        for task in late:
            task.cancel()
        (ended,) = await asyncio.gather(keeping, return_exceptions=True)
        if isinstance(ended, Exception):
            _logger.error("request_log_ended", exc_info=ended)
        if lost := log.drop_all(Drop.SHUTDOWN):
            _logger.warning("requests_not_logged", requests=lost, why="the database did not take them before the gateway ended")


def log_settings(settings: GatewaySettings) -> LogSettings:
    return LogSettings(
        queue_rows=settings.request_log_queue_rows,
        retention_ms=int(settings.request_log_retention_days * DAY_MS),
        bodies=settings.request_log_bodies,
    )


async def _keep(
    room: LogRoom,
    log: RequestLog,
    address: str,
    settings: LogSettings,
    origin: Origin,
    clock: Clock,
    metrics: LogMetrics,
    stop: asyncio.Event,
) -> None:
    """Until `stop`, and until what waits then is written."""
    async with AsyncExitStack() as stack:
        store = await _opened(address, clock, stop, stack)
        if store is None:
            return
        room.store = store
        writer, retention = LogWriter(log, store, clock, metrics, origin, settings), Retention(store, clock, settings)
        async with asyncio.TaskGroup() as group:
            cleaning = group.create_task(retention.run(), name="request log retention")
            writing = group.create_task(writer.run(), name="request log writer")
            await stop.wait()
            cleaning.cancel()
            writer.end()
            await writing
        room.store = None


async def _opened(address: str, clock: Clock, stop: asyncio.Event, stack: AsyncExitStack) -> LogStore | None:
    """Once it answers; None: the gateway ended before."""
    from gateway.request_log.schema import REQUEST_LOG
    from gateway.request_log.store import LogStore
    from runtime.database import open_database

    failures, rng = 0, random.SystemRandom()
    while not stop.is_set():
        try:
            async with AsyncExitStack() as trial:
                database = await trial.enter_async_context(open_database(address, REQUEST_LOG))
                store = await LogStore.on(database)
                stack.push_async_exit(trial.pop_all())
                return store
        except PenstockError as error:
            failures += 1
            _logger.warning("request_log_away", why=error.message)
        except Exception:
            failures += 1
            _logger.exception("request_log_away")
        await sleep_unless(clock, _OPENING.delay_s(failures, rng), stop)
    return None
