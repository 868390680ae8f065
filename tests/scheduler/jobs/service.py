"""A scheduler's jobs over real gRPC with mTLS."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from penstock.scheduler.v1 import jobs_pb2, jobs_pb2_grpc
from sqlalchemy import select

from runtime.channel import inner_channel
from runtime.clock import SystemClock
from runtime.database import open_database
from runtime.errors import PenstockError
from runtime.identity import Role
from runtime.serving import Listen, serving
from runtime.status import error_of
from scheduler.jobs.policy import Retries
from scheduler.jobs.room import Jobs, opened_jobs
from scheduler.jobs.schema import JOBS, tenants
from scheduler.jobs.types import JobLimits
from tests.scheduler.mesh import Mesh

CHAT = "/v1/chat/completions"
QUICK = Retries(first_ms=20, longest_ms=50)


class Service:
    """A scheduler that answers on loopback, and who calls it."""

    def __init__(self, address: str, mesh: Mesh, jobs: Jobs, port: int, stack: AsyncExitStack) -> None:
        self.address, self.mesh, self.rooms, self.port, self._stack = address, mesh, jobs, port, stack

    async def stored_bytes(self, tenant: str) -> int:
        """As they are counted for this tenant."""
        async with open_database(self.address, JOBS) as database, database.reading() as connection:
            found = await connection.scalar(select(tenants.c.stored_bytes).where(tenants.c.tenant == tenant))
        return int(found or 0)

    async def channel(self, role: Role = Role.GATEWAY) -> grpc.aio.Channel:
        identity = self.mesh.node(f"the {role.value}", role)
        return await self._stack.enter_async_context(inner_channel(f"127.0.0.1:{self.port}", identity, Role.SCHEDULER))

    async def jobs(self, role: Role = Role.GATEWAY) -> jobs_pb2_grpc.JobServiceStub:
        return jobs_pb2_grpc.JobServiceStub(await self.channel(role))

    async def files(self, role: Role = Role.GATEWAY) -> jobs_pb2_grpc.FileServiceStub:
        return jobs_pb2_grpc.FileServiceStub(await self.channel(role))

    async def batches(self, role: Role = Role.GATEWAY) -> jobs_pb2_grpc.BatchServiceStub:
        return jobs_pb2_grpc.BatchServiceStub(await self.channel(role))


@asynccontextmanager
async def service_on(address: str, folder: Path, limits: JobLimits | None = None) -> AsyncIterator[Service]:
    mesh = Mesh(folder, SystemClock())
    async with opened_jobs(address, SystemClock(), random.Random(1), limits, QUICK) as jobs:
        listen = Listen("127.0.0.1", 0, mesh.node("scheduler", Role.SCHEDULER))
        async with serving([listen], jobs.registers, jobs.services) as running, jobs.running():
            async with AsyncExitStack() as stack:
                yield Service(address, mesh, jobs, running.ports[0], stack)


def submit(body: bytes = b'{"model":"sums"}', tenant: str = "acme", **more: Any) -> jobs_pb2.SubmitJobRequest:
    owner = jobs_pb2.JobOwner(tenant=tenant, key_id="key-1")
    call = jobs_pb2.JobCall(http=jobs_pb2.HttpCall(path=CHAT, body=body))
    return jobs_pb2.SubmitJobRequest(owner=owner, call=call, **more)


def answered(claim: str, body: bytes = b"{}", status: int = 200) -> jobs_pb2.SettleJobRequest:
    return jobs_pb2.SettleJobRequest(claim=claim, answer=jobs_pb2.JobAnswer(http=jobs_pb2.HttpAnswer(status=status, body=body)))


async def claim_one(stub: jobs_pb2_grpc.JobServiceStub, wait_ms: int = 10_000) -> jobs_pb2.ClaimedJob:
    claimed = (await stub.ClaimJobs(jobs_pb2.ClaimJobsRequest(max_jobs=1, wait_ms=wait_ms), timeout=20)).jobs
    assert len(claimed) == 1
    return claimed[0]


async def error(call: Any) -> PenstockError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return error_of(caught.value)


async def news(watch: Any) -> jobs_pb2.Job:
    message = await watch.read()
    assert isinstance(message, jobs_pb2.WatchJobResponse)
    return message.job


async def states(watch: Any) -> Sequence[int]:
    return [message.job.state async for message in watch]
