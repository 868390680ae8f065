"""A closed-loop load: a number of requests always in flight, each answered before its place sends the next.

Runs in a process of its own, so that its CPU is not the server's. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import sys
import time

import grpc.aio
import uvloop


async def drive(address: str, payload: bytes, key: str, in_flight: int, duration_s: float) -> dict[str, object]:
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    latencies_s: list[float] = []
    failures: dict[str, int] = {}
    async with grpc.aio.insecure_channel(address) as channel:
        infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer", None, None
        )
        end_s = time.perf_counter() + duration_s

        async def place() -> None:
            while (start_s := time.perf_counter()) < end_s:
                try:
                    await infer(payload, metadata=metadata, timeout=30)
                    latencies_s.append(time.perf_counter() - start_s)
                except grpc.aio.AioRpcError as failure:
                    name = f"{failure.code().name}: {failure.details()}"
                    failures[name] = failures.get(name, 0) + 1

        start_s = time.perf_counter()
        await asyncio.gather(*(place() for _ in range(in_flight)))
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
    parser.add_argument("--in-flight", type=int, required=True)
    parser.add_argument("--duration-s", type=float, required=True)
    arguments = parser.parse_args()
    payload = base64.b64decode(sys.stdin.read())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(drive(arguments.address, payload, arguments.key, arguments.in_flight, arguments.duration_s))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
