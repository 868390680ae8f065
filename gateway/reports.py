"""Tells every scheduler, once a second, what was asked of this gateway and how busy it finds the workers.

Counts that could not be written are kept and told with the next report, for as long as they mean something; how busy workers
are is told as it is. A scheduler that reads slowly or is away holds up no other. Owns one stream to each. Never decides how
many copies there should be.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import structlog

from gateway.fleet import Fleet
from gateway.ledger import Ledger, TallyKey
from gateway.types import DemandReport, ModelCounts, WorkerSight
from runtime.backoff import Backoff
from runtime.clock import Clock
from runtime.errors import PenstockError
from runtime.ids import Region, WorkerId

REPORT_EVERY_S = 1.0
KEPT_S = 60.0
"""Demand older than this says nothing of what is needed now."""

MAX_MODELS = 4_096
MAX_WORKERS = 16_384
_AWAY = Backoff(first_s=0.5, max_s=10.0)
_log = structlog.get_logger("penstock.reports")

Counts = Mapping[TallyKey, ModelCounts]


class Listener(Protocol):
    """A scheduler that takes reports: gateway.peers.SchedulerClient."""

    @property
    def address(self) -> str: ...

    def reporting(self) -> AbstractAsyncContextManager[Callable[[DemandReport], Awaitable[None]]]: ...


class Metrics(Protocol):
    """What is counted: gateway.metrics.GatewayMetrics."""

    def reported(self, *, written: bool) -> None: ...


class Pending:
    """What one scheduler has not been told yet. Grows neither with time nor with the number of requests."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._interval_s = 0.0
        self._models: dict[TallyKey, ModelCounts] = {}
        self._workers: dict[WorkerId, WorkerSight] = {}
        self._news = asyncio.Event()

    def add(self, interval_s: float, models: Counts, workers: Sequence[WorkerSight]) -> None:
        if self._interval_s + interval_s > KEPT_S:
            self._interval_s, self._models, self._workers = 0.0, {}, {}
        self._interval_s += interval_s
        for key, counts in models.items():
            known = self._models.get(key)
            self._models[key] = counts if known is None else known + counts
        self._workers.update((sight.worker_id, sight) for sight in workers)
        self._news.set()

    async def next(self) -> DemandReport:
        """Everything that is to be told, once there is something. It is not pending any more."""
        await self._news.wait()
        self._news.clear()
        models = sorted(self._models.items(), key=_requests, reverse=True)[:MAX_MODELS]
        report = DemandReport(self._interval_s, dict(models), tuple(self._workers.values())[:MAX_WORKERS], self._region)
        self._interval_s, self._models, self._workers = 0.0, {}, {}
        return report

    def put_back(self, report: DemandReport) -> None:
        """It was not written: it is pending again, unless it is too old by now. What was seen of workers since is the newer."""
        if self._interval_s + report.interval_s > KEPT_S:
            return
        since, self._workers = self._workers, {sight.worker_id: sight for sight in report.workers}
        self.add(report.interval_s, report.models, tuple(since.values()))


class Reports:
    """Belongs to one event loop. `run` tells until it is cancelled."""

    def __init__(
        self, fleet: Fleet, ledger: Ledger, schedulers: Sequence[Listener], clock: Clock, metrics: Metrics, region: Region
    ) -> None:
        self._fleet, self._ledger, self._clock, self._metrics = fleet, ledger, clock, metrics
        self._pending = [(each, Pending(region)) for each in schedulers]
        self._loop = asyncio.get_running_loop()
        self._looked_s = self._loop.time()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for scheduler, pending in self._pending:
                tasks.create_task(self._tell(scheduler, pending), name=f"reports-{scheduler.address}")
            await self._gather()

    async def _gather(self) -> None:
        at_s = self._clock.monotonic_s()
        while True:
            await self._clock.sleep(REPORT_EVERY_S)
            now_s = self._clock.monotonic_s()
            models, workers = self._ledger.drain(self._loop.time()), self.sights(self._looked_s)
            self._looked_s = self._loop.time()
            for _, pending in self._pending:
                pending.add(now_s - at_s, models, workers)
            at_s = now_s

    def sights(self, since_s: float) -> tuple[WorkerSight, ...]:
        """Every worker with something in flight, or that was heard of since then, on the loop's clock."""
        view, state = self._fleet.view, self._fleet.state
        concerned = (state.in_flight.array > 0) | (state.heard_at_s.array >= since_s)
        if not concerned.any():
            return ()
        shunned = state.health.shunned(self._loop.time())
        return tuple(
            self._sight(worker_id, avoided=worker_id in shunned)
            for worker_id, seat in view.seats.items()
            if concerned[seat.slot]
        )

    def _sight(self, worker_id: WorkerId, *, avoided: bool) -> WorkerSight:
        known, link = self._fleet.state.load_of(self._fleet.view, worker_id), self._fleet.links.get(worker_id)
        told_in_flight, queued_rows, rtt_ms = 0, 0, 0.0
        if link is not None:
            told_in_flight, queued_rows, rtt_ms = link.load.in_flight, link.load.queued_rows, link.rtt_ms
        return WorkerSight(worker_id, known.in_flight, told_in_flight, queued_rows, known.latency_ewma_ms, avoided, rtt_ms)

    async def _tell(self, scheduler: Listener, pending: Pending) -> None:
        failures, rng = 0, random.Random()  # noqa: S311 (spreads reconnects)
        while True:
            report: DemandReport | None = None
            written = 0
            try:
                async with scheduler.reporting() as write:
                    while True:
                        report = await pending.next()
                        await write(report)
                        report, written = None, written + 1
                        if written > 1:  # the first leaves before a scheduler that takes none can say so
                            failures = 0
                        self._metrics.reported(written=True)
            except PenstockError as error:
                failures += 1
                if failures == 1:
                    _log.warning("demand_not_told", scheduler=scheduler.address, why=error.message)
            self._metrics.reported(written=False)
            if report is not None:
                pending.put_back(report)
            await self._clock.sleep(_AWAY.delay_s(failures, rng))


def _requests(item: tuple[TallyKey, ModelCounts]) -> int:
    return item[1].requests
