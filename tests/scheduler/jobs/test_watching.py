"""News of jobs: at once of what changes here, by looking of what others change; bounded."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from scheduler.jobs.errors import WatchersFull
from scheduler.jobs.types import JobId
from scheduler.jobs.watching import Watching
from tests.scheduler.jobs.ground import ACME, LIMITS, Ground
from tests.support.manual_clock import settle

JOB = JobId("job_1")


async def test_what_changes_here_is_heard_without_looking() -> None:
    watching = Watching(LIMITS)
    with watching.of(JOB) as watcher:
        waiting = asyncio.ensure_future(watcher.news(1))
        watching.changed(JobId("job_2"))
        await settle()
        assert not waiting.done()
        watching.changed(JOB)
        assert await waiting


async def test_a_change_between_looking_and_waiting_is_not_missed() -> None:
    watching = Watching(LIMITS)
    with watching.of(JOB) as watcher:
        watching.changed(JOB)
        assert await watcher.news(1)


async def test_what_others_change_or_forget_is_found_by_looking(sqlite_ground: Ground) -> None:
    ground = sqlite_ground
    job = await ground.submit()
    with ground.watching.of(job.job_id) as watcher, ground.watching.of(JOB) as gone:
        waiting = asyncio.ensure_future(watcher.news(job.revision))
        missing = asyncio.ensure_future(gone.news(1))
        await settle()
        await ground.watching.look(ground.jobs)
        assert await missing, "it is not there any more"
        await settle()
        assert not waiting.done()
        await ground.jobs.cancel(job.job_id, ACME, ground.now_ms)
        await ground.watching.look(ground.jobs)
        assert await waiting


async def test_they_are_bounded_and_counted() -> None:
    watching = Watching(replace(LIMITS, watchers=1))
    with watching.of(JOB):
        with pytest.raises(WatchersFull):
            with watching.of(JOB):
                pass
        assert len(watching) == 1
    assert len(watching) == 0


async def test_no_more_news_once_it_is_closed() -> None:
    watching = Watching(LIMITS)
    with watching.of(JOB) as watcher:
        watching.close()
        assert not await watcher.news(1)
    with watching.of(JOB) as late:
        assert not await late.news(1)
