"""The scheduler as a process, killed with -9 while a gateway has a job of it: nothing is lost, and the claim still holds."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from penstock.scheduler.v1 import jobs_pb2, jobs_pb2_grpc

from runtime.channel import inner_channel
from runtime.clock import SystemClock
from runtime.identity import Role
from tests.scheduler.jobs.service import answered, claim_one, submit
from tests.scheduler.mesh import Mesh
from tests.support.waiting import eventually


class Scheduler:
    """Its etcd never answers: jobs do without."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.mesh, self._ready = folder, Mesh(folder, SystemClock()), folder / "ready.json"
        self.mesh.node("scheduler", Role.SCHEDULER)
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> int:
        """The port."""
        self._launch()
        await eventually(self._ready.exists, patience_s=60)
        return int(json.loads(self._ready.read_text())["port"])

    def _launch(self) -> None:
        self._ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "scheduler", "--identity-dir", str(self._folder / "scheduler")]
        command += ["--etcd-endpoints", "127.0.0.1:1", "--ready-file", str(self._ready), "--region", "here"]
        command += ["--jobs-database", str(self._folder / "data" / "jobs.db"), "--jobs-visibility-s", "20"]
        path = os.pathsep.join(entry for entry in sys.path if entry)
        with (self._folder / "scheduler.log").open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, env={**os.environ, "PYTHONPATH": path})

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    @property
    def log(self) -> str:
        return (self._folder / "scheduler.log").read_text()


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[Scheduler]:
    scheduler = Scheduler(tmp_path)
    yield scheduler
    scheduler.kill()


async def test_killed_while_a_gateway_has_a_job(scheduler: Scheduler) -> None:
    gateway = scheduler.mesh.node("gateway", Role.GATEWAY)
    secret = b'{"model":"sums","messages":["a secret prompt"]}'
    async with inner_channel(f"127.0.0.1:{await scheduler.start()}", gateway, Role.SCHEDULER) as channel:
        stub = jobs_pb2_grpc.JobServiceStub(channel)
        first = (await stub.SubmitJob(submit(secret, idempotency_key="k"))).job.job_id
        second = (await stub.SubmitJob(submit(secret))).job.job_id
        claimed = await claim_one(stub)
    await asyncio.to_thread(scheduler.kill)
    async with inner_channel(f"127.0.0.1:{await scheduler.start()}", gateway, Role.SCHEDULER) as channel:
        stub = jobs_pb2_grpc.JobServiceStub(channel)
        assert (await stub.SubmitJob(submit(secret, idempotency_key="k"))).job.job_id == first
        held = (await stub.ExtendClaims(jobs_pb2.ExtendClaimsRequest(claims=[claimed.claim]))).claims
        assert list(held) == [claimed.claim]
        await stub.SettleJob(answered(claimed.claim, b"done"))
        other = await claim_one(stub)
        assert {claimed.job_id, other.job_id} == {first, second}
        failure = jobs_pb2.JobFailure(code=3, message="refused")
        await stub.SettleJob(jobs_pb2.SettleJobRequest(claim=other.claim, failure=failure))
        job = (await stub.GetJob(jobs_pb2.GetJobRequest(job_id=claimed.job_id, tenant="acme"))).job
        assert (job.state, job.answer.http.body) == (jobs_pb2.JOB_STATE_SUCCEEDED, b"done")
    assert "secret" not in scheduler.log
    assert "Traceback" not in scheduler.log
