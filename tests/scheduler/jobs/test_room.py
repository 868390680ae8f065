"""A scheduler's jobs as a whole: without a database, with one that is away, with one that comes back."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import grpc.aio
import pytest
from penstock.scheduler.v1 import jobs_pb2

from runtime.clock import SystemClock
from runtime.database import open_database
from runtime.errors import Code, FailedPrecondition, PenstockError
from runtime.identity import Role
from scheduler.jobs.room import Jobs, opened_jobs
from scheduler.jobs.schema import JOBS
from scheduler.jobs.types import JobLimits
from tests.scheduler.jobs.service import answered, claim_one, error, service_on, submit
from tests.support.forwarder import Forwarder
from tests.support.postgres import Postgres


async def test_without_a_database_it_says_which_setting_is_missing(tmp_path: Path) -> None:
    async with service_on("", tmp_path) as service:
        jobs, files, batches = await service.jobs(), await service.files(), await service.batches()
        first = jobs_pb2.UploadFileRequest(tenant="acme", name="n", purpose="batch")
        for call in (
            jobs.SubmitJob(submit()),
            jobs.ClaimJobs(jobs_pb2.ClaimJobsRequest(max_jobs=1)),
            jobs.WatchJob(jobs_pb2.WatchJobRequest()).read(),
            files.UploadFile(iter([first])),
            files.ReadFile(jobs_pb2.ReadFileRequest()).read(),
            batches.CreateBatch(jobs_pb2.CreateBatchRequest()),
        ):
            told = await error(call)
            assert (told.code, "--jobs-database" in told.message) == (Code.FAILED_PRECONDITION, True)
        assert (await error((await service.jobs(Role.WORKER)).SubmitJob(submit()))).reason == "ROLE_REQUIRED"


async def test_an_address_that_means_nothing_is_told_at_once() -> None:
    with pytest.raises(FailedPrecondition):
        async with opened_jobs("mysql://nobody@nowhere/x", SystemClock(), random.Random(1)):
            pass


async def test_a_database_that_is_away_may_come_and_go(postgres: Postgres, tmp_path: Path) -> None:
    name = "away"
    address = postgres.new_database(name)
    forwarder = Forwarder(postgres.port)
    await forwarder.mend()
    through = address.replace(str(postgres.port), str(forwarder.port))
    await forwarder.cut()
    async with service_on(through, tmp_path, JobLimits(visibility_ms=2_000)) as service:
        stub = await service.jobs()
        told = await error(stub.SubmitJob(submit()))
        assert (told.code, told.retry_after_s) == (Code.UNAVAILABLE, 1.0)
        await forwarder.mend()
        job_id = await _submitted(stub)
        claimed = await claim_one(stub)
        await forwarder.cut()
        assert (await error(stub.SettleJob(answered(claimed.claim)))).code is Code.UNAVAILABLE
        await forwarder.mend()
        again = await _claimed_again(stub)
        assert (again.job_id, again.attempt) == (job_id, 2), "the loops go on: the lost claim was found"
        await stub.SettleJob(answered(again.claim))
    await forwarder.close()
    postgres.drop_database(name)


async def _submitted(stub: object) -> str:
    async with asyncio.timeout(20):
        while True:
            try:
                return str((await stub.SubmitJob(submit(idempotency_key="k"))).job.job_id)  # type: ignore[attr-defined]
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)


async def _claimed_again(stub: object) -> jobs_pb2.ClaimedJob:
    async with asyncio.timeout(20):
        while True:
            try:
                return await claim_one(stub)  # type: ignore[arg-type]
            except (AssertionError, grpc.aio.AioRpcError):
                await asyncio.sleep(0.05)


async def test_counts_are_told_and_are_none_without_a_database(tmp_path: Path) -> None:
    assert Jobs(None, SystemClock(), random.Random(1)).counts.queued == 0
    async with open_database(str(tmp_path / "jobs.db"), JOBS):
        pass
    async with service_on(str(tmp_path / "jobs.db"), tmp_path) as service:
        stub = await service.jobs()
        await stub.SubmitJob(submit())
        room = service.rooms._room
        assert room is not None
        await room.sweeper.count()
        assert (service.rooms.counts.queued, service.rooms.counts.running) == (1, 0)
        assert service.rooms.totals.lost == 0


async def test_a_database_of_another_release_is_refused(tmp_path: Path) -> None:
    from sqlalchemy import text

    address = str(tmp_path / "jobs.db")
    async with open_database(address, JOBS) as database, database.writing() as connection:
        await connection.execute(text(f"UPDATE {JOBS.version_table} SET version_num = '9999'"))
    with pytest.raises(PenstockError, match="9999"):
        async with opened_jobs(address, SystemClock(), random.Random(1)):
            pass
