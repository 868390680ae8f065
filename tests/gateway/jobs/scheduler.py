"""A scheduler's jobs, files and batches in memory, as a gateway meets them over gRPC: claims are fenced and run out."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from penstock.scheduler.v1 import jobs_pb2 as pb
from penstock.scheduler.v1 import jobs_pb2_grpc as rpc

from gateway.jobs.keepers import Keepers
from runtime.errors import Aborted, AlreadyExists, InvalidArgument, NotFound, PenstockError
from runtime.serving import Listen, serving

SERVICE = "penstock.scheduler.v1.JobService"
_ENDED = (pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_DEAD, pb.JOB_STATE_CANCELLED)
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class KeptJob:
    job: pb.Job
    call: pb.JobCall
    claim: str = ""
    held_until_s: float = 0.0


@dataclass
class MemoryScheduler(rpc.JobServiceServicer, rpc.FileServiceServicer, rpc.BatchServiceServicer):
    """Shared by as many servers as there are replicas. `visibility_s`: how long a claim holds."""

    visibility_s: float = 5.0
    timeout_ms: int = 0
    jobs: dict[str, KeptJob] = field(default_factory=dict)
    files: dict[str, tuple[pb.File, bytes]] = field(default_factory=dict)
    batches: dict[str, pb.Batch] = field(default_factory=dict)
    settled: list[pb.SettleJobRequest] = field(default_factory=list)
    extended: int = 0
    parts: int = 0
    failure: PenstockError | None = None
    """What is answered of files, and where jobs are asked for."""
    read_breaks_after: int | None = None
    """A read fails after so many parts, once."""
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __hash__(self) -> int:
        return id(self)

    def change(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def keep(self, call: pb.JobCall, tenant: str = "acme", key_id: str = "k1", models: tuple[str, ...] = ()) -> str:
        """A job that is due."""
        job = pb.Job(job_id=f"job-{next(self.numbers)}", state=pb.JOB_STATE_QUEUED)
        job.owner.tenant, job.owner.key_id = tenant, key_id
        job.owner.allowed_models.extend(models)
        self.jobs[job.job_id] = KeptJob(job, call)
        self.change()
        return job.job_id

    def state(self, job_id: str) -> int:
        return self.jobs[job_id].job.state

    async def SubmitJob(self, request: pb.SubmitJobRequest, context: Context) -> pb.SubmitJobResponse:
        for kept in self.jobs.values():
            if request.idempotency_key and kept.job.idempotency_key == request.idempotency_key:
                if kept.call != request.call:
                    raise AlreadyExists("another call has this idempotency key")
                return pb.SubmitJobResponse(job=kept.job, existed=True)
        job_id = self.keep(request.call, request.owner.tenant, request.owner.key_id, tuple(request.owner.allowed_models))
        self.jobs[job_id].job.idempotency_key = request.idempotency_key
        return pb.SubmitJobResponse(job=self.jobs[job_id].job)

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        return pb.GetJobResponse(job=self._mine(request.tenant, request.job_id).job)

    async def WatchJob(self, request: pb.WatchJobRequest, context: Context) -> None:  # type: ignore[override]
        kept, last = self._mine(request.tenant, request.job_id), pb.Job()
        while True:
            changed = self.changed
            if kept.job != last:
                last.CopyFrom(kept.job)
                await context.write(pb.WatchJobResponse(job=kept.job))
            if kept.job.state in _ENDED:
                return
            await changed.wait()

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:
        kept = self._mine(request.tenant, request.job_id)
        if kept.job.state not in _ENDED:
            kept.job.state, kept.claim = pb.JOB_STATE_CANCELLED, ""
            self.change()
        return pb.CancelJobResponse(job=kept.job)

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        jobs = [kept.job for kept in self.jobs.values() if kept.job.owner.tenant == request.tenant]
        return pb.ListJobsResponse(jobs=[job for job in jobs if request.state in (0, job.state)])

    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, context: Context) -> pb.ListDeadLettersResponse:
        return pb.ListDeadLettersResponse(jobs=self._dead(request.tenant))

    async def ReplayJobs(self, request: pb.ReplayJobsRequest, context: Context) -> pb.ReplayJobsResponse:
        dead = self._dead(request.tenant)
        for job in dead:
            job.state = pb.JOB_STATE_QUEUED
        self.change()
        return pb.ReplayJobsResponse(replayed=len(dead))

    async def ClaimJobs(self, request: pb.ClaimJobsRequest, context: Context) -> pb.ClaimJobsResponse:
        end_s = time.monotonic() + request.wait_ms / 1000
        while True:
            changed = self.changed
            claimed = [self._claim(kept) for kept in self._due()[: request.max_jobs]]
            left_s = end_s - time.monotonic()
            if claimed or left_s <= 0:
                return pb.ClaimJobsResponse(jobs=claimed)
            try:
                async with asyncio.timeout(min(left_s, 0.05)):
                    await changed.wait()
            except TimeoutError:
                continue

    async def ExtendClaims(self, request: pb.ExtendClaimsRequest, context: Context) -> pb.ExtendClaimsResponse:
        self.extended += 1
        held = [kept for kept in self.jobs.values() if kept.claim and kept.claim in request.claims]
        for kept in held:
            kept.held_until_s = time.monotonic() + self.visibility_s
        return pb.ExtendClaimsResponse(claims=[kept.claim for kept in held], visibility_ms=int(self.visibility_s * 1000))

    async def SettleJob(self, request: pb.SettleJobRequest, context: Context) -> pb.SettleJobResponse:
        kept = next((each for each in self.jobs.values() if request.claim and each.claim == request.claim), None)
        if kept is None:
            raise Aborted("the claim holds no more")
        kept.claim = ""
        self.settled.append(request)
        if request.HasField("answer"):
            kept.job.state = pb.JOB_STATE_SUCCEEDED
            kept.job.answer.CopyFrom(request.answer)
        else:
            kept.job.state = pb.JOB_STATE_DEAD if request.failure.final else pb.JOB_STATE_QUEUED
            kept.job.reason = request.failure.message
        self.change()
        return pb.SettleJobResponse(state=kept.job.state)

    async def UploadFile(self, request_iterator: Any, context: Context) -> pb.UploadFileResponse:
        first, data = None, b""
        async for part in request_iterator:
            first = first or part
            data += part.data
            self.parts += 1
        assert first is not None
        file_id = f"file-{next(self.numbers)}"
        file = pb.File(file_id=file_id, tenant=first.tenant, name=first.name, purpose=first.purpose, size_bytes=len(data))
        file.created_at_ms, file.expires_at_ms = 1_700_000_000_500, 1_700_000_000_500 + first.keep_s * 1000
        self.files[file_id] = file, data
        return pb.UploadFileResponse(file=file)

    async def GetFile(self, request: pb.GetFileRequest, context: Context) -> pb.GetFileResponse:
        return pb.GetFileResponse(file=self._file(request.tenant, request.file_id)[0])

    async def ListFiles(self, request: pb.ListFilesRequest, context: Context) -> pb.ListFilesResponse:
        files = [file for file, _ in self.files.values() if file.tenant == request.tenant]
        files = [file for file in files if request.purpose in ("", file.purpose)]
        ordered = files if request.oldest_first else files[::-1]
        if request.after:
            ordered = ordered[[file.file_id for file in ordered].index(request.after) + 1 :]
        size = request.page_size or 100
        return pb.ListFilesResponse(files=ordered[:size], has_more=len(ordered) > size)

    async def DeleteFile(self, request: pb.DeleteFileRequest, context: Context) -> pb.DeleteFileResponse:
        self._file(request.tenant, request.file_id)
        del self.files[request.file_id]
        return pb.DeleteFileResponse()

    async def ReadFile(self, request: pb.ReadFileRequest, context: Context) -> None:  # type: ignore[override]
        data = self._file(request.tenant, request.file_id)[1]
        for number, start in enumerate(range(0, len(data), 1000)):
            if number == self.read_breaks_after:
                self.read_breaks_after = None
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
            await context.write(pb.ReadFileResponse(data=data[start : start + 1000]))

    async def CreateBatch(self, request: pb.CreateBatchRequest, context: Context) -> pb.CreateBatchResponse:
        self._file(request.owner.tenant, request.input_file_id)
        if not request.completion_window.endswith("h"):
            raise InvalidArgument(f"the completion window is {request.completion_window!r}; send 24h")
        batch = pb.Batch(
            batch_id=f"batch_{next(self.numbers)}",
            owner=request.owner,
            endpoint=request.endpoint,
            input_file_id=request.input_file_id,
            status="validating",
            created_at_ms=1_700_000_000_500,
            metadata=request.metadata,
            completion_window=request.completion_window,
        )
        self.batches[batch.batch_id] = batch
        return pb.CreateBatchResponse(batch=batch)

    async def GetBatch(self, request: pb.GetBatchRequest, context: Context) -> pb.GetBatchResponse:
        return pb.GetBatchResponse(batch=self._batch(request.tenant, request.batch_id))

    async def ListBatches(self, request: pb.ListBatchesRequest, context: Context) -> pb.ListBatchesResponse:
        mine = [batch for batch in self.batches.values() if batch.owner.tenant == request.tenant][::-1]
        if request.after:
            mine = mine[[batch.batch_id for batch in mine].index(request.after) + 1 :]
        return pb.ListBatchesResponse(batches=mine[: request.page_size], has_more=len(mine) > request.page_size)

    async def CancelBatch(self, request: pb.CancelBatchRequest, context: Context) -> pb.CancelBatchResponse:
        batch = self._batch(request.tenant, request.batch_id)
        batch.status = "cancelling"
        return pb.CancelBatchResponse(batch=batch)

    def _due(self) -> list[KeptJob]:
        now_s = time.monotonic()
        for kept in self.jobs.values():
            if kept.job.state == pb.JOB_STATE_RUNNING and kept.held_until_s <= now_s:
                kept.job.state, kept.claim = pb.JOB_STATE_QUEUED, ""
        return [kept for kept in self.jobs.values() if kept.job.state == pb.JOB_STATE_QUEUED]

    def _claim(self, kept: KeptJob) -> pb.ClaimedJob:
        kept.job.state, kept.job.attempts = pb.JOB_STATE_RUNNING, kept.job.attempts + 1
        kept.claim, kept.held_until_s = f"claim-{next(self.numbers)}", time.monotonic() + self.visibility_s
        return pb.ClaimedJob(
            job_id=kept.job.job_id,
            owner=kept.job.owner,
            call=kept.call,
            attempt=kept.job.attempts,
            claim=kept.claim,
            visibility_ms=int(self.visibility_s * 1000),
            timeout_ms=self.timeout_ms,
        )

    def _mine(self, tenant: str, job_id: str) -> KeptJob:
        self._fail()
        kept = self.jobs.get(job_id)
        if kept is None or kept.job.owner.tenant != tenant:
            raise NotFound(f"there is no job {job_id!r} of this tenant's")
        return kept

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _dead(self, tenant: str) -> list[pb.Job]:
        jobs = [kept.job for kept in self.jobs.values() if kept.job.owner.tenant == tenant]
        return [job for job in jobs if job.state == pb.JOB_STATE_DEAD]

    def _file(self, tenant: str, file_id: str) -> tuple[pb.File, bytes]:
        self._fail()
        found = self.files.get(file_id)
        if found is None or found[0].tenant != tenant:
            raise NotFound("no such file")
        return found

    def _batch(self, tenant: str, batch_id: str) -> pb.Batch:
        found = self.batches.get(batch_id)
        if found is None or found.owner.tenant != tenant:
            raise NotFound("no such batch")
        return found

    def registers(self) -> list[Callable[[grpc.aio.Server], None]]:
        return [
            lambda server: rpc.add_JobServiceServicer_to_server(self, server),
            lambda server: rpc.add_FileServiceServicer_to_server(self, server),
            lambda server: rpc.add_BatchServiceServicer_to_server(self, server),
        ]


@asynccontextmanager
async def kept_by(scheduler: MemoryScheduler, *, away_first: bool = False) -> AsyncIterator[Keepers]:
    """The way to it, as a gateway has one; `away_first`: the first of two addresses answers nobody."""
    async with serving([Listen("127.0.0.1", 0)], scheduler.registers(), [SERVICE], drain_grace_s=0.1) as running:
        addresses = ["127.0.0.1:1"] if away_first else []
        channels = [grpc.aio.insecure_channel(each) for each in [*addresses, f"127.0.0.1:{running.ports[0]}"]]
        try:
            yield Keepers(channels)
        finally:
            for channel in channels:
                await channel.close()


def chat_call(body: bytes, path: str = "/v1/chat/completions") -> pb.JobCall:
    return pb.JobCall(http=pb.HttpCall(path=path, body=body))
