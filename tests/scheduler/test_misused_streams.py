"""Calls that are opened and then misused, by one gateway or for one tenant: bounded, and nobody else is worse off. Peers that
are slow or dead: what they had comes back.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from penstock.scheduler.v1 import jobs_pb2, jobs_pb2_grpc, scheduler_pb2, scheduler_pb2_grpc
from penstock.worker.v1 import worker_pb2, worker_pb2_grpc

import scheduler.workers
from runtime.identity import NodeIdentity, Role
from runtime.serving import Listen, serving
from scheduler.demand.intake import STREAMS_OF_ONE
from scheduler.jobs.types import JobLimits
from tests.scheduler.mesh import HERE
from tests.scheduler.whole import MODEL, Whole, announced, whole_scheduler
from tests.support.waiting import eventually
from worker.execute.execution import SERVICE as EXECUTE

CHAT = "/v1/chat/completions"
LIMITS = JobLimits(visibility_ms=400, longest_wait_ms=20_000, watchers=60, watchers_of_tenant=20)
REPORT = scheduler_pb2.ReportDemandRequest(interval_ms=1_000, region=HERE)


@dataclass(slots=True)
class Gateway:
    """One of several, and what it asks."""

    identity: NodeIdentity
    fleet: Any
    jobs: Any
    files: Any


async def gateway_of(whole: Whole, name: str) -> Gateway:
    identity = whole.mesh.node(name, Role.GATEWAY)
    channel = await whole.channel(identity)
    jobs, files = jobs_pb2_grpc.JobServiceStub(channel), jobs_pb2_grpc.FileServiceStub(channel)
    return Gateway(identity, scheduler_pb2_grpc.FleetServiceStub(channel), jobs, files)


@pytest.fixture
async def whole(tmp_path: Path) -> AsyncIterator[Whole]:
    async with whole_scheduler(tmp_path, jobs_limits=LIMITS, places=2) as running:
        yield running


async def code_of(call: Any) -> grpc.StatusCode:
    code = await call.code()
    assert isinstance(code, grpc.StatusCode)
    return code


def submission(tenant: str = "acme", **more: Any) -> jobs_pb2.SubmitJobRequest:
    call = {"http": {"path": CHAT, "body": json.dumps({"model": "sums"}).encode()}}
    return jobs_pb2.SubmitJobRequest(owner={"tenant": tenant}, call=call, **more)  # type: ignore[arg-type]


def later_ms(whole: Whole) -> int:
    return int(whole.mesh.clock.wall_s() * 1_000) + 3_600_000


async def cancelled(calls: list[Any]) -> None:
    for call in calls:
        call.cancel()
    await asyncio.gather(*(call.code() for call in calls))


async def test_one_gateway_reports_on_few_streams_and_others_go_on(whole: Whole) -> None:
    """Also where it never sends anything, or ends at once."""
    greedy, other = await gateway_of(whole, "greedy"), await gateway_of(whole, "other")
    intake = whole.services.intake
    silent = [greedy.fleet.ReportDemand(timeout=20) for _ in range(200)]
    await eventually(lambda: sum(call.done() for call in silent) == 200 - STREAMS_OF_ONE)
    assert {await code_of(call) for call in silent if call.done()} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(intake) == STREAMS_OF_ONE
    before = intake.reports
    good = other.fleet.ReportDemand(timeout=20)
    await good.write(REPORT)
    await eventually(lambda: intake.reports > before)
    await good.done_writing()
    await good
    ended = other.fleet.ReportDemand(timeout=20)
    await ended.done_writing()
    assert await code_of(ended) is grpc.StatusCode.OK
    await cancelled(silent)
    await eventually(lambda: len(intake) == 0)
    assert len(intake._ended) <= STREAMS_OF_ONE + 2


async def test_a_gateway_that_comes_and_goes_is_remembered_a_few_times_only(whole: Whole) -> None:
    gateway, intake = await gateway_of(whole, "restless"), whole.services.intake
    for _ in range(3 * STREAMS_OF_ONE):
        call = gateway.fleet.ReportDemand(timeout=20)
        await call.write(REPORT)
        await call.done_writing()
        await call
    assert len(intake._ended) == STREAMS_OF_ONE


async def test_watchers_that_never_read_hold_up_nobody(whole: Whole) -> None:
    greedy, other = await gateway_of(whole, "greedy"), await gateway_of(whole, "other")
    unread = [greedy.fleet.WatchFleet(scheduler_pb2.WatchFleetRequest(), timeout=20) for _ in range(300)]
    await eventually(lambda: len(whole.scheduler.audience) == 300)
    watch = other.fleet.WatchFleet(scheduler_pb2.WatchFleetRequest(), timeout=20)
    assert (await watch.read()).snapshot
    await announced(whole, "another", 1)
    found: list[str] = []
    while whole.mesh.worker_id("another") not in found:
        found += [worker.worker_id for worker in (await watch.read()).workers]
    await cancelled([*unread, watch])
    await eventually(lambda: len(whole.scheduler.audience) == 0)


async def test_one_tenant_watches_its_part_of_what_may_be_watched(whole: Whole) -> None:
    gateway = await gateway_of(whole, "gateway")
    mine = {}
    for tenant in ("acme", "globex"):
        mine[tenant] = (await gateway.jobs.SubmitJob(submission(tenant, due_at_ms=later_ms(whole)))).job.job_id

    def watched(tenant: str) -> Any:
        return gateway.jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=mine[tenant], tenant=tenant), timeout=20)

    calls = [watched("acme") for _ in range(1_000)]
    await eventually(lambda: sum(call.done() for call in calls) == 1_000 - LIMITS.watchers_of_tenant)
    assert {await code_of(call) for call in calls if call.done()} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    other = watched("globex")
    assert (await other.read()).job.state == jobs_pb2.JOB_STATE_QUEUED
    await gateway.jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=mine["globex"], tenant="globex"))
    assert (await other.read()).job.state == jobs_pb2.JOB_STATE_CANCELLED
    await cancelled(calls)
    again = watched("acme")
    assert (await again.read()).job.state == jobs_pb2.JOB_STATE_QUEUED
    again.cancel()


async def test_one_gateway_waits_for_jobs_with_few_calls_and_another_still_gets_some(whole: Whole) -> None:
    greedy, other = await gateway_of(whole, "greedy"), await gateway_of(whole, "other")
    asked = jobs_pb2.ClaimJobsRequest(max_jobs=1, wait_ms=20_000)
    calls = [greedy.jobs.ClaimJobs(asked, timeout=30) for _ in range(1_000)]
    await eventually(lambda: sum(call.done() for call in calls) == 1_000 - LIMITS.claims_of_gateway)
    assert {await code_of(call) for call in calls if call.done()} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    waiting = other.jobs.ClaimJobs(jobs_pb2.ClaimJobsRequest(max_jobs=64, wait_ms=20_000), timeout=30)
    await cancelled(calls)
    job = (await greedy.jobs.SubmitJob(submission())).job
    (claimed,) = (await waiting).jobs
    assert claimed.job_id == job.job_id
    assert (await greedy.jobs.ClaimJobs(jobs_pb2.ClaimJobsRequest(max_jobs=1))).jobs == []


async def test_a_gateway_that_claims_and_goes_silent_loses_its_jobs_to_another(whole: Whole) -> None:
    silent, other = await gateway_of(whole, "silent"), await gateway_of(whole, "other")
    job = (await other.jobs.SubmitJob(submission())).job
    (lost,) = (await silent.jobs.ClaimJobs(jobs_pb2.ClaimJobsRequest(max_jobs=64, wait_ms=20_000), timeout=30)).jobs
    (found,) = (await other.jobs.ClaimJobs(jobs_pb2.ClaimJobsRequest(max_jobs=64, wait_ms=20_000), timeout=30)).jobs
    assert (found.job_id, found.attempt) == (job.job_id, 2)
    done = jobs_pb2.JobAnswer(http=jobs_pb2.HttpAnswer(status=200))
    late = silent.jobs.SettleJob(jobs_pb2.SettleJobRequest(claim=lost.claim, answer=done), timeout=20)
    assert await code_of(late) is grpc.StatusCode.ABORTED
    await other.jobs.SettleJob(jobs_pb2.SettleJobRequest(claim=found.claim, answer=done))
    told = (await other.jobs.GetJob(jobs_pb2.GetJobRequest(job_id=job.job_id, tenant="acme"))).job
    assert [(each.claimed_by, each.outcome) for each in told.history] == [
        (silent.identity.node_id, "LOST"),
        (other.identity.node_id, "OK"),
    ]


async def test_uploads_that_stall_are_let_go_and_leave_nothing(whole: Whole) -> None:
    gateway = await gateway_of(whole, "gateway")
    room = whole.jobs._room
    assert room is not None
    room.file_servicer._silence_s = 1.0
    first = jobs_pb2.UploadFileRequest(tenant="acme", name="in.jsonl", purpose="batch", data=b"x" * 100_000)
    nothing = [gateway.files.UploadFile(timeout=20) for _ in range(100)]
    some = [gateway.files.UploadFile(timeout=20) for _ in range(100)]
    for call in some:
        await call.write(first)
    quick = gateway.files.UploadFile(timeout=20)
    await quick.write(first)
    await quick.done_writing()
    file_id = (await quick).file.file_id
    assert {await code_of(call) for call in (*nothing, *some)} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    empty = gateway.files.UploadFile(timeout=20)
    await empty.done_writing()
    assert await code_of(empty) is grpc.StatusCode.INVALID_ARGUMENT
    gone = gateway.files.UploadFile(timeout=20)
    await gone.write(first)
    gone.cancel()
    listed = (await gateway.files.ListFiles(jobs_pb2.ListFilesRequest(tenant="acme"))).files
    assert [file.file_id for file in listed] == [file_id]


async def test_a_tenant_that_floods_the_queue_does_not_keep_another_from_its_turn(whole: Whole) -> None:
    gateway = await gateway_of(whole, "gateway")
    guard, queue = whole.worker.inference.guard, whole.services.capacity.queue

    def asked(tenant: str) -> Any:
        request = scheduler_pb2.AwaitCapacityRequest(model=MODEL, region=HERE, tenant=tenant, timeout_us=20_000_000)
        return gateway.fleet.AwaitCapacity(request, timeout=30)

    with guard.enter("somebody"), guard.enter("somebody"):
        flood = [asked("greedy") for _ in range(1_500)]
        await eventually(lambda: len(queue) + sum(call.done() for call in flood) == 1_500)
        assert {await code_of(call) for call in flood if call.done()} <= {grpc.StatusCode.RESOURCE_EXHAUSTED}
        modest = asked("modest")
    assert (await modest).worker_id == whole.worker.worker_id
    codes = [await code_of(call) for call in flood if call.done()]
    assert codes.count(grpc.StatusCode.OK) <= 8
    await cancelled(flood)
    await eventually(lambda: len(queue) == 0 and whole.services.capacity.holding.count == 0)
    await eventually(lambda: guard.in_flight == 0)


@dataclass
class OddWorker(worker_pb2_grpc.WorkerServiceServicer):
    """Answers as it likes, or not at all."""

    hold: Callable[[worker_pb2.HoldSlotRequest], str | None]
    """The version that it says, or None where it says nothing at all."""
    held: int = 0
    released: int = 0
    never: asyncio.Event = field(default_factory=asyncio.Event)

    async def HoldSlot(self, request: worker_pb2.HoldSlotRequest, context: Any) -> worker_pb2.HoldSlotResponse:
        self.held += 1
        version = self.hold(request)
        if version is None:
            await self.never.wait()
        return worker_pb2.HoldSlotResponse(version=version or "")

    async def ReleaseSlot(self, request: worker_pb2.ReleaseSlotRequest, context: Any) -> worker_pb2.ReleaseSlotResponse:
        self.released += 1
        return worker_pb2.ReleaseSlotResponse()


OddWorker.__abstractmethods__ = frozenset()  # the others are not asked here


def odd(hold: Callable[[worker_pb2.HoldSlotRequest], str | None]) -> OddWorker:
    return OddWorker(hold)  # type: ignore[abstract]


@asynccontextmanager
async def odd_worker(whole: Whole, name: str, worker: OddWorker) -> AsyncIterator[None]:
    def register(server: grpc.aio.Server) -> None:
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(worker, server)

    listen = Listen("127.0.0.1", 0, whole.mesh.node(name))
    async with serving([listen], [register], [EXECUTE], drain_grace_s=0.0) as running:
        await announced(whole, name, running.ports[0])
        yield


def place(timeout_us: int = 10_000_000) -> scheduler_pb2.AwaitCapacityRequest:
    return scheduler_pb2.AwaitCapacityRequest(model=MODEL, region=HERE, tenant="acme", timeout_us=timeout_us)


def reservation() -> scheduler_pb2.ReserveRequest:
    return scheduler_pb2.ReserveRequest(model=MODEL, tenant="acme", ttl_ms=60_000, token_sha256=bytes(32))


async def test_a_worker_that_never_answers_keeps_nobody_from_another(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler.workers, "ANSWER_S", 0.3)
    gateway, capacity = await gateway_of(whole, "gateway"), whole.services.capacity
    silent = odd(lambda request: None)
    async with odd_worker(whole, "silent", silent):
        for _ in range(4):
            assert (await gateway.fleet.AwaitCapacity(place(), timeout=20)).worker_id == whole.worker.worker_id
        for _ in range(4):
            kept = await gateway.fleet.Reserve(reservation(), timeout=20)
            assert kept.worker_id == whole.worker.worker_id
            await gateway.fleet.ReleaseReservation(
                scheduler_pb2.ReleaseReservationRequest(reservation_id=kept.reservation_id), timeout=20
            )
        assert silent.held > 0, "it was asked"
        await eventually(lambda: capacity.holding.count == 0 and len(capacity.queue) == 0)
        await eventually(lambda: silent.released >= silent.held, patience_s=20)
    assert whole.services.desk.kept == 0
    await eventually(lambda: whole.worker.inference.guard.in_flight == 0)


async def test_where_only_silent_workers_are_the_wait_ends_in_time(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler.workers, "ANSWER_S", 0.2)
    gateway, capacity = await gateway_of(whole, "gateway"), whole.services.capacity
    await whole.store.delete(whole.mesh.key("a"))
    await eventually(lambda: whole.worker.worker_id not in whole.scheduler.fleet.members)
    async with odd_worker(whole, "silent", odd(lambda request: None)):
        waiting = [gateway.fleet.AwaitCapacity(place(500_000), timeout=20) for _ in range(20)]
        assert {await code_of(call) for call in waiting} <= {
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        }
        assert await code_of(gateway.fleet.Reserve(reservation(), timeout=20)) is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: len(capacity.queue) == 0 and capacity.holding.count == 0)
    assert whole.services.desk.kept == 0


async def test_a_worker_that_grants_and_dies_is_forgotten(whole: Whole) -> None:
    gateway, capacity = await gateway_of(whole, "gateway"), whole.services.capacity
    with whole.worker.inference.guard.enter("somebody"), whole.worker.inference.guard.enter("somebody"):
        async with odd_worker(whole, "dying", dying := odd(lambda request: "1")):
            kept = await gateway.fleet.Reserve(reservation(), timeout=20)
            given = await gateway.fleet.AwaitCapacity(place(), timeout=20)
            assert kept.worker_id == given.worker_id == whole.mesh.worker_id("dying")
            assert whole.services.desk.kept == 1
        gone = scheduler_pb2.ReleaseReservationRequest(reservation_id=kept.reservation_id, tenant="acme")
        assert await code_of(gateway.fleet.ReleaseReservation(gone, timeout=20)) is grpc.StatusCode.UNAVAILABLE
        assert whole.services.desk.kept == 0
        assert dying.held >= 2
    assert (await gateway.fleet.AwaitCapacity(place(), timeout=20)).worker_id == whole.worker.worker_id
    await whole.store.delete(whole.mesh.key("dying"))
    await eventually(lambda: whole.mesh.worker_id("dying") not in whole.scheduler.fleet.members)
    assert await code_of(gateway.fleet.ReleaseReservation(gone, timeout=20)) is grpc.StatusCode.OK
    await eventually(lambda: len(capacity.queue) == 0 and capacity.holding.count == 0)


@pytest.mark.parametrize("version", ["", "x" * 100_000, "../..", "2"])
async def test_a_worker_that_grants_nonsense_harms_nobody_else(whole: Whole, version: str) -> None:
    """A gateway is told what the worker said; the scheduler goes on."""
    gateway = await gateway_of(whole, "gateway")
    async with odd_worker(whole, "odd", odd(lambda request: version)):
        for _ in range(4):
            given = gateway.fleet.AwaitCapacity(place(), timeout=20)
            assert await code_of(given) is grpc.StatusCode.OK
    assert whole.worker.worker_id in whole.scheduler.fleet.members


async def test_a_gateway_that_leaves_while_it_waits_leaves_nothing(whole: Whole) -> None:
    gateway, capacity = await gateway_of(whole, "gateway"), whole.services.capacity
    guard = whole.worker.inference.guard
    with guard.enter("somebody"), guard.enter("somebody"):
        waiting = [gateway.fleet.AwaitCapacity(place(), timeout=20) for _ in range(50)]
        reserving = [gateway.fleet.Reserve(reservation(), timeout=20) for _ in range(50)]
        await eventually(lambda: len(capacity.queue) == 50)
        await cancelled([*waiting, *reserving])
    await eventually(lambda: len(capacity.queue) == 0 and capacity.holding.count == 0)
    await eventually(lambda: guard.in_flight == 0)
    assert whole.services.desk.kept == 0
