"""A database of jobs, the stores on it, and a clock that the test moves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from random import Random

from sqlalchemy import func, select

from runtime.database import Database, open_database
from runtime.errors import Code
from runtime.ids import KeyId, NodeId, TenantId
from scheduler.jobs.batches.driver import BatchDriver
from scheduler.jobs.batches.results import ResultWriter
from scheduler.jobs.batches.sql import BatchStore
from scheduler.jobs.batches.sql_driving import DrivingStore
from scheduler.jobs.batches.sql_results import ResultStore
from scheduler.jobs.bell import Bell
from scheduler.jobs.claiming import Claiming
from scheduler.jobs.files.sql import FileStore
from scheduler.jobs.files.types import FileId, NewFile, Purpose, StoredFile
from scheduler.jobs.files.writing import FileWriter
from scheduler.jobs.loop import JobSweeper
from scheduler.jobs.policy import Retries
from scheduler.jobs.schema import JOBS, answers, files, jobs, tenants
from scheduler.jobs.sql import JobStore
from scheduler.jobs.sql_claims import ClaimStore
from scheduler.jobs.sql_sweep import SweepStore
from scheduler.jobs.types import (
    Answer,
    Call,
    Claim,
    ClaimedJob,
    Failure,
    Job,
    JobId,
    JobLimits,
    JobQuestion,
    JobState,
    Owner,
    Submission,
)
from scheduler.jobs.watching import Watching
from tests.support.manual_clock import ManualClock

ACME, OTHER = TenantId("acme"), TenantId("other")
GATEWAY = NodeId("gateway-1")
CHAT = "/v1/chat/completions"
LIMITS = JobLimits(visibility_ms=30_000)
RETRIES = Retries()


def submission(
    text: str = "hello", *, tenant: TenantId = ACME, key: str = "", priority: int = 0, model: str = "sums", **more: int
) -> Submission:
    owner = Owner(tenant, KeyId("key-1"), ("sums",))
    body = json.dumps({"model": model, "messages": [text]}).encode()
    return Submission(owner, Call(CHAT, body), model, idempotency_key=key, priority=priority, **more)


def unavailable(*, retry_after_ms: int = 0, returned: bool = False) -> Failure:
    return Failure(Code.UNAVAILABLE, "no worker", retry_after_ms=retry_after_ms, returned=returned)


DONE = Answer(200, b'{"ok": true}')


class Ground:
    """All that a scheduler has of jobs, but for its servicers."""

    def __init__(self, database: Database, clock: ManualClock, limits: JobLimits) -> None:
        self.database, self.clock, self.limits = database, clock, limits
        self.due, self.watching = Bell(), Watching(limits)
        self.jobs, self.claims = JobStore(database, limits, RETRIES), ClaimStore(database, limits)
        self.claiming = Claiming(self.claims, self.due, clock, Random(1), limits, RETRIES)
        self.sweeper = JobSweeper(SweepStore(database), self.due, self.watching, clock, Random(2), RETRIES)
        self.files, self.batches = FileStore(database, limits), BatchStore(database, limits)
        self.driving, self.news = DrivingStore(database, clock, limits, RETRIES), Bell()
        self.told: list[JobId] = []
        self.driver = self.new_driver()

    def new_driver(self) -> BatchDriver:
        """Another scheduler's."""
        results = ResultWriter(ResultStore(self.database), self.files, self.clock, self.limits)
        return BatchDriver(self.driving, self.files, results, self.news, self.due, self.told.extend, self.clock)

    async def upload(self, data: bytes, *, tenant: TenantId = ACME, keep_ms: int = 86_400_000) -> StoredFile:
        new = NewFile(tenant, "input.jsonl", Purpose.BATCH, keep_ms)
        writer = FileWriter(self.files, self.clock, await self.files.begin(new, self.now_ms))
        await writer.write(data)
        await writer.flush()
        return await self.files.finish(writer.file_id, writer.digest, keep_ms, self.now_ms)

    async def content(self, file_id: FileId | None) -> bytes:
        assert file_id is not None
        file = await self.files.file(file_id, None)
        return b"".join([piece async for piece in self.files.checked_pieces(file)])

    @property
    def now_ms(self) -> int:
        return int(self.clock.wall_s() * 1_000)

    async def submit(self, text: str = "hello", **more: object) -> Job:
        job, _ = await self.jobs.submit(submission(text, **more), self.now_ms)  # type: ignore[arg-type]
        return job

    async def claim(self, places: int = 1) -> list[ClaimedJob]:
        return await self.claiming.claim(places, GATEWAY, 0)

    async def claim_one(self) -> ClaimedJob:
        (claimed,) = await self.claim()
        return claimed

    async def settle(self, claim: Claim, outcome: Answer | Failure = DONE) -> JobState:
        return (await self.claiming.settle(claim, outcome))[1]

    async def job(self, job_id: JobId) -> Job:
        return await self.jobs.job(job_id, None)

    async def pass_s(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    async def listed(self, **asked: object) -> list[Job]:
        return (await self.jobs.page(JobQuestion(**asked)))[0]  # type: ignore[arg-type]

    async def kept(self, tenant: TenantId = ACME) -> tuple[int, int]:
        """Open jobs and stored bytes, as they are counted."""
        async with self.database.reading() as connection:
            row = (await connection.execute(select(tenants).where(tenants.c.tenant == tenant))).one()
        return row.open_jobs, row.stored_bytes

    async def recounted(self, tenant: TenantId = ACME) -> tuple[int, int]:
        """The same, from what there is."""
        is_open = jobs.c.state.in_(("queued", "running")) & jobs.c.batch_id.is_(None)
        async with self.database.reading() as connection:

            async def number(asked: object) -> int:
                return int(await connection.scalar(asked) or 0)  # type: ignore[call-overload]

            open_jobs = await number(select(func.count()).where((jobs.c.tenant == tenant) & is_open))
            calls_bytes = await number(select(func.sum(jobs.c.call_bytes)).where(jobs.c.tenant == tenant))
            files_bytes = await number(select(func.sum(files.c.size_bytes)).where(files.c.tenant == tenant))
            theirs = select(func.sum(func.length(answers.c.body))).select_from(answers.join(jobs))
            answers_bytes = await number(theirs.where(jobs.c.tenant == tenant))
        return open_jobs, calls_bytes + files_bytes + answers_bytes


@asynccontextmanager
async def ground_on(address: str, clock: ManualClock | None = None, limits: JobLimits = LIMITS) -> AsyncIterator[Ground]:
    async with open_database(address, JOBS) as database:
        yield Ground(database, clock or ManualClock(), limits)


def ids(jobs: Collection[Job] | Collection[ClaimedJob]) -> list[JobId]:
    return [job.job_id for job in jobs]
