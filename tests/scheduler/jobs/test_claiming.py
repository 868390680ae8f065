"""Waiting for jobs, by a clock that the test moves."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from runtime.ids import NodeId
from scheduler.jobs.claiming import Claiming
from scheduler.jobs.sql_claims import ClaimStore
from scheduler.jobs.types import ClaimedJob, JobState
from tests.scheduler.jobs.ground import GATEWAY, RETRIES, Ground, ids
from tests.support.waiting import eventually


class Held(ClaimStore):
    """Keeps what it has claimed until it is let go."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground.database, ground.limits)
        self.claimed, self.let_go = asyncio.Event(), asyncio.Event()

    async def claim(self, places: int, by: NodeId, now_ms: int) -> list[ClaimedJob]:
        claimed = await super().claim(places, by, now_ms)
        self.claimed.set()
        await self.let_go.wait()
        return claimed


async def test_what_a_gateway_that_left_had_claimed_is_given_back(sqlite_ground: Ground) -> None:
    ground = sqlite_ground
    job = await ground.submit()
    store = Held(ground)
    claiming = Claiming(store, ground.due, ground.clock, Random(1), ground.limits, RETRIES)
    asking = asyncio.ensure_future(claiming.claim(1, GATEWAY, 0))
    await store.claimed.wait()
    assert (await ground.job(job.job_id)).state is JobState.RUNNING
    asking.cancel()
    store.let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await asking
    given_back = await ground.job(job.job_id)
    assert (given_back.state, given_back.attempts) == (JobState.QUEUED, 0)


async def test_it_waits_until_a_job_is_due_and_not_longer_than_asked(sqlite_ground: Ground) -> None:
    ground = sqlite_ground
    began_s = ground.clock.monotonic_s()
    job = await ground.submit(due_at_ms=ground.now_ms + 5_000)
    asking = asyncio.ensure_future(ground.claiming.claim(1, GATEWAY, 30_000))
    in_vain = asyncio.ensure_future(ground.claiming.claim(1, GATEWAY, 2_000))
    async with asyncio.timeout(15):
        while not in_vain.done():
            await ground.pass_s(0.5)
            await asyncio.sleep(0.001)
        assert in_vain.result() == []
        assert not asking.done()
        while not asking.done():
            await ground.pass_s(0.5)
            await asyncio.sleep(0.001)
    assert ids(asking.result()) == [job.job_id]
    # The database answers in real time, which this clock does not know: a few of its steps may pass meanwhile.
    assert ground.clock.monotonic_s() - began_s < 30


async def test_what_another_scheduler_was_given_is_found_by_looking(sqlite_ground: Ground) -> None:
    ground = sqlite_ground
    other = Ground(ground.database, ground.clock, ground.limits)
    asking = asyncio.ensure_future(ground.claiming.claim(1, GATEWAY, 1_000_000))
    await asyncio.sleep(0.01)
    job = await other.submit()
    waited_s = 0.0
    async with asyncio.timeout(15):
        while not asking.done():
            await ground.pass_s(0.5)
            waited_s += 0.5
            await asyncio.sleep(0.005)
    assert ids(asking.result()) == [job.job_id]
    assert waited_s < 30, "which is as long as a claim waits at most"


async def test_whoever_waits_is_let_go_when_the_scheduler_ends(sqlite_ground: Ground) -> None:
    ground = sqlite_ground
    asking = asyncio.ensure_future(ground.claiming.claim(1, GATEWAY, 30_000))
    await asyncio.sleep(0.01)
    ground.due.close()
    await eventually(asking.done)
    assert asking.result() == []
