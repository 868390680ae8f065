"""Entries, exchanges and keepers to test the request log with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from prometheus_client import CollectorRegistry

from gateway.admission import KeyFacts
from gateway.callers import Caller
from gateway.exchange import Exchange
from gateway.request_log.log import RequestLog
from gateway.request_log.metrics import LogMetrics
from gateway.request_log.schema import REQUEST_LOG
from gateway.request_log.store import LogStore
from gateway.request_log.types import DAY_MS, EntriesRefused, Entry, LogSettings, Origin
from gateway.request_log.writer import LogWriter
from runtime.database import Database, DatabaseUnavailable, open_database
from runtime.ids import KeyId, TenantId
from tests.support.manual_clock import ManualClock

NOON_MS = 20_000 * DAY_MS + DAY_MS // 2
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
_PLAIN = Entry(
    at_ms=NOON_MS,
    row_id=1,
    request_id="r",
    tenant="t",
    key_id="k",
    method="ModelInfer",
    asked="m",
    model="m",
    version="1",
    worker_id="w",
    code="OK",
    reason="",
    streamed=False,
    attempts=1,
    hedged=False,
    migrations=0,
    fell_back="",
    cache="",
    prompt_tokens=3,
    completion_tokens=4,
    request_bytes=10,
    answer_bytes=20,
    elapsed_ms=1.5,
    first_answer_ms=1.0,
    region="local",
    gateway="g",
    process=0,
    trace_id=TRACE_ID,
)


def entry(row_id: int = 1, **changed: object) -> Entry:
    return replace(_PLAIN, row_id=row_id, **changed)  # type: ignore[arg-type]


def caller_of(tenant: str = "t", key_id: str = "k", request_id: str = "r") -> Caller:
    headers: Mapping[str, str | bytes] = {"authorization": "Bearer sk-pn-never-to-be-seen"}
    traceparent = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
    return Caller(KeyFacts(KeyId(key_id), TenantId(tenant)), request_id, True, None, traceparent, headers)


def exchange_of(model: str = "m", *, caller: Caller | None = None) -> Exchange:
    made = Exchange("ModelInfer", 100, caller=caller or caller_of())
    made.asked = made.model = model
    made.granted("w", model, "1")
    made.answering(50)
    return made


@asynccontextmanager
async def store_on(address: str) -> AsyncIterator[tuple[LogStore, Database]]:
    async with open_database(address, REQUEST_LOG) as database:
        yield await LogStore.on(database), database


@dataclass
class FakeKeeper:
    """A database in memory that does what it is told: `away`, `hangs`, `refused` request ids, `keeps_then_fails` once."""

    kept: list[Entry] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    away: bool = False
    hangs: bool = False
    fails_after_keeping: int = 0
    refused: frozenset[str] = frozenset()
    attempts: int = 0

    async def write(self, entries: Sequence[Entry], *, again: bool = False) -> None:
        self.attempts += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.away:
            raise DatabaseUnavailable("away")
        if again and entries[0] in self.kept:
            return
        if any(each.request_id in self.refused for each in entries):
            raise EntriesRefused("one of them")
        self.kept += entries
        self.batches.append(len(entries))
        if self.fails_after_keeping:
            self.fails_after_keeping -= 1
            raise DatabaseUnavailable("nobody knows whether it was kept")


@dataclass
class LogUnderTest:
    clock: ManualClock
    registry: CollectorRegistry
    log: RequestLog
    keeper: FakeKeeper
    writer: LogWriter

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"penstock_gateway_log_{name}", labels) or 0.0

    def dropped(self) -> float:
        reasons = ("queue_full", "bytes_full", "stranger", "refused", "shutdown")
        return sum(self.count("dropped_total", reason=reason) for reason in reasons)

    def note(self, count: int = 1, request_id: str = "") -> None:
        for number in range(count):
            self.log.note(exchange_of(caller=caller_of(request_id=request_id or f"r{number}")), 0.01)


def log_under_test(**settings: object) -> LogUnderTest:
    chosen = LogSettings(**settings)  # type: ignore[arg-type]
    clock, registry, keeper = ManualClock(), CollectorRegistry(), FakeKeeper()
    metrics = LogMetrics(registry)
    log = RequestLog(clock, metrics, chosen)
    writer = LogWriter(log, keeper, clock, metrics, Origin("local", "g", 1), chosen)
    return LogUnderTest(clock, registry, log, keeper, writer)
