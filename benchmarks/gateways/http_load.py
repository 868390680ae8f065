"""A closed load over HTTP/1.1: so many connections, each asks again once it is answered. Prints one JSON object.

In a process of its own, with a reader that does just enough for servers that behave, so that it is not what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field

import uvloop

TIMEOUT_S = 60.0


@dataclass(slots=True)
class Found:
    """What came of a load."""

    latencies_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)


def request_bytes(host: str, key: str, model: str, *, stream: bool) -> bytes:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Say words."}], "stream": stream}).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", f"host: {host}", "content-type: application/json"]
    lines += [f"authorization: Bearer {key}"] if key else []
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


async def answered(reader: asyncio.StreamReader) -> tuple[int, float]:
    """The status, and when the first byte of the body was there. Reads the whole answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head.split(b" ", 2)[1])
    at = head.find(b"content-length:")
    if at >= 0:
        await reader.readexactly(int(head[at + 15 :].split(b"\r\n", 1)[0]))
        return status, time.perf_counter()
    first_s = 0.0
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        await reader.readexactly(size + 2)
        first_s = first_s or time.perf_counter()
    await reader.readuntil(b"\r\n")
    return status, first_s


async def drive(host: str, port: int, message: bytes, in_flight: int, duration_s: float) -> tuple[Found, float]:
    found, end_s = Found(), time.perf_counter() + duration_s

    async def place() -> None:
        reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
        try:
            while (begun_s := time.perf_counter()) < end_s:
                writer.write(message)
                async with asyncio.timeout(TIMEOUT_S):
                    status, first_s = await answered(reader)
                if status == 200:
                    found.latencies_s.append(time.perf_counter() - begun_s)
                    found.first_s.append(first_s - begun_s)
                else:
                    found.failures[str(status)] += 1
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            found.failures[type(error).__name__] += 1
        finally:
            writer.close()

    begun_s = time.perf_counter()
    await asyncio.gather(*(place() for _ in range(in_flight)))
    return found, time.perf_counter() - begun_s


def percentile_ms(values_s: list[float], share: float) -> float | None:
    values_s = sorted(values_s)
    return 1000 * values_s[min(len(values_s) - 1, int(len(values_s) * share))] if values_s else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="host:port")
    parser.add_argument("--key", default="")
    parser.add_argument("--model", required=True)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--in-flight", type=int, required=True)
    parser.add_argument("--duration-s", type=float, required=True)
    arguments = parser.parse_args()
    host, _, port = arguments.address.rpartition(":")
    message = request_bytes(host, arguments.key, arguments.model, stream=arguments.stream)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found, elapsed_s = runner.run(drive(host, int(port), message, arguments.in_flight, arguments.duration_s))
    result = {
        "requests": len(found.latencies_s),
        "failures": found.failures,
        "elapsed_s": elapsed_s,
        "p50_ms": percentile_ms(found.latencies_s, 0.5),
        "p99_ms": percentile_ms(found.latencies_s, 0.99),
        "first_p50_ms": percentile_ms(found.first_s, 0.5),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
