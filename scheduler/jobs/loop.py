"""Does what time asks for: lost claims, expired jobs, what is to be forgotten. And counts what there is.

Each scheduler sweeps; what a sweep finds is locked, so that two do not do the same twice. Never decides what becomes of a job.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from runtime.backoff import Backoff
from runtime.clock import Clock
from runtime.errors import PenstockError
from scheduler.jobs.bell import Bell
from scheduler.jobs.policy import Retries, lost
from scheduler.jobs.sql_sweep import SweepStore, Swept
from scheduler.jobs.types import JobCounts
from scheduler.jobs.watching import Watching

EVERY_S = 1.0
COUNT_EVERY_S = 15.0
AT_ONCE = 200
_BACKOFF = Backoff(first_s=0.5, max_s=10.0)
_log = structlog.get_logger("penstock.jobs")


@dataclass(slots=True)
class JobTotals:
    """Since this scheduler began."""

    lost: int = 0
    expired: int = 0
    forgotten: int = 0


class JobSweeper:
    """Belongs to one event loop."""

    def __init__(
        self, store: SweepStore, due: Bell, watching: Watching, clock: Clock, rng: random.Random, retries: Retries
    ) -> None:
        self._store, self._due, self._watching = store, due, watching
        self._clock, self._rng, self._retries = clock, rng, retries
        self.totals, self.counts = JobTotals(), JobCounts()

    async def sweep(self) -> Swept:
        """One round of a few jobs."""
        now_ms = int(self._clock.wall_s() * 1_000)
        swept = await self._store.sweep(lambda job: lost(job, now_ms, self._rng.random(), self._retries), now_ms, AT_ONCE)
        self.totals.lost += swept.lost
        self.totals.expired += swept.expired
        self.totals.forgotten += swept.forgotten
        for job_id in swept.changed:
            self._watching.changed(job_id)
        if swept.lost:
            self._due.ring()
            _log.warning("claims_lost", jobs=swept.lost)
        return swept

    async def count(self) -> None:
        self.counts = await self._store.count(int(self._clock.wall_s() * 1_000))

    async def keep_sweeping(self) -> None:
        async def rounds() -> None:
            while (await self.sweep()).looked_at == AT_ONCE:
                pass

        await keep_doing(rounds, EVERY_S, self._clock, self._rng)

    async def keep_counting(self) -> None:
        await keep_doing(self.count, COUNT_EVERY_S, self._clock, self._rng)


async def keep_doing(work: Callable[[], Awaitable[None]], every_s: float, clock: Clock, rng: random.Random) -> None:
    """For ever, each scheduler at moments of its own. What fails is told, and tried again, later each time."""
    failures = 0
    while True:
        try:
            await work()
            failures = 0
        except asyncio.CancelledError:
            raise
        except PenstockError as error:
            failures += 1
            _log.warning("jobs_not_looked_after", why=error.message)
        except Exception:
            failures += 1
            _log.exception("jobs_not_looked_after")
        await clock.sleep(_BACKOFF.delay_s(failures, rng) if failures else every_s * (1.0 + 0.2 * rng.random()))
