"""Jobs of a whole mesh: submitted by key, done by a gateway, and none lost with a worker or a gateway that is killed."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import numpy as np
import pytest
from inference import grpc_service_pb2
from penstock.scheduler.v1 import jobs_pb2 as pb
from penstock.scheduler.v1 import jobs_pb2_grpc

from tests.support.mesh import RunningMesh, running_mesh

ENDED = (pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_DEAD, pb.JOB_STATE_CANCELLED)


@dataclass
class Jobs:
    """The mesh's jobs, as an application asks for them."""

    stub: Any
    metadata: tuple[tuple[str, str], ...]

    async def submit(self, call: pb.JobCall, **fields: Any) -> str:
        answer = await self._asked("SubmitJob", pb.SubmitJobRequest(call=call, **fields))
        return str(answer.job.job_id)

    async def job(self, job_id: str) -> pb.Job:
        found: pb.Job = (await self._asked("GetJob", pb.GetJobRequest(job_id=job_id))).job
        return found

    async def running(self) -> int:
        request = pb.ListJobsRequest(state=pb.JOB_STATE_RUNNING)
        return len((await self._asked("ListJobs", request)).jobs)

    async def watched(self, job_id: str) -> list[pb.Job]:
        call = self.stub.WatchJob(pb.WatchJobRequest(job_id=job_id), metadata=self.metadata, timeout=60)
        return [message.job async for message in call]

    async def ended(self, job_ids: list[str], timeout_s: float) -> list[pb.Job]:
        async with asyncio.timeout(timeout_s):
            while True:
                jobs = [await self.job(job_id) for job_id in job_ids]
                if all(job.state in ENDED for job in jobs):
                    return jobs
                await asyncio.sleep(0.5)

    async def _asked(self, method: str, request: Any) -> Any:
        """As an application with some patience asks: a gateway that was killed is back in seconds."""
        for _ in range(60):
            try:
                return await getattr(self.stub, method)(request, metadata=self.metadata, timeout=10)
            except grpc.aio.AioRpcError as failure:
                if failure.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            await asyncio.sleep(0.25)
        raise AssertionError("nobody answers")


@asynccontextmanager
async def jobs_of(mesh: RunningMesh) -> AsyncIterator[Jobs]:
    async with grpc.aio.insecure_channel(mesh.grpc_address) as channel:
        yield Jobs(jobs_pb2_grpc.JobServiceStub(channel), (("authorization", f"Bearer {mesh.api_key}"),))


def digit() -> pb.JobCall:
    request = grpc_service_pb2.ModelInferRequest(model_name="digits")
    request.inputs.add(name="image", datatype="FP32", shape=[1, 1, 8, 8])
    request.raw_input_contents.append(np.zeros((1, 1, 8, 8), np.float32).tobytes())
    return pb.JobCall(infer=request.SerializeToString())


def sum_of(number: int, max_tokens: int = 32) -> pb.JobCall:
    turns = [{"role": "user", "content": f"What is {number} plus 30?"}]
    body = {"model": "sums", "messages": turns, "temperature": 0, "max_tokens": max_tokens}
    return pb.JobCall(http=pb.HttpCall(path="/v1/chat/completions", body=json.dumps(body).encode()))


async def test_a_job_from_submission_to_its_answer(mesh: RunningMesh) -> None:
    async with jobs_of(mesh) as jobs:
        job_id = await jobs.submit(digit(), idempotency_key="one-digit")
        assert await jobs.submit(digit(), idempotency_key="one-digit") == job_id
        changes = await jobs.watched(job_id)
        assert changes[-1].state == pb.JOB_STATE_SUCCEEDED
        found = await jobs.job(job_id)
        answer = grpc_service_pb2.ModelInferResponse.FromString(found.answer.infer)
        assert len(answer.raw_output_contents[0]) == 40
        assert [attempt.outcome for attempt in found.history] == ["OK"]
        assert not found.model or found.model == "digits"


async def test_a_job_as_json(mesh: RunningMesh) -> None:
    headers = {"authorization": f"Bearer {mesh.api_key}"}
    async with httpx.AsyncClient(base_url=mesh.http_url, headers=headers, timeout=30) as client:
        http = {"path": "/v1/chat/completions", "body": base64.b64encode(sum_of(12).http.body).decode()}
        submitted = await client.post("/v1/jobs", json={"call": {"http": http}})
        assert submitted.status_code == 200, submitted.text
        job = f"/v1/jobs/{submitted.json()['job']['job_id']}"
        changes = (await client.get(f"{job}:watch")).json()
        assert changes[-1]["job"]["state"] == "JOB_STATE_SUCCEEDED"
        answer = (await client.get(job)).json()["job"]["answer"]["http"]
        assert answer["status"] == 200
        body = json.loads(base64.b64decode(answer["body"]))
        assert "42" in body["choices"][0]["message"]["content"]
        unknown = await client.post("/v1/jobs", json={"call": {"http": {**http, "path": "/v1/responses"}}})
        assert unknown.status_code == 400


async def test_a_job_that_cannot_be_done_becomes_a_dead_letter_and_can_be_replayed(mesh: RunningMesh) -> None:
    request = grpc_service_pb2.ModelInferRequest(model_name="digits")
    request.inputs.add(name="nonsense", datatype="FP32", shape=[1])
    request.raw_input_contents.append(bytes(4))
    async with jobs_of(mesh) as jobs:
        job_id = await jobs.submit(pb.JobCall(infer=request.SerializeToString()))
        (dead,) = await jobs.ended([job_id], 30)
        assert dead.state == pb.JOB_STATE_DEAD
        assert dead.reason
        letters = await jobs.stub.ListDeadLetters(pb.ListDeadLettersRequest(), metadata=jobs.metadata)
        assert job_id in {letter.job_id for letter in letters.jobs}
        replayed = await jobs.stub.ReplayJobs(pb.ReplayJobsRequest(job_ids=[job_id]), metadata=jobs.metadata)
        assert replayed.replayed == 1
        (again,) = await jobs.ended([job_id], 30)
        assert [attempt.number for attempt in again.history] == [1, 2]


@pytest.mark.timeout(240)
async def test_a_worker_that_is_killed_costs_no_job(tmp_path: Path) -> None:
    with running_mesh(tmp_path / "data") as mesh:
        async with jobs_of(mesh) as jobs:
            due_at_ms = int(time.time() * 1000) + 5_000
            calls = [digit() if number % 2 else sum_of(number) for number in range(200)]
            job_ids = [await jobs.submit(call, due_at_ms=due_at_ms) for call in calls]
            async with asyncio.timeout(30):
                while not await jobs.running():
                    await asyncio.sleep(0)
            os.kill(mesh.pid_of("worker-2"), signal.SIGKILL)
            ended = await jobs.ended(job_ids, 150)
            assert Counter(job.state for job in ended) == {pb.JOB_STATE_SUCCEEDED: 200}


@pytest.mark.timeout(300)
async def test_jobs_of_a_gateway_that_is_killed_are_done_when_their_claims_have_run_out(tmp_path: Path) -> None:
    with running_mesh(tmp_path / "data") as mesh:
        async with jobs_of(mesh) as jobs:
            due_at_ms = int(time.time() * 1000) + 5_000  # all at once, so that some are under way
            job_ids = [await jobs.submit(sum_of(number), due_at_ms=due_at_ms) for number in range(200)]
            async with asyncio.timeout(30):
                while not await jobs.running():
                    await asyncio.sleep(0)
            os.kill(mesh.pid_of("gateway"), signal.SIGKILL)
            ended = await jobs.ended(job_ids, 200)
            assert Counter(job.state for job in ended) == {pb.JOB_STATE_SUCCEEDED: 200}
            outcomes = Counter(attempt.outcome for job in ended for attempt in job.history)
            assert outcomes["OK"] == 200
            assert outcomes["LOST"] >= 1
