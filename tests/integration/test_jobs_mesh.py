"""A gateway's jobs, files and batches on a real scheduler's database, over mTLS; the workers are scripted."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
from google.api.httpbody_pb2 import HttpBody
from penstock.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from penstock.scheduler.v1 import jobs_pb2 as pb
from penstock.scheduler.v1 import jobs_pb2_grpc

from gateway.jobs.execution import Execution
from gateway.jobs.keepers import Keepers
from gateway.jobs.peers import JobsClient
from gateway.jobs.runner import JobRunner, RunnerSettings
from gateway.jobs.servicer import SERVICE as JOBS
from gateway.jobs.servicer import JobServicer
from gateway.jobs.types import Claim, HeldClaims
from gateway.openai.peers import BatchesClient, FilesClient
from gateway.openai.servicer import SERVICE, OpenAIServicer
from runtime.clock import SystemClock
from runtime.ids import Region
from runtime.serving import Listen, serving
from scheduler.jobs.types import JobLimits
from tests.gateway.openai.mesh import SmallMesh, piece, small_mesh
from tests.scheduler.jobs.service import Service, service_on
from tests.support.waiting import eventually

CHAT = "/v1/chat/completions"
VISIBILITY_MS = 1_000


class CountedClient(JobsClient):
    """Counts how often claims were extended."""

    extended = 0

    async def extend(self, claims: Sequence[Claim]) -> HeldClaims:
        self.extended += 1
        return await super().extend(claims)


@dataclass
class Gateway:
    mesh: SmallMesh
    source: CountedClient
    runner: JobRunner
    openai: Any
    jobs: Any

    async def asked(self, method: str, request: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((await getattr(self.openai, method)(request)).data)
        return found

    async def upload(self, lines: list[dict[str, Any]]) -> str:
        content = "\n".join(json.dumps(line) for line in lines).encode()
        request = httpx.Request("POST", "http://x", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)})
        made = await self.asked("CreateFile", HttpBody(content_type=request.headers["content-type"], data=request.read()))
        return str(made["id"])

    async def read(self, file_id: str) -> list[dict[str, Any]]:
        call = self.openai.GetFileContent(gateway_pb2.GetFileContentRequest(file_id=file_id))
        content = b"".join([message.data async for message in call])
        return [json.loads(line) for line in content.splitlines()]

    async def state(self, job_id: str) -> int:
        return int((await self.jobs.GetJob(pb.GetJobRequest(job_id=job_id))).job.state)


@asynccontextmanager
async def gateway_on(service: Service, *, at_once: int = 4) -> AsyncIterator[Gateway]:
    mesh, schedulers = small_mesh(keys=False), Keepers([await service.channel()])
    rules = RunnerSettings(at_once=at_once, claim_wait_s=2.0, drain_grace_s=0.1)
    source = CountedClient(schedulers, Region("local"))
    runner = JobRunner(source, Execution(mesh), SystemClock(), random.Random(1), rules)
    openai, jobs = OpenAIServicer(mesh, FilesClient(schedulers), BatchesClient(schedulers)), JobServicer(mesh, schedulers)
    server = serving([Listen("127.0.0.1", 0)], [openai.register, jobs.register], [SERVICE, JOBS], drain_grace_s=0.1)
    async with runner.running(), server as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel:
            stubs = gateway_pb2_grpc.OpenAIServiceStub(channel), jobs_pb2_grpc.JobServiceStub(channel)
            yield Gateway(mesh, source, runner, *stubs)


def line(number: int, model: str = "sums") -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": str(number)}]}
    return {"custom_id": f"l{number}", "method": "POST", "url": CHAT, "body": body}


def wish(file_id: str) -> HttpBody:
    return HttpBody(data=json.dumps({"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}).encode())


async def ended(gateway: Gateway, batch_id: str) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            batch = await gateway.asked("GetBatch", gateway_pb2.GetBatchRequest(batch_id=batch_id))
            if batch["status"] in ("completed", "failed", "cancelled", "expired"):
                return batch
            await asyncio.sleep(0.05)


async def test_a_batch_from_its_file_to_its_answers(tmp_path: Path) -> None:
    async with service_on(str(tmp_path / "jobs.db"), tmp_path) as service, gateway_on(service) as gateway:
        lines = [line(number, "nothing" if number % 5 == 0 else "sums") for number in range(20)]
        made = await gateway.asked("CreateBatch", wish(await gateway.upload(lines)))
        batch = await ended(gateway, made["id"])
        assert (batch["status"], batch["errors"]) == ("completed", None)
        assert batch["request_counts"] == {"total": 20, "completed": 16, "failed": 4}
        good = await gateway.read(batch["output_file_id"])
        assert [each["custom_id"] for each in good] == [f"l{number}" for number in range(20) if number % 5]
        assert {each["response"]["status_code"] for each in good} == {200}
        assert good[0]["response"]["body"]["choices"][0]["message"]["content"]
        bad = await gateway.read(batch["error_file_id"])
        assert [each["custom_id"] for each in bad] == ["l0", "l5", "l10", "l15"]
        assert {each["response"]["status_code"] for each in bad} == {404}
        assert {each["response"]["body"]["error"]["code"] for each in bad} == {"model_not_found"}


async def test_a_batch_whose_file_is_wrong_says_where(tmp_path: Path) -> None:
    async with service_on(str(tmp_path / "jobs.db"), tmp_path) as service, gateway_on(service) as gateway:
        made = await gateway.asked("CreateBatch", wish(await gateway.upload([line(1), line(1), {"custom_id": "x"}])))
        batch = await ended(gateway, made["id"])
        assert batch["status"] == "failed"
        assert {error["line"] for error in batch["errors"]["data"]} == {2, 3}


async def test_jobs_of_a_gateway_that_dies_are_done_by_another(tmp_path: Path) -> None:
    limits = JobLimits(visibility_ms=VISIBILITY_MS)
    async with service_on(str(tmp_path / "jobs.db"), tmp_path, limits) as service:
        dying = Keepers([await service.channel()])
        async with gateway_on(service, at_once=0) as gateway:
            body = json.dumps(line(1)["body"]).encode()
            call = pb.JobCall(http=pb.HttpCall(path=CHAT, body=body))
            job = (await gateway.jobs.SubmitJob(pb.SubmitJobRequest(call=call))).job
            assert [each.job_id for each in await JobsClient(dying, Region("local")).claim(4, 5.0)] == [job.job_id]
            async with gateway_on(service):
                async with asyncio.timeout(30):
                    while await gateway.state(job.job_id) != pb.JOB_STATE_SUCCEEDED:
                        await asyncio.sleep(0.05)
            history = (await gateway.jobs.GetJob(pb.GetJobRequest(job_id=job.job_id))).job.history
            assert [attempt.outcome for attempt in history] == ["LOST", "OK"]


async def test_a_job_longer_than_its_claim_is_done_once_and_one_that_is_cancelled_stops(tmp_path: Path) -> None:
    limits = JobLimits(visibility_ms=VISIBILITY_MS)
    async with service_on(str(tmp_path / "jobs.db"), tmp_path, limits) as service, gateway_on(service) as gateway:
        gateway.mesh.router.answers, gateway.mesh.router.hang = (piece("a"),), True
        call = pb.JobCall(http=pb.HttpCall(path=CHAT, body=json.dumps(line(1)["body"]).encode()))
        job = (await gateway.jobs.SubmitJob(pb.SubmitJobRequest(call=call))).job
        await asyncio.wait_for(gateway.mesh.router.begun.wait(), 20)
        await eventually(lambda: gateway.source.extended >= 8)  # at a third of the time each: more than two times over
        found = (await gateway.jobs.GetJob(pb.GetJobRequest(job_id=job.job_id))).job
        assert (found.state, found.attempts) == (pb.JOB_STATE_RUNNING, 1)
        await gateway.jobs.CancelJob(pb.CancelJobRequest(job_id=job.job_id))
        await asyncio.wait_for(gateway.mesh.router.left.wait(), 20)
        await eventually(lambda: gateway.runner.under_way == 0)
        assert await gateway.state(job.job_id) == pb.JOB_STATE_CANCELLED


async def test_a_gateway_that_ends_gives_its_jobs_back_untried(tmp_path: Path) -> None:
    async with service_on(str(tmp_path / "jobs.db"), tmp_path) as service, gateway_on(service, at_once=0) as watching:
        call = pb.JobCall(http=pb.HttpCall(path=CHAT, body=json.dumps(line(1)["body"]).encode()))
        async with gateway_on(service) as ending:
            ending.mesh.router.answers, ending.mesh.router.hang = (piece("a"),), True
            job = (await watching.jobs.SubmitJob(pb.SubmitJobRequest(call=call))).job
            await asyncio.wait_for(ending.mesh.router.begun.wait(), 20)
        assert await watching.state(job.job_id) == pb.JOB_STATE_QUEUED
        async with gateway_on(service):
            async with asyncio.timeout(20):
                while await watching.state(job.job_id) != pb.JOB_STATE_SUCCEEDED:
                    await asyncio.sleep(0.05)
        assert (await watching.jobs.GetJob(pb.GetJobRequest(job_id=job.job_id))).job.attempts == 1
