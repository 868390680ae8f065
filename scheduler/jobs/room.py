"""All that a scheduler has of jobs, files and batches, on one database: what serves them, and the loops that look after them.

Owns the database and the loops' lifetimes. A scheduler that was given no database says so to whoever asks; one whose database
is away serves everything else meanwhile, and tries again and again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import structlog
from penstock.scheduler.v1 import jobs_pb2_grpc

from runtime.backoff import Backoff
from runtime.clock import Clock
from runtime.database import Database, DatabaseUnavailable, open_database
from runtime.errors import PenstockError
from runtime.serving import Register
from scheduler.jobs.batches.driver import BatchDriver
from scheduler.jobs.batches.results import ResultWriter
from scheduler.jobs.batches.servicer import SERVICE as BATCH_SERVICE
from scheduler.jobs.batches.servicer import BatchServicer
from scheduler.jobs.batches.sql import BatchStore
from scheduler.jobs.batches.sql_driving import DrivingStore
from scheduler.jobs.batches.sql_results import ResultStore
from scheduler.jobs.bell import Bell
from scheduler.jobs.claiming import Claiming
from scheduler.jobs.errors import JobsNotSetUp
from scheduler.jobs.files.servicer import SERVICE as FILE_SERVICE
from scheduler.jobs.files.servicer import FileServicer
from scheduler.jobs.files.sql import FileStore
from scheduler.jobs.front import Front
from scheduler.jobs.loop import JobSweeper, JobTotals, keep_doing
from scheduler.jobs.policy import Retries
from scheduler.jobs.schema import JOBS
from scheduler.jobs.servicer import SERVICE as JOB_SERVICE
from scheduler.jobs.servicer import JobServicer
from scheduler.jobs.sql import JobStore
from scheduler.jobs.sql_claims import ClaimStore
from scheduler.jobs.sql_sweep import SweepStore
from scheduler.jobs.types import JobCounts, JobId, JobLimits
from scheduler.jobs.watching import LOOK_EVERY_S, Watching

SERVICES = (JOB_SERVICE, FILE_SERVICE, BATCH_SERVICE)
_DRIVERS = 2
"""Batches that one scheduler goes on with at once: a large file does not hold up a small one."""

_FILES_EVERY_S = 10.0
_OPENING = Backoff(first_s=0.5, max_s=10.0)
_log = structlog.get_logger("penstock.jobs")


class Room:
    """What there is once the database is open."""

    def __init__(self, database: Database, clock: Clock, rng: random.Random, limits: JobLimits, retries: Retries) -> None:
        self._clock, self._rng = clock, rng
        self._due, self._news, self._watching = Bell(), Bell(), Watching(limits)
        self._jobs, self._files = JobStore(database, limits, retries), FileStore(database, limits)
        self.sweeper = JobSweeper(SweepStore(database), self._due, self._watching, clock, rng, retries)
        results = ResultWriter(ResultStore(database), self._files, clock, limits)
        driving = DrivingStore(database, clock, limits, retries)
        self.driver = BatchDriver(driving, self._files, results, self._news, self._due, self._changed, clock)
        claiming = Claiming(ClaimStore(database, limits), self._due, clock, rng, limits, retries)
        self.job_servicer = JobServicer(self._jobs, claiming, self._watching, self._due, clock)
        self.file_servicer = FileServicer(self._files, clock, limits)
        self.batch_servicer = BatchServicer(BatchStore(database, limits), self._news, clock)

    def loops(self) -> Iterable[Coroutine[Any, Any, None]]:
        yield self.sweeper.keep_sweeping()
        yield self.sweeper.keep_counting()
        yield keep_doing(partial(self._watching.look, self._jobs), LOOK_EVERY_S, self._clock, self._rng)
        yield keep_doing(self._sweep_files, _FILES_EVERY_S, self._clock, self._rng)
        for _ in range(_DRIVERS):
            yield self.driver.keep_driving(self._rng)

    def close(self) -> None:
        """Whoever waits for a job, or for news of one, is answered."""
        for bell in (self._due, self._news):
            bell.close()
        self._watching.close()

    async def _sweep_files(self) -> None:
        while await self._files.sweep(int(self._clock.wall_s() * 1_000)):
            pass

    def _changed(self, job_ids: Iterable[JobId]) -> None:
        for job_id in job_ids:
            self._watching.changed(job_id)


class Jobs:
    """What a scheduler registers and runs. Belongs to one event loop."""

    services = SERVICES

    def __init__(self, opened: Callable[[], Coroutine[Any, Any, Room]] | None, clock: Clock, rng: random.Random) -> None:
        self._opened, self._clock, self._rng = opened, clock, rng
        self._room: Room | None = None

    @property
    def counts(self) -> JobCounts:
        """As it was counted last, a few seconds ago."""
        return JobCounts() if self._room is None else self._room.sweeper.counts

    @property
    def totals(self) -> JobTotals:
        return JobTotals() if self._room is None else self._room.sweeper.totals

    @property
    def registers(self) -> tuple[Register, ...]:
        adders = (
            (jobs_pb2_grpc.add_JobServiceServicer_to_server, lambda: self._here().job_servicer),
            (jobs_pb2_grpc.add_FileServiceServicer_to_server, lambda: self._here().file_servicer),
            (jobs_pb2_grpc.add_BatchServiceServicer_to_server, lambda: self._here().batch_servicer),
        )
        return tuple(partial(add, Front(behind)) for add, behind in adders)  # type: ignore[arg-type]

    async def open(self) -> None:
        """Try once. Raises DatabaseUnavailable, FailedPrecondition."""
        if self._opened is not None and self._room is None:
            self._room = await self._opened()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look after jobs while the context lasts. On leaving, who waits is let go first."""
        task = asyncio.create_task(self._run(), name="jobs")
        try:
            yield
        finally:
            if self._room is not None:
                self._room.close()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        failures = 0
        while self._room is None and self._opened is not None:
            try:
                await self.open()
            except PenstockError as error:
                failures += 1
                _log.warning("jobs_database_away", why=error.message)
                await self._clock.sleep(_OPENING.delay_s(failures, self._rng))
        if self._room is not None:
            async with asyncio.TaskGroup() as group:
                for loop in self._room.loops():
                    group.create_task(loop)

    def _here(self) -> Room:
        if self._opened is None:
            raise JobsNotSetUp(
                "this scheduler keeps no jobs, files or batches; start it with --jobs-database, an SQLite file or a URL "
                "such as postgresql://user@host/name"
            )
        if self._room is None:
            raise DatabaseUnavailable("the database of jobs has not answered yet; try again", retry_after_s=1.0)
        return self._room


@asynccontextmanager
async def opened_jobs(
    address: str,
    clock: Clock,
    rng: random.Random,
    limits: JobLimits | None = None,
    retries: Retries | None = None,
) -> AsyncIterator[Jobs]:
    """Jobs in this database; empty: none are kept, and whoever asks is told so. A database that is away may come later.

    Raises FailedPrecondition on an address that means nothing, or a database of another release.
    """
    async with AsyncExitStack() as stack:

        async def opened() -> Room:
            database = await stack.enter_async_context(open_database(address, JOBS))
            return Room(database, clock, rng, limits or JobLimits(), retries or Retries())

        jobs = Jobs(opened if address else None, clock, rng)
        try:
            await jobs.open()
        except DatabaseUnavailable as error:
            _log.warning("jobs_database_away", why=error.message)
        yield jobs
