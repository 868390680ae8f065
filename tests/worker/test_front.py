"""How the worker's ports close: those who send hear of it first, what was begun is finished, then nothing is taken any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import grpc.aio
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.links.link import WorkerLink
from gateway.links.types import CallContext as LinkCall
from runtime.errors import PenstockError
from runtime.identity import Authority, Role
from runtime.ids import WorkerId
from worker.config import WorkerSettings
from worker.execute.execution import Execution
from worker.front import opened_front, opened_metrics, quota_of, shared_memory_of
from worker.inference import TableInference
from worker.models import ModelTable
from worker.types import CallContext, Load


@dataclass(slots=True)
class Slow:
    """An Inference whose answers wait for the test where the model is called slow."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    entered: asyncio.Event = field(default_factory=asyncio.Event)

    async def infer(self, model: str, version: str, payload: bytes, call: CallContext) -> bytes:
        if model == "slow":
            self.entered.set()
            await self.gate.wait()
        return payload

    async def stream_infer(self, model: str, version: str, payload: bytes, call: CallContext) -> AsyncIterator[bytes]:
        yield payload

    def generate(self, model: str, version: str, payload: bytes, call: CallContext) -> AsyncIterator[bytes]:
        return self.stream_infer(model, version, payload, call)

    @property
    def load(self) -> Load:
        return Load(0, 0)


async def test_ports_close_in_order(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path / "ca")
    identity, gateway = (authority.enrol(tmp_path / role.value, role) for role in (Role.WORKER, Role.GATEWAY))
    settings = WorkerSettings(identity_dir=identity.folder, kserve_port=0, leave_grace_s=0.5, drain_grace_s=10.0)
    slow, stop = Slow(), asyncio.Event()
    execution = Execution(slow, WorkerId(identity.node_id), stop)
    async with AsyncExitStack() as stack:
        front = opened_front(settings, identity, ModelTable(), cast("TableInference", slow), execution, ())
        ports = await stack.enter_async_context(front)
        async with (
            WorkerLink(f"127.0.0.1:{ports.inner}", gateway, WorkerId(identity.node_id)) as link,
            grpc.aio.insecure_channel(f"127.0.0.1:{ports.kserve}") as plain,
        ):
            assert await link.wait_connected(10)
            begun = asyncio.ensure_future(link.call("slow", "", b"slow", LinkCall()))
            async with asyncio.timeout(10):
                await slow.entered.wait()
            closing = asyncio.ensure_future(stack.aclose())
            health = health_pb2_grpc.HealthStub(plain)
            async with asyncio.timeout(10):
                while (
                    await health.Check(health_pb2.HealthCheckRequest())
                ).status != health_pb2.HealthCheckResponse.NOT_SERVING:
                    await asyncio.sleep(0.01)
            assert await link.call("quick", "", b"still taken", LinkCall()) == b"still taken"
            async with asyncio.timeout(10):
                while not execution.draining:
                    await asyncio.sleep(0.01)
            with pytest.raises(PenstockError):
                await link.call("quick", "", b"too late", LinkCall())
            assert not begun.done()
            slow.gate.set()
            assert await begun == b"slow"
            async with asyncio.timeout(10):
                await closing
    assert stop.is_set()


async def test_each_worker_of_a_process_has_metrics_of_its_own() -> None:
    settings = WorkerSettings(metrics_port=0, max_in_flight=7)
    for _ in range(2):
        port = opened_metrics(settings, ModelTable(), TableInference(ModelTable(), quota=quota_of(settings)))
        async with httpx.AsyncClient() as client:
            page = (await client.get(f"http://127.0.0.1:{port}/metrics")).text.splitlines()
        assert "penstock_worker_max_in_flight 7.0" in page
        assert any(line.startswith("nv_cpu_memory_total_bytes ") for line in page)
        assert not any(line.startswith("nv_inference_count{") for line in page)


def test_tenants_are_told_apart_where_gateways_name_them(tmp_path: Path) -> None:
    assert quota_of(WorkerSettings(tenant_share=0.5)).tenant_share == 1
    policy = quota_of(WorkerSettings(identity_dir=tmp_path, tenant_share=0.5, tenant_max_in_flight=3))
    assert (policy.tenant_share, policy.tenant_max_in_flight) == (0.5, 3)


def test_shared_memory_is_off_until_a_prefix_is_given() -> None:
    assert shared_memory_of(WorkerSettings()) is None
    assert shared_memory_of(WorkerSettings(shared_memory_prefix="")) is not None
