"""Requests to a model of `tests.support.slow_model`, of several tenants side by side, and how each ended."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
from inference import grpc_service_pb2 as kserve
from inference import grpc_service_pb2_grpc

from runtime.errors import PenstockError
from runtime.status import error_of
from tests.support.mesh import RunningMesh

Task = asyncio.Task["Ended"]


@dataclass(frozen=True, slots=True)
class Ended:
    """One that was answered, or why it was not."""

    tenant: str
    took_s: float
    code: grpc.StatusCode = grpc.StatusCode.OK
    error: PenstockError | None = None

    @property
    def well(self) -> bool:
        return self.error is None

    @property
    def retry_after_s(self) -> float | None:
        return self.error.retry_after_s if self.error is not None else None


@dataclass(slots=True)
class SlowCalls:
    """Over one channel to a gateway."""

    stub: grpc_service_pb2_grpc.GRPCInferenceServiceStub
    keys: Mapping[str, str]
    """By tenant."""
    ended: list[Ended] = field(default_factory=list)
    """In the order in which they did. Those that were cancelled are not in it."""
    open: int = 0

    def send(
        self, tenant: str, number: int, seconds: float = 0.05, *, timeout_s: float | None = 30.0, model: str = "slow"
    ) -> list[Task]:
        """So many requests at once that take so long each."""
        return [asyncio.create_task(self.ask(tenant, seconds, timeout_s=timeout_s, model=model)) for _ in range(number)]

    async def ask(self, tenant: str, seconds: float = 0.05, *, timeout_s: float | None = 30.0, model: str = "slow") -> Ended:
        request = kserve.ModelInferRequest(model_name=model)
        request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
        request.raw_input_contents.append(struct.pack("<f", seconds))
        metadata, began_s = (("authorization", f"Bearer {self.keys[tenant]}"),), time.monotonic()
        self.open += 1
        try:
            await self.stub.ModelInfer(request, metadata=metadata, timeout=timeout_s)
        except grpc.aio.AioRpcError as failure:
            ended = Ended(tenant, time.monotonic() - began_s, failure.code(), error_of(failure))
        else:
            ended = Ended(tenant, time.monotonic() - began_s)
        finally:
            self.open -= 1
        self.ended.append(ended)
        return ended


@asynccontextmanager
async def slow_calls(mesh: RunningMesh, keys: Mapping[str, str]) -> AsyncIterator[SlowCalls]:
    async with grpc.aio.insecure_channel(mesh.grpc_address) as channel:
        yield SlowCalls(grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel), keys)


async def cancelled(*tasks: Task) -> None:
    """Their callers went away."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def warm_traffic(calls: SlowCalls, tenant: str, model: str) -> AsyncIterator[None]:
    """A few callers in a closed loop while the context lasts; what became of each is in `calls`."""
    stop = asyncio.Event()

    async def call_on() -> None:
        while not stop.is_set():
            await calls.ask(tenant, 1.0, model=model)
            await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as callers:
        for _ in range(3):
            callers.create_task(call_on())
        try:
            yield
        finally:
            stop.set()


async def goes_on(calls: SlowCalls, more: int = 50) -> None:
    """So many more end well. Raises TimeoutError where they do not."""
    before = sum(each.well for each in calls.ended)
    async with asyncio.timeout(30):
        while sum(each.well for each in calls.ended) < before + more:
            await asyncio.sleep(0.05)
