"""JobService over real gRPC: who may what, waiting without asking again, and words for what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from inference import grpc_service_pb2
from penstock.scheduler.v1 import jobs_pb2

from runtime.clock import SystemClock
from runtime.errors import Code
from runtime.identity import Role
from scheduler.jobs.types import JobLimits
from tests.scheduler.jobs.service import Service, answered, claim_one, error, news, service_on, states, submit
from tests.support.waiting import eventually

QUEUED, RUNNING = jobs_pb2.JOB_STATE_QUEUED, jobs_pb2.JOB_STATE_RUNNING
SUCCEEDED, CANCELLED = jobs_pb2.JOB_STATE_SUCCEEDED, jobs_pb2.JOB_STATE_CANCELLED


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with service_on(str(tmp_path / "jobs.db"), tmp_path, JobLimits(visibility_ms=1_000, watchers=3)) as service:
        yield service


async def test_from_submission_to_answer(service: Service) -> None:
    stub = await service.jobs()
    job = (await stub.SubmitJob(submit(idempotency_key="k"))).job
    assert (job.state, job.model, job.owner.tenant, job.max_attempts) == (QUEUED, "sums", "acme", 5)
    assert (await stub.SubmitJob(submit(idempotency_key="k"))).existed
    assert (await error(stub.SubmitJob(submit(b'{"model":"other"}', idempotency_key="k")))).code is Code.ALREADY_EXISTS
    watch = stub.WatchJob(jobs_pb2.WatchJobRequest(job_id=job.job_id, tenant="acme"))
    assert (await news(watch)).state == QUEUED
    claimed = await claim_one(stub)
    assert (claimed.job_id, claimed.call.http.path, claimed.attempt, claimed.visibility_ms) == (
        job.job_id,
        "/v1/chat/completions",
        1,
        1_000,
    )
    assert (await news(watch)).state == RUNNING
    assert (await stub.SettleJob(answered(claimed.claim, b'{"x":1}'))).state == SUCCEEDED
    told = await news(watch)
    assert (told.state, told.answer.http.body, [each.outcome for each in told.history]) == (SUCCEEDED, b'{"x":1}', ["OK"])
    assert await watch.read() is grpc.aio.EOF
    assert (await stub.GetJob(jobs_pb2.GetJobRequest(job_id=job.job_id, tenant="acme"))).job == told
    late = await error(stub.SettleJob(answered(claimed.claim)))
    assert (late.code, late.reason) == (Code.ABORTED, "CLAIM_LOST")


async def test_a_claim_waits_and_is_woken_by_what_is_submitted(service: Service) -> None:
    stub = await service.jobs()
    waiting = asyncio.ensure_future(claim_one(stub, wait_ms=20_000))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    job = (await stub.SubmitJob(submit())).job
    assert (await waiting).job_id == job.job_id
    assert not (await stub.ClaimJobs(jobs_pb2.ClaimJobsRequest(max_jobs=1, wait_ms=50))).jobs, "and not for ever"


async def test_an_attempt_that_failed_comes_back_and_a_lost_one_too(service: Service) -> None:
    stub = await service.jobs()
    job = (await stub.SubmitJob(submit())).job
    failure = jobs_pb2.JobFailure(code=14, message="no worker")
    first = await claim_one(stub)
    assert (await stub.SettleJob(jobs_pb2.SettleJobRequest(claim=first.claim, failure=failure))).state == QUEUED
    second = await claim_one(stub)
    third = await claim_one(stub)
    assert (second.attempt, third.attempt) == (2, 3), "the second's claim ran out"
    held = (await stub.ExtendClaims(jobs_pb2.ExtendClaimsRequest(claims=[second.claim, third.claim]))).claims
    assert list(held) == [third.claim]
    await stub.SettleJob(answered(third.claim))
    history = (await stub.GetJob(jobs_pb2.GetJobRequest(job_id=job.job_id, tenant="acme"))).job.history
    assert [(each.outcome, each.message) for each in history] == [("UNAVAILABLE", "no worker"), ("LOST", ""), ("OK", "")]


async def test_dead_letters_are_listed_and_replayed(service: Service) -> None:
    stub, operator = await service.jobs(), await service.jobs(Role.OPERATOR)
    for _ in range(3):
        await stub.SubmitJob(submit())
        failure = jobs_pb2.JobFailure(code=3, message="bad")
        await stub.SettleJob(jobs_pb2.SettleJobRequest(claim=(await claim_one(stub)).claim, failure=failure))
    first = await operator.ListDeadLetters(jobs_pb2.ListDeadLettersRequest(page_size=2))
    rest = await operator.ListDeadLetters(jobs_pb2.ListDeadLettersRequest(page_size=2, page_token=first.next_page_token))
    dead = [*first.jobs, *rest.jobs]
    assert (len({job.job_id for job in dead}), rest.next_page_token) == (3, "")
    assert {job.history[0].message for job in dead} == {"bad"}
    chosen = jobs_pb2.ReplayJobsRequest(job_ids=[dead[0].job_id])
    assert (await operator.ReplayJobs(chosen)).replayed == 1
    assert (await stub.ReplayJobs(jobs_pb2.ReplayJobsRequest(tenant="other"))).replayed == 0
    assert (await stub.ReplayJobs(jobs_pb2.ReplayJobsRequest(tenant="acme"))).replayed == 2
    assert (await claim_one(stub)).attempt == 2
    listed = (await stub.ListJobs(jobs_pb2.ListJobsRequest(tenant="acme", state=QUEUED))).jobs
    assert len(listed) == 2


async def test_cancelled_while_somebody_watches(service: Service) -> None:
    stub = await service.jobs()
    job_id = (await stub.SubmitJob(submit())).job.job_id
    watched = asyncio.ensure_future(states(stub.WatchJob(jobs_pb2.WatchJobRequest(job_id=job_id, tenant="acme"))))
    claimed = await claim_one(stub)
    cancelled = (await stub.CancelJob(jobs_pb2.CancelJobRequest(job_id=job_id, tenant="acme"))).job
    assert cancelled.state == CANCELLED
    assert list(await watched)[-1] == CANCELLED
    assert (await error(stub.SettleJob(answered(claimed.claim)))).code is Code.ABORTED


async def test_changes_of_another_scheduler_are_seen(service: Service, tmp_path: Path) -> None:
    async with service_on(str(tmp_path / "jobs.db"), tmp_path / "other") as other:
        here, there = await service.jobs(), await other.jobs()
        waiting = asyncio.ensure_future(claim_one(there))
        job_id = (await here.SubmitJob(submit())).job.job_id
        watched = asyncio.ensure_future(states(here.WatchJob(jobs_pb2.WatchJobRequest(job_id=job_id, tenant="acme"))))
        await there.SettleJob(answered((await waiting).claim))
        assert list(await watched)[-1] == SUCCEEDED


async def test_watchers_are_bounded_and_leave(service: Service) -> None:
    stub = await service.jobs()
    job_id = (await stub.SubmitJob(submit())).job.job_id
    watches = [stub.WatchJob(jobs_pb2.WatchJobRequest(job_id=job_id, tenant="acme")) for _ in range(3)]
    for watch in watches:
        await watch.read()
    refused = await error(stub.WatchJob(jobs_pb2.WatchJobRequest(job_id=job_id, tenant="acme")).read())
    assert (refused.reason, refused.retry_after_s is not None) == ("JOB_WATCHERS_FULL", True)
    for watch in watches:
        watch.cancel()
    again = None

    async def free() -> bool:
        nonlocal again
        again = stub.WatchJob(jobs_pb2.WatchJobRequest(job_id=job_id, tenant="acme"))
        try:
            return bool(await again.read())
        except grpc.aio.AioRpcError:
            return False

    async with asyncio.timeout(10):
        while not await free():
            await asyncio.sleep(0.01)


async def test_a_serialised_request_is_a_job(service: Service) -> None:
    stub = await service.jobs()
    body = grpc_service_pb2.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(200_000)]).SerializeToString()
    request = jobs_pb2.SubmitJobRequest(owner=jobs_pb2.JobOwner(tenant="acme"), call=jobs_pb2.JobCall(infer=body))
    assert (await stub.SubmitJob(request)).job.model == "digits"
    claimed = await claim_one(stub)
    assert claimed.call.infer == body
    answer = jobs_pb2.JobAnswer(infer=b"response")
    await stub.SettleJob(jobs_pb2.SettleJobRequest(claim=claimed.claim, answer=answer))
    job = (await stub.GetJob(jobs_pb2.GetJobRequest(job_id=claimed.job_id, tenant="acme"))).job
    assert job.answer.infer == b"response"


@pytest.mark.parametrize("role", [Role.WORKER, Role.REGISTRY, Role.ENVOY])
async def test_others_may_nothing(service: Service, role: Role) -> None:
    jobs, files, batches = await service.jobs(role), await service.files(role), await service.batches(role)
    calls = [
        jobs.SubmitJob(submit()),
        jobs.GetJob(jobs_pb2.GetJobRequest()),
        jobs.WatchJob(jobs_pb2.WatchJobRequest()).read(),
        jobs.CancelJob(jobs_pb2.CancelJobRequest()),
        jobs.ListJobs(jobs_pb2.ListJobsRequest()),
        jobs.ListDeadLetters(jobs_pb2.ListDeadLettersRequest()),
        jobs.ReplayJobs(jobs_pb2.ReplayJobsRequest()),
        jobs.ClaimJobs(jobs_pb2.ClaimJobsRequest()),
        jobs.ExtendClaims(jobs_pb2.ExtendClaimsRequest()),
        jobs.SettleJob(jobs_pb2.SettleJobRequest()),
        files.UploadFile(iter([jobs_pb2.UploadFileRequest()])),
        files.ReadFile(jobs_pb2.ReadFileRequest()).read(),
        files.ListFiles(jobs_pb2.ListFilesRequest()),
        files.GetFile(jobs_pb2.GetFileRequest()),
        files.DeleteFile(jobs_pb2.DeleteFileRequest()),
        batches.CreateBatch(jobs_pb2.CreateBatchRequest()),
        batches.GetBatch(jobs_pb2.GetBatchRequest()),
        batches.ListBatches(jobs_pb2.ListBatchesRequest()),
        batches.CancelBatch(jobs_pb2.CancelBatchRequest()),
    ]
    assert {(await error(call)).reason for call in calls} == {"ROLE_REQUIRED"}


async def test_what_is_gateways_alone_and_what_operators_may_leave_out(service: Service) -> None:
    operator, gateway = await service.jobs(Role.OPERATOR), await service.jobs()
    job_id = (await operator.SubmitJob(submit())).job.job_id
    for call in (
        operator.ClaimJobs(jobs_pb2.ClaimJobsRequest(max_jobs=1)),
        operator.ExtendClaims(jobs_pb2.ExtendClaimsRequest()),
        operator.SettleJob(jobs_pb2.SettleJobRequest()),
    ):
        assert (await error(call)).reason == "ROLE_REQUIRED"
    assert (await operator.GetJob(jobs_pb2.GetJobRequest(job_id=job_id))).job.job_id == job_id
    nameless = await error(gateway.GetJob(jobs_pb2.GetJobRequest(job_id=job_id)))
    assert (nameless.code, "tenant" in nameless.message) == (Code.INVALID_ARGUMENT, True)
    assert (await error(gateway.GetJob(jobs_pb2.GetJobRequest(job_id=job_id, tenant="other")))).code is Code.NOT_FOUND


async def test_bad_input_is_told_what_is_wrong(service: Service) -> None:
    stub = await service.jobs()
    owner = jobs_pb2.JobOwner(tenant="acme")
    cases = [
        (stub.SubmitJob(jobs_pb2.SubmitJobRequest()), "no call"),
        (stub.SubmitJob(jobs_pb2.SubmitJobRequest(owner=owner, call=jobs_pb2.JobCall(infer=b"\xff"))), "ModelInferRequest"),
        (stub.SubmitJob(jobs_pb2.SubmitJobRequest(owner=owner, call=jobs_pb2.JobCall(http=jobs_pb2.HttpCall()))), "path"),
        (stub.SubmitJob(submit(b"{")), "JSON"),
        (stub.SubmitJob(submit(tenant="")), "owner.tenant"),
        (stub.SubmitJob(submit(idempotency_key="k" * 129)), "128"),
        (stub.ListJobs(jobs_pb2.ListJobsRequest(tenant="acme", page_token="here")), "page_token"),
        (
            stub.ListJobs(
                jobs_pb2.ListJobsRequest(tenant="acme", state=77)  # type: ignore[arg-type]
            ),
            "77",
        ),
        (stub.ClaimJobs(jobs_pb2.ClaimJobsRequest()), "max_jobs"),
        (stub.ExtendClaims(jobs_pb2.ExtendClaimsRequest(claims=["x"] * 1_001)), "1001"),
        (stub.ReplayJobs(jobs_pb2.ReplayJobsRequest(tenant="acme", job_ids=["x"] * 1_001)), "1001"),
        (stub.SettleJob(jobs_pb2.SettleJobRequest(claim="x")), "outcome"),
        (stub.SettleJob(answered("x", status=42)), "42"),
    ]
    for call, named in cases:
        told = await error(call)
        assert (told.code, named in told.message) == (Code.INVALID_ARGUMENT, True), told.message


async def test_names_that_nothing_has(database_address: str, tmp_path: Path) -> None:
    async with service_on(database_address, tmp_path) as service:
        jobs, files, batches = await service.jobs(), await service.files(), await service.batches()
        owner = jobs_pb2.JobOwner(tenant="acme")
        for name in ("x", "\x00", "\ud7ff", "job_" + "x" * 10_000):
            calls = [
                jobs.GetJob(jobs_pb2.GetJobRequest(job_id=name, tenant="acme")),
                jobs.GetJob(jobs_pb2.GetJobRequest(job_id="x", tenant=name)),
                jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=name, tenant="acme")),
                jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=name, tenant="acme")).read(),
                files.GetFile(jobs_pb2.GetFileRequest(file_id=name, tenant="acme")),
                files.ReadFile(jobs_pb2.ReadFileRequest(file_id=name, tenant="acme")).read(),
                files.DeleteFile(jobs_pb2.DeleteFileRequest(file_id=name, tenant="acme")),
                files.ListFiles(jobs_pb2.ListFilesRequest(after=name, tenant="acme")),
                batches.GetBatch(jobs_pb2.GetBatchRequest(batch_id=name, tenant="acme")),
                batches.CancelBatch(jobs_pb2.CancelBatchRequest(batch_id=name, tenant="acme")),
                batches.ListBatches(jobs_pb2.ListBatchesRequest(after=name, tenant="acme")),
                batches.CreateBatch(jobs_pb2.CreateBatchRequest(owner=owner, input_file_id=name, endpoint="/v1/embeddings")),
            ]
            assert {(await error(call)).code for call in calls} == {Code.NOT_FOUND}
            settled = jobs_pb2.SettleJobRequest(claim=name, failure=jobs_pb2.JobFailure(code=14, message="\x00"))
            assert (await error(jobs.SettleJob(settled))).code is Code.ABORTED
            assert not (await jobs.ExtendClaims(jobs_pb2.ExtendClaimsRequest(claims=[name]))).claims
            asked = jobs_pb2.ReplayJobsRequest(tenant="acme", job_ids=[name], model=name)
            assert (await jobs.ReplayJobs(asked)).replayed == 0
            assert not (await jobs.ListJobs(jobs_pb2.ListJobsRequest(tenant="acme", batch_id=name))).jobs


async def test_leaving_lets_go_of_who_waits(tmp_path: Path) -> None:
    async with service_on(str(tmp_path / "jobs.db"), tmp_path) as service:
        stub = await service.jobs()
        job_id = (await stub.SubmitJob(submit(due_at_ms=int(SystemClock().wall_s() * 1_000) + 3_600_000))).job.job_id
        watch = stub.WatchJob(jobs_pb2.WatchJobRequest(job_id=job_id, tenant="acme"))
        await watch.read()
        claiming = stub.ClaimJobs(jobs_pb2.ClaimJobsRequest(max_jobs=1, wait_ms=30_000))
        await eventually(lambda: service.rooms._room is not None)
        await asyncio.sleep(0.05)
        service.rooms._room.close()  # type: ignore[union-attr]
        assert not (await claiming).jobs
        assert (await error(watch.read())).code is Code.UNAVAILABLE
