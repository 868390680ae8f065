"""penstock.scheduler.v1.JobService on the wire: who may call what, and messages to nouns and back."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
from penstock.scheduler.v1 import jobs_pb2, jobs_pb2_grpc

from runtime.clock import Clock
from runtime.errors import InvalidArgument, Unavailable
from runtime.identity import Role
from runtime.serving import inner_peer
from scheduler.jobs import codec
from scheduler.jobs.bell import Bell
from scheduler.jobs.callers import caller, plain, tenant_asked
from scheduler.jobs.claiming import Claiming
from scheduler.jobs.policy import is_open
from scheduler.jobs.sql import JobStore
from scheduler.jobs.submission import checked
from scheduler.jobs.types import MAX_PAGE, Claim, JobId, JobState, Submission
from scheduler.jobs.watching import Watching

SERVICE = "penstock.scheduler.v1.JobService"
_LARGE_BYTES = 64 * 1024
"""A call of more is read in a thread: the loop has others to answer."""

Context = grpc.aio.ServicerContext[Any, Any]


class JobServicer(jobs_pb2_grpc.JobServiceServicer):
    def __init__(self, store: JobStore, claiming: Claiming, watching: Watching, due: Bell, clock: Clock) -> None:
        self._store, self._claiming, self._watching = store, claiming, watching
        self._due, self._clock = due, clock

    async def SubmitJob(self, request: jobs_pb2.SubmitJobRequest, context: Context) -> jobs_pb2.SubmitJobResponse:
        caller(context)
        job, existed = await self._store.submit(checked(await _read(request), self._now_ms()), self._now_ms())
        self._due.ring()
        return jobs_pb2.SubmitJobResponse(job=codec.job_message(job), existed=existed)

    async def GetJob(self, request: jobs_pb2.GetJobRequest, context: Context) -> jobs_pb2.GetJobResponse:
        tenant = tenant_asked(context, request.tenant)
        return jobs_pb2.GetJobResponse(job=codec.job_message(await self._store.job(JobId(plain(request.job_id)), tenant)))

    # A coroutine that writes: cancelled generators leak natively in grpc.aio (grpc#43360).
    async def WatchJob(self, request: jobs_pb2.WatchJobRequest, context: Context) -> None:  # type: ignore[override]
        tenant, job_id = tenant_asked(context, request.tenant), JobId(plain(request.job_id))
        known = -1
        with self._watching.of(job_id, tenant) as watcher:
            while True:
                job = await self._store.job(job_id, tenant)
                if job.revision != known:
                    await context.write(jobs_pb2.WatchJobResponse(job=codec.job_message(job)))
                if not is_open(job.state):
                    return
                known = job.revision
                if not await watcher.news(known):
                    raise Unavailable("this scheduler ends; watch the job at another", retry_after_s=0.5)

    async def CancelJob(self, request: jobs_pb2.CancelJobRequest, context: Context) -> jobs_pb2.CancelJobResponse:
        tenant, job_id = tenant_asked(context, request.tenant), JobId(plain(request.job_id))
        job = await self._store.cancel(job_id, tenant, self._now_ms())
        self._watching.changed(job_id)
        return jobs_pb2.CancelJobResponse(job=codec.job_message(job))

    async def ListJobs(self, request: jobs_pb2.ListJobsRequest, context: Context) -> jobs_pb2.ListJobsResponse:
        tenant = tenant_asked(context, request.tenant)
        jobs, has_more = await self._store.page(codec.question_of(tenant, request))
        return jobs_pb2.ListJobsResponse(jobs=codec.job_messages(jobs), next_page_token=codec.next_token(jobs, has_more))

    async def ListDeadLetters(
        self, request: jobs_pb2.ListDeadLettersRequest, context: Context
    ) -> jobs_pb2.ListDeadLettersResponse:
        tenant = tenant_asked(context, request.tenant)
        jobs, has_more = await self._store.page(codec.dead_question_of(tenant, request))
        return jobs_pb2.ListDeadLettersResponse(jobs=codec.job_messages(jobs), next_page_token=codec.next_token(jobs, has_more))

    async def ReplayJobs(self, request: jobs_pb2.ReplayJobsRequest, context: Context) -> jobs_pb2.ReplayJobsResponse:
        tenant = tenant_asked(context, request.tenant)
        if len(request.job_ids) > MAX_PAGE:
            raise InvalidArgument(f"{len(request.job_ids)} job_ids, of {MAX_PAGE} at most; replay them in several calls")
        job_ids = [JobId(plain(job_id)) for job_id in request.job_ids]
        replayed = await self._store.replay(tenant, job_ids, plain(request.model), self._now_ms())
        if replayed:
            self._due.ring()
        for job_id in replayed:
            self._watching.changed(job_id)
        return jobs_pb2.ReplayJobsResponse(replayed=len(replayed))

    async def ClaimJobs(self, request: jobs_pb2.ClaimJobsRequest, context: Context) -> jobs_pb2.ClaimJobsResponse:
        gateway = inner_peer(context, Role.GATEWAY)
        if not request.max_jobs:
            raise InvalidArgument("max_jobs is 0; ask for one at least")
        claimed = await self._claiming.claim(request.max_jobs, gateway.node_id, request.wait_ms)
        for job in claimed:
            self._watching.changed(job.job_id)
        visibility_ms = self._claiming.visibility_ms
        return jobs_pb2.ClaimJobsResponse(jobs=[codec.claimed_message(job, visibility_ms) for job in claimed])

    async def ExtendClaims(self, request: jobs_pb2.ExtendClaimsRequest, context: Context) -> jobs_pb2.ExtendClaimsResponse:
        inner_peer(context, Role.GATEWAY)
        if len(request.claims) > MAX_PAGE:
            raise InvalidArgument(f"{len(request.claims)} claims, of {MAX_PAGE} at most; extend them in several calls")
        held = await self._claiming.extend([Claim(plain(claim)) for claim in request.claims])
        return jobs_pb2.ExtendClaimsResponse(claims=held, visibility_ms=self._claiming.visibility_ms)

    async def SettleJob(self, request: jobs_pb2.SettleJobRequest, context: Context) -> jobs_pb2.SettleJobResponse:
        inner_peer(context, Role.GATEWAY)
        job_id, state = await self._claiming.settle(Claim(plain(request.claim)), codec.outcome_of(request))
        self._watching.changed(job_id)
        if state is JobState.QUEUED:
            self._due.ring()
        return codec.settled_message(state)

    def _now_ms(self) -> int:
        return int(self._clock.wall_s() * 1_000)


async def _read(request: jobs_pb2.SubmitJobRequest) -> Submission:
    if request.call.ByteSize() <= _LARGE_BYTES:
        return codec.submission_of(request)
    return await asyncio.to_thread(codec.submission_of, request)
