"""Jobs at the edge: each tenant's own, with the rights of the key that asked, kept by whichever scheduler answers."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio
import pytest
from inference import grpc_service_pb2 as kserve
from penstock.scheduler.v1 import jobs_pb2 as pb
from penstock.scheduler.v1 import jobs_pb2_grpc as rpc

from gateway.jobs.execution import Execution
from gateway.jobs.keepers import JobsAway, Keepers
from gateway.jobs.peers import JobsClient
from gateway.jobs.runner import JobRunner, RunnerSettings
from gateway.jobs.servicer import MAX_CALL_BYTES, SERVICE, JobServicer
from runtime.clock import SystemClock
from runtime.errors import Unavailable
from runtime.ids import Region
from runtime.serving import Listen, serving
from tests.gateway.jobs.scheduler import MemoryScheduler, chat_call, kept_by
from tests.gateway.openai.mesh import AUDITOR, NARROW, SECRET, STRANGER, SmallMesh, piece, small_mesh
from tests.support.waiting import eventually


def chat(model: str = "sums", **fields: Any) -> pb.JobCall:
    return chat_call(json.dumps({"model": model, "messages": [{"role": "user", "content": "?"}], **fields}).encode())


def tensors(model: str = "digits") -> pb.JobCall:
    request = kserve.ModelInferRequest(model_name=model, raw_input_contents=[b"1234"])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    request.outputs.add(name="y")
    return pb.JobCall(infer=request.SerializeToString())


@dataclass
class Edge:
    mesh: SmallMesh
    scheduler: MemoryScheduler
    stub: Any

    def begin(self, method: str, request: Any, secret: str = SECRET) -> Any:
        metadata = (("authorization", f"Bearer {secret}"),) if secret else ()
        return getattr(self.stub, method)(request, metadata=metadata)

    async def ask(self, method: str, request: Any, secret: str = SECRET) -> Any:
        return await self.begin(method, request, secret)

    async def refusal(self, method: str, request: Any, secret: str = SECRET) -> grpc.StatusCode:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await self.ask(method, request, secret)
        assert refused.value.details()
        return refused.value.code()

    async def submit(self, call: pb.JobCall, **fields: Any) -> pb.Job:
        answer: pb.SubmitJobResponse = await self.ask("SubmitJob", pb.SubmitJobRequest(call=call, **fields))
        return answer.job


@asynccontextmanager
async def edge_over(
    scheduler: MemoryScheduler, *, away_first: bool = False, at_once: int = 0, keys: bool = True
) -> AsyncIterator[Edge]:
    mesh = small_mesh(keys=keys)
    mesh.targets._enforced = False  # whose models they are is told by notices, and not what this is about
    async with kept_by(scheduler, away_first=away_first) as schedulers:
        source, rules = JobsClient(schedulers, Region("local")), RunnerSettings(at_once=at_once, drain_grace_s=0.2)
        runner = JobRunner(source, Execution(mesh), SystemClock(), random.Random(1), rules)
        register = JobServicer(mesh, schedulers).register
        async with runner.running(), serving([Listen("127.0.0.1", 0)], [register], [SERVICE], drain_grace_s=0.1) as running:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel:
                yield Edge(mesh, scheduler, rpc.JobServiceStub(channel))


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with edge_over(MemoryScheduler()) as made:
        yield made


async def test_a_job_is_its_keys_whatever_the_request_says(edge: Edge) -> None:
    forged = pb.JobOwner(tenant="other", key_id="root", allowed_models=["everything"])
    request = pb.SubmitJobRequest(call=chat("words", messages=None, prompt="?"), owner=forged)
    request.call.http.path = "/v1/completions"
    job = (await edge.ask("SubmitJob", request, NARROW)).job
    assert (job.owner.tenant, job.owner.key_id, list(job.owner.allowed_models)) == ("acme", "k3", ["words"])


async def test_where_no_key_is_asked_for_everybody_is_one_tenant() -> None:
    async with edge_over(MemoryScheduler(), keys=False) as edge:
        job = (await edge.ask("SubmitJob", pb.SubmitJobRequest(call=chat()), "")).job
        assert (job.owner.tenant, job.owner.key_id) == ("default", "")
        assert (await edge.ask("GetJob", pb.GetJobRequest(job_id=job.job_id), "")).job.job_id == job.job_id


async def test_one_idempotency_key_is_one_job(edge: Edge) -> None:
    first = await edge.submit(chat(), idempotency_key="night")
    again = await edge.ask("SubmitJob", pb.SubmitJobRequest(call=chat(), idempotency_key="night"))
    assert (again.job.job_id, again.existed) == (first.job_id, True)
    other = pb.SubmitJobRequest(call=tensors(), idempotency_key="night")
    assert await edge.refusal("SubmitJob", other) is grpc.StatusCode.ALREADY_EXISTS


@pytest.mark.parametrize(
    ("request_", "secret", "code"),
    [
        (pb.SubmitJobRequest(call=chat()), "", grpc.StatusCode.UNAUTHENTICATED),
        (pb.SubmitJobRequest(call=chat()), AUDITOR, grpc.StatusCode.PERMISSION_DENIED),
        (pb.SubmitJobRequest(call=chat()), NARROW, grpc.StatusCode.PERMISSION_DENIED),
        (pb.SubmitJobRequest(call=tensors()), NARROW, grpc.StatusCode.PERMISSION_DENIED),
        (pb.SubmitJobRequest(), SECRET, grpc.StatusCode.INVALID_ARGUMENT),
        (pb.SubmitJobRequest(call=chat("nothing")), SECRET, grpc.StatusCode.NOT_FOUND),
        (pb.SubmitJobRequest(call=chat("digits")), SECRET, grpc.StatusCode.INVALID_ARGUMENT),
        (pb.SubmitJobRequest(call=chat(stream=True)), SECRET, grpc.StatusCode.INVALID_ARGUMENT),
        (pb.SubmitJobRequest(call=chat_call(b"{")), SECRET, grpc.StatusCode.INVALID_ARGUMENT),
        (pb.SubmitJobRequest(call=chat_call(b"{}", "/v1/jobs")), SECRET, grpc.StatusCode.INVALID_ARGUMENT),
        (pb.SubmitJobRequest(call=pb.JobCall(infer=b"\xff")), SECRET, grpc.StatusCode.INVALID_ARGUMENT),
        (pb.SubmitJobRequest(call=chat(), idempotency_key="k" * 129), SECRET, grpc.StatusCode.INVALID_ARGUMENT),
        (
            pb.SubmitJobRequest(call=pb.JobCall(infer=bytes(MAX_CALL_BYTES + 1))),
            SECRET,
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
    ],
)
async def test_what_could_never_be_done_is_not_kept(edge: Edge, request_: Any, secret: str, code: grpc.StatusCode) -> None:
    assert await edge.refusal("SubmitJob", request_, secret) is code
    assert not edge.scheduler.jobs


async def test_jobs_are_a_tenants_own(edge: Edge) -> None:
    job_id = (await edge.submit(chat())).job_id
    edge.scheduler.jobs[job_id].job.state = pb.JOB_STATE_DEAD
    for method, request in (("GetJob", pb.GetJobRequest), ("CancelJob", pb.CancelJobRequest)):
        forged = request(job_id=job_id, tenant="acme")
        assert await edge.refusal(method, forged, STRANGER) is grpc.StatusCode.NOT_FOUND
    assert not (await edge.ask("ListJobs", pb.ListJobsRequest(tenant="acme"), STRANGER)).jobs
    assert not (await edge.ask("ListDeadLetters", pb.ListDeadLettersRequest(tenant="acme"), STRANGER)).jobs
    assert (await edge.ask("ReplayJobs", pb.ReplayJobsRequest(tenant="acme"), STRANGER)).replayed == 0
    watching = edge.begin("WatchJob", pb.WatchJobRequest(job_id=job_id, tenant="acme"), STRANGER)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await watching.read()
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert (await edge.ask("ListDeadLetters", pb.ListDeadLettersRequest())).jobs[0].job_id == job_id
    assert (await edge.ask("ReplayJobs", pb.ReplayJobsRequest())).replayed == 1


async def test_who_may_only_look_ends_and_replays_nothing(edge: Edge) -> None:
    job_id = (await edge.submit(chat())).job_id
    assert (await edge.ask("GetJob", pb.GetJobRequest(job_id=job_id), AUDITOR)).job.job_id == job_id
    assert await edge.refusal("CancelJob", pb.CancelJobRequest(job_id=job_id), AUDITOR) is grpc.StatusCode.PERMISSION_DENIED
    assert await edge.refusal("ReplayJobs", pb.ReplayJobsRequest(), AUDITOR) is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("ClaimJobs", pb.ClaimJobsRequest(max_jobs=1)),
        ("ExtendClaims", pb.ExtendClaimsRequest()),
        ("SettleJob", pb.SettleJobRequest()),
    ],
)
async def test_what_gateways_ask_of_schedulers_is_not_offered(edge: Edge, method: str, request_: Any) -> None:
    assert await edge.refusal(method, request_) is grpc.StatusCode.UNIMPLEMENTED


async def test_a_watch_tells_every_change_until_the_job_has_ended(edge: Edge) -> None:
    job_id = (await edge.submit(chat())).job_id
    watching = edge.begin("WatchJob", pb.WatchJobRequest(job_id=job_id))
    assert (await watching.read()).job.state == pb.JOB_STATE_QUEUED
    await edge.ask("CancelJob", pb.CancelJobRequest(job_id=job_id))
    assert (await watching.read()).job.state == pb.JOB_STATE_CANCELLED
    assert await watching.read() is grpc.aio.EOF


async def test_a_scheduler_that_does_not_answer_is_passed_over() -> None:
    async with edge_over(MemoryScheduler(), away_first=True) as edge:
        job_id = edge.scheduler.keep(chat())
        assert (await edge.ask("GetJob", pb.GetJobRequest(job_id=job_id))).job.job_id == job_id
        assert (await edge.submit(chat())).job_id
        watching = edge.begin("WatchJob", pb.WatchJobRequest(job_id=job_id))
        assert (await watching.read()).job.job_id == job_id


async def test_what_a_scheduler_says_itself_is_handed_on(edge: Edge) -> None:
    edge.scheduler.failure = Unavailable("the database is away")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await edge.ask("GetJob", pb.GetJobRequest(job_id="x"))
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.UNAVAILABLE, "the database is away")


async def test_when_no_scheduler_answers_no_address_is_named() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as nowhere:
        with pytest.raises(JobsAway) as away:
            await Keepers([nowhere]).ask(lambda stubs: stubs.jobs.GetJob(pb.GetJobRequest(), timeout=5))
    assert "127.0.0.1" not in away.value.message


async def test_jobs_that_are_submitted_are_done() -> None:
    async with edge_over(MemoryScheduler(), away_first=True, at_once=4) as edge:
        asked = [await edge.submit(chat()), await edge.submit(tensors()), await edge.submit(chat())]
        await eventually(lambda: all(edge.scheduler.state(job.job_id) == pb.JOB_STATE_SUCCEEDED for job in asked))
        answers = [(await edge.ask("GetJob", pb.GetJobRequest(job_id=job.job_id))).job.answer for job in asked]
        assert answers[0].http.status == 200
        assert json.loads(answers[0].http.body)["choices"]
        assert kserve.ModelInferResponse.FromString(answers[1].infer).model_name == "digits"


async def test_a_job_that_is_cancelled_stops_at_the_worker() -> None:
    async with edge_over(MemoryScheduler(visibility_s=0.6), at_once=2) as edge:
        edge.mesh.router.answers, edge.mesh.router.hang = (piece("a"),), True
        job = await edge.submit(chat())
        await asyncio.wait_for(edge.mesh.router.begun.wait(), 10)
        await edge.ask("CancelJob", pb.CancelJobRequest(job_id=job.job_id))
        await asyncio.wait_for(edge.mesh.router.left.wait(), 10)
        assert not edge.scheduler.settled


async def test_a_long_job_stays_this_gateways() -> None:
    async with edge_over(MemoryScheduler(visibility_s=0.5), at_once=1) as edge:
        edge.mesh.router.answers, edge.mesh.router.hang = (piece("a"),), True
        job = await edge.submit(chat())
        await eventually(lambda: edge.scheduler.extended >= 6)
        kept = edge.scheduler.jobs[job.job_id].job
        assert (kept.state, kept.attempts) == (pb.JOB_STATE_RUNNING, 1)
    assert [request.failure.returned for request in edge.scheduler.settled] == [True]
