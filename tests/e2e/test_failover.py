"""One of two workers is killed, or falls silent, under steady load: nobody who asked notices, and it comes back by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import numpy as np
from inference import grpc_service_pb2, grpc_service_pb2_grpc

from tests.support.mesh import RunningMesh, running_mesh

LEAVES_WITHIN_S = 15.0
CALL_TIMEOUT_S = 12.0
"""What was sent to a worker that fell silent goes elsewhere after three seconds; its lease alone takes longer than this."""


@dataclass
class Load:
    """Requests in a closed loop, and what became of each."""

    mesh: RunningMesh
    outcomes: Counter[str] = field(default_factory=Counter)
    stop: bool = False

    async def run(self, in_flight: int) -> None:
        async with grpc.aio.insecure_channel(self.mesh.grpc_address) as channel:
            stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
            await asyncio.gather(*(self._place(stub) for _ in range(in_flight)))

    async def _place(self, stub: grpc_service_pb2_grpc.GRPCInferenceServiceStub) -> None:
        metadata = (("authorization", f"Bearer {self.mesh.api_key}"),)
        while not self.stop:
            try:
                response = await stub.ModelInfer(digit_request(), metadata=metadata, timeout=CALL_TIMEOUT_S)
                self.outcomes["ok" if len(response.raw_output_contents[0]) == 40 else "wrong answer"] += 1
            except grpc.aio.AioRpcError as failure:
                self.outcomes[f"{failure.code().name}: {failure.details()}"] += 1


def digit_request() -> grpc_service_pb2.ModelInferRequest:
    request = grpc_service_pb2.ModelInferRequest(model_name="digits")
    request.inputs.add(name="image", datatype="FP32", shape=[1, 1, 8, 8])
    request.raw_input_contents.append(np.zeros((1, 1, 8, 8), np.float32).tobytes())
    return request


async def test_a_killed_worker_costs_no_request_leaves_the_fleet_and_comes_back(tmp_path: Path) -> None:
    with running_mesh(tmp_path / "data") as mesh:
        victim = mesh.pid_of("worker-2")
        load = Load(mesh)
        loading = asyncio.create_task(load.run(8))
        await _until(lambda: load.outcomes["ok"] > 200)
        os.kill(victim, signal.SIGKILL)
        before = load.outcomes["ok"]
        await _until(lambda: load.outcomes["ok"] > before + 500)
        await _until(lambda: _all_serve(mesh), LEAVES_WITHIN_S + 10)
        load.stop = True
        await asyncio.wait_for(loading, 20)
        assert set(load.outcomes) == {"ok"}, load.outcomes
        assert mesh.pid_of("worker-2") != victim


async def test_a_worker_that_stays_away_leaves_the_fleet_in_time(tmp_path: Path) -> None:
    with running_mesh(tmp_path / "data") as mesh:
        victim = mesh.pid_of("worker-2")
        load = Load(mesh)
        loading = asyncio.create_task(load.run(4))
        await _until(lambda: load.outcomes["ok"] > 100)
        os.kill(victim, signal.SIGSTOP)  # still a process, so nobody restarts it: only its lease ends
        try:
            stopped_s, before = time.monotonic(), load.outcomes["ok"]
            await _until(lambda: load.outcomes["ok"] > before + 100)  # callers that had asked it are answered by the other
            await _until(lambda: "2 READY" not in _models(mesh), LEAVES_WITHIN_S + 5)
            left_s = time.monotonic() - stopped_s
            before = load.outcomes["ok"]
            await _until(lambda: load.outcomes["ok"] > before + 100)
        finally:
            os.kill(victim, signal.SIGCONT)
        await _until(lambda: _all_serve(mesh), 30)
        load.stop = True
        await asyncio.wait_for(loading, 30)
        assert left_s < LEAVES_WITHIN_S + 2  # a listing takes a second
        assert set(load.outcomes) == {"ok"}, load.outcomes


def _models(mesh: RunningMesh) -> str:
    return mesh.penstock("models", "list").stdout


def _all_serve(mesh: RunningMesh) -> bool:
    """Both copies are ready, and both workers answer at the addresses they tell: a dead one's presence outlives it."""
    shown = mesh.penstock("fleet").stdout
    return shown.count("digits 1: READY") == 2 and "no answer" not in shown


async def _until(condition: object, timeout_s: float = 30.0) -> None:
    assert callable(condition)
    end_s = time.monotonic() + timeout_s
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < end_s, "it did not happen in time"
        await asyncio.sleep(0.05)
