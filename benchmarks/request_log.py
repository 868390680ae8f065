"""What the request log costs a request, and how much of it a database takes.

    python -m benchmarks.request_log [--postgres URL]

First, of the hot path: an exchange that is begun and ended, without a log, with one, and with one whose queue is full;
rounds take turns, and the least is shown. Then entries a second into SQLite (and PostgreSQL, where one is given), and how late
the event loop was meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry

from gateway.admission import KeyFacts
from gateway.callers import Caller
from gateway.exchange import Exchanges
from gateway.metrics import GatewayMetrics
from gateway.request_log.log import RequestLog
from gateway.request_log.metrics import LogMetrics
from gateway.request_log.room import request_log_room
from gateway.request_log.types import LogSettings, Origin
from runtime.clock import SystemClock
from runtime.ids import KeyId, TenantId

ROUNDS, OF_EACH = 9, 5_000
ENTRIES = 20_000
CALLER = Caller(
    KeyFacts(KeyId("0123456789abcdef"), TenantId("tenant")),
    "c0ffee-1a2b3c",
    False,
    None,
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    {},
)


async def _exchanges(log: RequestLog | None) -> Callable[[], None]:
    exchanges = Exchanges(GatewayMetrics(CollectorRegistry()), None, log)

    def one() -> None:
        exchange = exchanges.begin("ModelInfer", 602_112)
        exchange.caller = CALLER
        exchange.asked = exchange.model = "digits"
        exchange.granted("worker-1", "digits", "1")
        exchange.answering(4_000)
        exchanges.answered(exchange)

    return one


async def _hot_path() -> None:
    def log(rows: int) -> RequestLog:
        return RequestLog(SystemClock(), LogMetrics(CollectorRegistry()), LogSettings(queue_rows=rows, queue_bytes=1 << 40))

    logs = {"no log": None, "a log": log(1 << 40), "a log whose queue is full": log(1)}
    cases = {name: await _exchanges(each) for name, each in logs.items()}
    least_us = dict.fromkeys(cases, float("inf"))
    for _ in range(ROUNDS):
        for name, case in cases.items():
            began_s = time.process_time()
            for _number in range(OF_EACH):
                case()
            least_us[name] = min(least_us[name], (time.process_time() - began_s) / OF_EACH * 1e6)
            if (kept := logs[name]) is not None and len(kept) > 1:
                while kept.take():
                    pass
    for name, spent_us in least_us.items():
        print(f"{name:<28} {spent_us:7.2f} us   (+{spent_us - least_us['no log']:.2f})")


async def _written(name: str, address: str) -> None:
    registry = CollectorRegistry()
    settings = LogSettings(queue_rows=ENTRIES, every_s=0.01, flush_s=120.0)
    late_s: list[float] = []

    async def watch() -> None:
        while True:
            began_s = time.perf_counter()
            await asyncio.sleep(0.001)
            late_s.append(time.perf_counter() - began_s - 0.001)

    async with request_log_room(address, settings, Origin("local", "node"), SystemClock(), registry) as room:
        while room.store is None:
            await asyncio.sleep(0.01)
        one = await _exchanges(room.log)
        for _ in range(ENTRIES):
            one()
        watching = asyncio.create_task(watch())
        began_s, cpu_s = time.perf_counter(), time.process_time()
        while (registry.get_sample_value("penstock_gateway_log_written_total") or 0) < ENTRIES:
            await asyncio.sleep(0.01)
        took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
        watching.cancel()
    late_s.sort()
    p99_ms, most_ms = late_s[int(len(late_s) * 0.99)] * 1e3, late_s[-1] * 1e3
    print(
        f"{name:<11} {ENTRIES / took_s:8,.0f} entries/s, {cpu_s / ENTRIES * 1e6:5.1f} us of CPU each,"
        f" loop late by {p99_ms:.1f} ms at p99, {most_ms:.1f} ms at most"
    )


async def _measure(postgres: str) -> None:
    await _hot_path()
    with tempfile.TemporaryDirectory() as folder:
        await _written("SQLite", str(Path(folder) / "requests.db"))
    if postgres:
        await _written("PostgreSQL", postgres)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--postgres", default="", help="URL of an empty database")
    asyncio.run(_measure(parser.parse_args().postgres))


if __name__ == "__main__":
    main()
