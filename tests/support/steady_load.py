"""Steady requests through one gateway, and what became of each: for tests and measurements in which something breaks."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc.aio
import numpy as np
from inference import grpc_service_pb2, grpc_service_pb2_grpc

REQUEST_S = 40.0
"""Longer than anything takes to be noticed: a silent worker after seconds, one whose lease ends after a quarter of a minute."""

_DIGITS_BYTES = 40


@dataclass
class SteadyLoad:
    """Callers in a closed loop, each with a short pause between two requests."""

    address: str
    callers: int = 4
    pause_s: float = 0.02
    outcomes: Counter[str] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)
    open_since_s: dict[int, float] = field(default_factory=dict)
    """By caller: since when its request is under way."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the context lasts. What is under way when it is left is let finish."""
        stop = asyncio.Event()
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
            calling = [asyncio.create_task(self._call_on(stub, caller, stop)) for caller in range(self.callers)]
            try:
                yield
                stop.set()
                await asyncio.gather(*calling)
            finally:
                for task in calling:
                    task.cancel()
                await asyncio.gather(*calling, return_exceptions=True)

    async def goes_on(self, more: int = 50) -> None:
        """Return once so many more were answered well. Raises TimeoutError where they are not."""
        before = self.outcomes["ok"]
        async with asyncio.timeout(REQUEST_S):
            while self.outcomes["ok"] < before + more:
                await asyncio.sleep(0.05)

    @property
    def longest_s(self) -> float:
        now_s = time.monotonic()
        return max([*self.took_s, *(now_s - since_s for since_s in self.open_since_s.values())], default=0.0)

    @property
    def failed(self) -> int:
        return sum(count for outcome, count in self.outcomes.items() if outcome != "ok")

    async def _call_on(self, stub: grpc_service_pb2_grpc.GRPCInferenceServiceStub, caller: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self.open_since_s[caller] = began_s = time.monotonic()
            self.outcomes[await _outcome(stub)] += 1
            del self.open_since_s[caller]
            self.took_s.append(time.monotonic() - began_s)
            await asyncio.sleep(self.pause_s)


async def until_answered(address: str, within_s: float = 40.0) -> None:
    """Return once the demo model answers there."""
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(within_s):
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        while await _outcome(stub) != "ok":
            await asyncio.sleep(0.1)


def digit_request() -> grpc_service_pb2.ModelInferRequest:
    request = grpc_service_pb2.ModelInferRequest(model_name="digits")
    request.inputs.add(name="image", datatype="FP32", shape=[1, 1, 8, 8])
    request.raw_input_contents.append(np.zeros((1, 1, 8, 8), np.float32).tobytes())
    return request


async def _outcome(stub: grpc_service_pb2_grpc.GRPCInferenceServiceStub) -> str:
    try:
        answer = await stub.ModelInfer(digit_request(), timeout=REQUEST_S)
    except grpc.aio.AioRpcError as failure:
        return f"{failure.code().name}: {failure.details()}"
    return "ok" if len(answer.raw_output_contents[0]) == _DIGITS_BYTES else "wrong answer"
