"""Whatever is done with jobs, in whatever order: nothing is lost, nothing is counted wrongly, what ended stays."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.errors import Code
from scheduler.jobs.errors import ClaimLost
from scheduler.jobs.types import Answer, Claim, Failure, Job, JobId, JobState
from tests.scheduler.jobs.ground import ACME, OTHER, Ground, ground_on, unavailable

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "claim", "answer", "refuse", "fail", "give back", "wait", "cancel", "replay", "extend"]),
        st.integers(0, 7),
    ),
    min_size=5,
    max_size=40,
)
_FINISHED = (JobState.SUCCEEDED, JobState.CANCELLED)


class World:
    """What was done, and what must hold because of it."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.made: list[JobId] = []
        self.claims: list[Claim] = []
        self.finished: dict[JobId, Job] = {}

    async def do(self, step: str, which: int) -> None:
        ground = self.ground
        if step == "submit":
            tenant = ACME if which % 2 else OTHER
            self.made.append((await ground.submit(str(which), tenant=tenant, max_attempts=1 + which % 3)).job_id)
        elif step == "claim":
            self.claims += [claimed.claim for claimed in await ground.claim(1 + which)]
        elif step == "wait":
            await ground.pass_s(10 * 2**which)
            await ground.sweeper.sweep()
        elif step == "replay":
            await ground.jobs.replay(ACME if which % 2 else None, [], "", ground.now_ms)
        elif step == "cancel" and self.made:
            await ground.jobs.cancel(self.made[which % len(self.made)], None, ground.now_ms)
        elif step == "extend":
            await ground.claiming.extend(self.claims)
        elif self.claims:
            await self._settle(self.claims[which % len(self.claims)], step)

    async def _settle(self, claim: Claim, step: str) -> None:
        outcomes: dict[str, Answer | Failure] = {
            "answer": Answer(200, step.encode()),
            "refuse": Failure(Code.INVALID_ARGUMENT, "no", answer=Answer(400, b"no")),
            "fail": unavailable(),
            "give back": unavailable(returned=True),
        }
        try:
            await self.ground.settle(claim, outcomes[step])
        except ClaimLost:
            return

    async def check(self) -> None:
        jobs = [await self.ground.job(job_id) for job_id in self.made]
        for job in jobs:
            if (before := self.finished.get(job.job_id)) is not None:
                assert job == before, "what ended stays as it was"
            if job.state in _FINISHED:
                self.finished[job.job_id] = job
            assert job.tries <= job.max_attempts
            assert [attempt.number for attempt in job.history] == list(range(1, job.attempts + 1))
            under_way = [attempt for attempt in job.history if not attempt.outcome]
            assert len(under_way) == (job.state is JobState.RUNNING)
            if job.state is not JobState.DEAD:
                assert (job.answer is not None) == (job.state is JobState.SUCCEEDED)
        for tenant in {job.owner.tenant for job in jobs}:
            assert await self.ground.kept(tenant) == await self.ground.recounted(tenant)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_whatever_is_done_in_whatever_order(steps: list[tuple[str, int]]) -> None:
    async def life(folder: Path) -> None:
        async with ground_on(str(folder / "jobs.db")) as ground:
            world = World(ground)
            for step, which in steps:
                await world.do(step, which)
                await world.check()
            await _finish(world)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(life(Path(folder)))


async def _finish(world: World) -> None:
    """Whatever was left open can be brought to an end."""
    ground = world.ground
    for _ in range(6):
        await ground.pass_s(700)
        await ground.sweeper.sweep()
        while claimed := await ground.claim(64):
            for each in claimed:
                await ground.settle(each.claim)
    await world.check()
    assert not [job for job in await ground.listed() if job.state in (JobState.QUEUED, JobState.RUNNING)]
