"""A process with jobs in its hands is killed with -9 between any two steps: none is lost, none succeeds twice."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from scheduler.jobs.types import JobId, JobState
from tests.scheduler.jobs.ground import ACME, Ground, ground_on

WORKER = Path(__file__).with_name("crashing.py")


def killed_after(lines: int, address: str, seed: int) -> list[str]:
    """What the process said before it was killed, whole lines only: what it said, it had been told by the database."""
    command = [sys.executable, "-m", "tests.scheduler.jobs.crashing", address, str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=WORKER.parents[3], env=_environment()) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        said += process.stdout.readlines()
    return [line.decode().strip() for line in said if line.endswith(b"\n")]


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


@pytest.mark.parametrize("kills", [(7, 19, 40)])
async def test_no_job_is_lost_and_none_succeeds_twice(database_address: str, kills: Sequence[int]) -> None:
    async with ground_on(database_address):
        pass  # makes the tables
    said = []
    for seed, lines in enumerate(kills):
        said += await asyncio.to_thread(killed_after, lines, database_address, seed)
    submitted = {line.split()[1] for line in said if line.startswith("submitted")}
    settled = dict(line.split()[1:] for line in said if line.startswith("settled"))
    assert submitted
    assert settled
    async with ground_on(database_address) as ground:
        for job_id in submitted:
            await ground.job(JobId(job_id))
        for job_id, answer in settled.items():
            job = await ground.job(JobId(job_id))
            assert job.state is JobState.SUCCEEDED
            assert job.answer is not None
            assert job.answer.body.decode() == answer, "what was settled first stays"
        assert await ground.kept() == await ground.recounted()
        await _finish(ground)
        every = await ground.listed(tenant=ACME, page_size=1000)
        assert submitted <= {job.job_id for job in every}
        assert {job.state for job in every} == {JobState.SUCCEEDED}
        assert await ground.kept() == await ground.recounted()


async def _finish(ground: Ground) -> None:
    """What the killed had in hand is lost to them, and done by another."""
    for _ in range(8):
        await ground.pass_s(700)
        ground.clock._now_s = max(ground.clock._now_s, _wall_s() - 1_700_000_000.0 + 3_600)
        await ground.sweeper.sweep()
        while claimed := await ground.claim(64):
            for each in claimed:
                await ground.settle(each.claim)


def _wall_s() -> float:
    import time

    return time.time()
