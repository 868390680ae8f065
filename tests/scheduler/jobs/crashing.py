"""Submits jobs, claims and settles them, says what it did, and never ends: for `test_crashes.py` to kill."""

from __future__ import annotations

import asyncio
import sys
from random import Random

from runtime.clock import SystemClock
from runtime.database import open_database
from runtime.ids import NodeId
from scheduler.jobs.policy import Retries, answered
from scheduler.jobs.schema import JOBS
from scheduler.jobs.sql import JobStore
from scheduler.jobs.sql_claims import ClaimStore
from scheduler.jobs.types import Answer, JobLimits
from tests.scheduler.jobs.ground import submission


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def work(address: str, rng: Random) -> None:
    limits, clock = JobLimits(), SystemClock()
    async with open_database(address, JOBS) as database:
        jobs, claims = JobStore(database, limits, Retries()), ClaimStore(database, limits)
        while True:
            now_ms = int(clock.wall_s() * 1_000)
            if rng.random() < 0.5:
                job, _ = await jobs.submit(submission(str(rng.random())), now_ms)
                say("submitted", job.job_id)
                continue
            for claimed in await claims.claim(2, NodeId("doomed"), now_ms):
                answer = Answer(200, f"by-{rng.random()}".encode())
                await claims.settle(claimed.claim, lambda _, answer=answer: answered(answer), now_ms)  # type: ignore[misc]
                say("settled", claimed.job_id, answer.body.decode())


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], Random(int(sys.argv[2]))))
