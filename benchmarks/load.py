"""Two kinds of load. Closed: a number of requests always in flight, each answered before its place sends the next. Open:
requests at random moments of a mean rate, whoever is still waiting, as many clients make them.

Runs in a process of its own, so that its CPU is not the server's. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import sys
import time
from dataclasses import dataclass

import grpc.aio
import uvloop


@dataclass(frozen=True, slots=True)
class Load:
    in_flight: int
    rate_per_s: float
    """0 = closed loop."""
    duration_s: float


async def drive(address: str, payload: bytes, key: str, load: Load) -> dict[str, object]:
    """What came of it: requests, failures by sentence, and how long the answered ones took."""
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    latencies_s: list[float] = []
    failures: dict[str, int] = {}
    async with grpc.aio.insecure_channel(address) as channel:
        infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer", None, None
        )
        end_s = time.perf_counter() + load.duration_s

        async def once() -> None:
            start_s = time.perf_counter()
            try:
                await infer(payload, metadata=metadata, timeout=30)
                latencies_s.append(time.perf_counter() - start_s)
            except grpc.aio.AioRpcError as failure:
                name = f"{failure.code().name}: {failure.details()}"
                failures[name] = failures.get(name, 0) + 1

        async def place() -> None:
            while time.perf_counter() < end_s:
                await once()

        async def arrivals() -> None:
            dice, due_s = random.Random(11), time.perf_counter()
            async with asyncio.TaskGroup() as tasks:
                while due_s < end_s:
                    await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                    tasks.create_task(once())
                    due_s += dice.expovariate(load.rate_per_s)

        start_s = time.perf_counter()
        await (arrivals() if load.rate_per_s else asyncio.gather(*(place() for _ in range(load.in_flight))))
        elapsed_s = time.perf_counter() - start_s
    latencies_s.sort()
    count = len(latencies_s)
    return {
        "requests": count,
        "failures": failures,
        "elapsed_s": elapsed_s,
        "p50_ms": 1000 * latencies_s[count // 2] if count else None,
        "p99_ms": 1000 * latencies_s[min(count - 1, count * 99 // 100)] if count else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--key", default="")
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--rate-per-s", type=float, default=0.0, help="open load of this mean rate instead")
    parser.add_argument("--duration-s", type=float, required=True)
    arguments = parser.parse_args()
    payload = base64.b64decode(sys.stdin.read())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        load = Load(arguments.in_flight, arguments.rate_per_s, arguments.duration_s)
        result = runner.run(drive(arguments.address, payload, arguments.key, load))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
