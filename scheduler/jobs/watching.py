"""Who waits for news of which job. Changes made here are heard at once, those of other schedulers by asking once a second.

One question asks for all that are watched. Bounded. Never reads more of a job than its revision.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

from runtime.ids import TenantId
from scheduler.jobs.errors import WatchersFull
from scheduler.jobs.sql import JobStore
from scheduler.jobs.types import JobId, JobLimits

LOOK_EVERY_S = 1.0
_AT_ONCE = 500


class Watcher:
    """One who waits for one job's next revision."""

    __slots__ = ("_news", "closed", "job_id", "known")

    def __init__(self, job_id: JobId) -> None:
        self.job_id, self.known, self.closed = job_id, -1, False
        self._news = asyncio.Event()

    def tell(self) -> None:
        self._news.set()

    async def news(self, known: int) -> bool:
        """Return once the job may have another revision than the one that is known; False: no more news will come."""
        self.known = known
        await self._news.wait()
        self._news.clear()
        return not self.closed


class Watching:
    """Belongs to one event loop."""

    def __init__(self, limits: JobLimits) -> None:
        self._limits = limits
        self._watchers: dict[JobId, set[Watcher]] = {}
        self._of_tenant: Counter[TenantId] = Counter()
        self._count, self._closed = 0, False

    def __len__(self) -> int:
        return self._count

    @contextmanager
    def of(self, job_id: JobId, tenant: TenantId | None = None) -> Iterator[Watcher]:
        """On behalf of this tenant; None: of an operator. Raises WatchersFull."""
        if self._count >= self._limits.watchers:
            raise WatchersFull(
                f"{self._count} wait here for news of jobs already, which is all; ask for the job now and then instead",
                retry_after_s=5.0,
            )
        if tenant is not None and self._of_tenant[tenant] >= self._limits.watchers_of_tenant:
            raise WatchersFull(
                f"tenant {tenant!r} waits here for news of {self._of_tenant[tenant]} jobs already, which is all; ask for"
                " the job now and then instead",
                retry_after_s=5.0,
            )
        watcher = Watcher(job_id)
        watcher.closed = self._closed
        if self._closed:
            watcher.tell()
        self._watchers.setdefault(job_id, set()).add(watcher)
        self._count += 1
        self._note(tenant, 1)
        try:
            yield watcher
        finally:
            self._count -= 1
            self._note(tenant, -1)
            there = self._watchers[job_id]
            there.discard(watcher)
            if not there:
                del self._watchers[job_id]

    def _note(self, tenant: TenantId | None, by: int) -> None:
        if tenant is not None:
            self._of_tenant[tenant] += by
            if not self._of_tenant[tenant]:
                del self._of_tenant[tenant]

    def changed(self, job_id: JobId) -> None:
        for watcher in self._watchers.get(job_id, ()):
            watcher.tell()

    def close(self) -> None:
        """No more news comes: this scheduler ends."""
        self._closed = True
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.closed = True
                watcher.tell()

    async def look(self, store: JobStore) -> None:
        """Who waits for a job that others have changed is told."""
        watched = iter(list(self._watchers))
        while some := list(islice(watched, _AT_ONCE)):
            revisions = await store.revisions(some)
            for job_id in some:
                for watcher in self._watchers.get(job_id, ()):
                    if watcher.known >= 0 and revisions.get(job_id) != watcher.known:
                        watcher.tell()
