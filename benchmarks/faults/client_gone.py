"""How long after a client has gone its place at the worker is free: over gRPC direct, over gRPC and HTTP through Envoy.

Each round, a client has several texts generated, goes when the first have come, and the worker is asked over and over how many
requests it has in flight. What is told is the time until it says none; it is asked about once a millisecond.

Run: python -m benchmarks.faults.client_gone [--rounds 50] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc.aio
import httpx
import uvloop
from inference import grpc_service_pb2, grpc_service_pb2_grpc
from penstock.worker.v1 import worker_pb2, worker_pb2_grpc

from benchmarks.faults.ground import write
from runtime.channel import inner_channel
from runtime.identity import Role, load_identity
from tests.support.mesh import RunningMesh, running_mesh

BAR_MS = 100.0
TEXTS = 32
"""So many that the worker is at it for long if nobody tells it to stop."""

_QUESTION = "What is 12 plus 30?"
_PATIENCE_S = 20.0

Worker = worker_pb2_grpc.WorkerServiceStub


def text_request(number: int) -> grpc_service_pb2.ModelInferRequest:
    request = grpc_service_pb2.ModelInferRequest(model_name="sums", id=str(number))
    tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(_QUESTION.encode())
    request.parameters["temperature"].double_param = 3.0
    request.parameters["seed"].int64_param = 10
    return request


async def leave_grpc(mesh: RunningMesh, address: str) -> None:
    """Return as the client goes."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(metadata=(("authorization", f"Bearer {mesh.api_key}"),))
        for number in range(TEXTS):
            await call.write(text_request(number))
        for _ in range(TEXTS):
            await call.read()
        call.cancel()


async def leave_http(mesh: RunningMesh, address: str) -> None:
    body = {
        "model": "sums",
        "messages": [{"role": "user", "content": _QUESTION}],
        "temperature": 2.0,
        "seed": 29,
        "stream": True,
    }
    headers = {"authorization": f"Bearer {mesh.api_key}"}
    client = httpx.AsyncClient(timeout=_PATIENCE_S, limits=httpx.Limits(max_connections=TEXTS))

    async def read_one() -> None:
        async with client.stream("POST", f"{address}/v1/chat/completions", json=body, headers=headers) as answer:
            async for _ in answer.aiter_bytes():
                return

    await asyncio.gather(*(read_one() for _ in range(TEXTS)))
    await client.aclose()


async def idle(worker: Worker) -> float:
    """When the worker said that it has nothing in flight."""
    async with asyncio.timeout(_PATIENCE_S):
        while (await worker.Status(worker_pb2.StatusRequest())).load.in_flight:
            await asyncio.sleep(0.001)
    return time.monotonic()


async def measured(worker: Worker, leave: Callable[[], Awaitable[None]], rounds: int) -> list[float]:
    """Milliseconds, a round each."""
    took_ms = []
    for _ in range(rounds):
        await idle(worker)
        await leave()
        gone_s = time.monotonic()
        took_ms.append(1000 * (await idle(worker) - gone_s))
    return sorted(took_ms)


async def measure(mesh: RunningMesh, rounds: int) -> dict[str, list[float]]:
    operator = load_identity(mesh.data / "identities" / "operator")
    port = json.loads((mesh.data / "run" / "worker-1.json").read_text())["port"]
    envoy = mesh.http_url.removeprefix("http://")
    async with inner_channel(f"127.0.0.1:{port}", operator, Role.WORKER) as channel:
        worker = Worker(channel)
        return {
            "gRPC direct": await measured(worker, lambda: leave_grpc(mesh, mesh.grpc_address), rounds),
            "gRPC through Envoy": await measured(worker, lambda: leave_grpc(mesh, envoy), rounds),
            "HTTP through Envoy": await measured(worker, lambda: leave_http(mesh, mesh.http_url), rounds),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--output", type=Path, default=None, help="write the result as JSON")
    arguments = parser.parse_args()
    folder = tempfile.TemporaryDirectory(prefix="penstock-faults-")
    with folder as name, running_mesh(Path(name) / "data", "--workers", "1") as mesh:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            grpc.aio.init_grpc_aio()
            found = runner.run(measure(mesh, arguments.rounds))
    told = {
        name: {
            "p50_ms": round(statistics.median(took), 1),
            "p99_ms": round(took[int(len(took) * 0.99)], 1),
            "most_ms": round(took[-1], 1),
        }
        for name, took in found.items()
    }
    for name, result in told.items():
        print(f"{name}: {result}")
    if arguments.output:
        write(arguments.output, "client gone", {"rounds": arguments.rounds, "texts": TEXTS, **told})
    if any(result["p99_ms"] > BAR_MS for result in told.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
