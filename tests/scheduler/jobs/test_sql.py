"""Jobs as those who submit them see them, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from runtime.errors import Code
from runtime.ids import TenantId
from scheduler.jobs.errors import IdempotencyKeyTaken, JobsFull, JobUnknown
from scheduler.jobs.types import Answer, Failure, JobId, JobState
from tests.scheduler.jobs.ground import ACME, DONE, OTHER, Ground, ground_on, ids, submission, unavailable


async def test_the_same_key_and_call_is_the_same_job(ground: Ground) -> None:
    first, existed = await ground.jobs.submit(submission(key="k"), ground.now_ms)
    again, existed_again = await ground.jobs.submit(submission(key="k"), ground.now_ms)
    assert (existed, existed_again) == (False, True)
    assert first.job_id == again.job_id
    with pytest.raises(IdempotencyKeyTaken, match="another call"):
        await ground.submit("something else", key="k")
    assert (await ground.submit(tenant=OTHER, key="k")).job_id != first.job_id, "a key is its tenant's own"
    assert (await ground.submit()).job_id != (await ground.submit()).job_id, "without a key each is its own"


async def test_a_key_stands_for_its_job_after_the_job_ended(ground: Ground) -> None:
    job = await ground.submit(key="k")
    await ground.settle((await ground.claim_one()).claim)
    again, existed = await ground.jobs.submit(submission(key="k"), ground.now_ms)
    assert existed
    assert (again.job_id, again.state) == (job.job_id, JobState.SUCCEEDED)


async def test_submitted_at_once_with_one_key_it_is_one_job(ground: Ground) -> None:
    made = await asyncio.gather(*[ground.jobs.submit(submission(key="k"), ground.now_ms) for _ in range(8)])
    assert len({job.job_id for job, _ in made}) == 1
    assert sorted(existed for _, existed in made) == [False] + [True] * 7
    assert await ground.kept() == await ground.recounted() == (1, len(submission().call.body))


async def test_another_tenants_job_is_unknown_in_the_same_words(ground: Ground) -> None:
    job = await ground.submit()
    with pytest.raises(JobUnknown) as theirs:
        await ground.jobs.job(job.job_id, OTHER)
    gone = JobId("job_" + "0" * 24)
    with pytest.raises(JobUnknown) as missing:
        await ground.jobs.job(gone, OTHER)
    assert theirs.value.message.replace(job.job_id, "") == missing.value.message.replace(gone, "")
    with pytest.raises(JobUnknown):
        await ground.jobs.cancel(job.job_id, OTHER, ground.now_ms)
    assert (await ground.jobs.job(job.job_id, ACME)).state is JobState.QUEUED


async def test_a_tenant_has_so_many_open_jobs_and_so_many_bytes(database_address: str) -> None:
    size = len(submission().call.body)
    async with ground_on(database_address) as roomy:
        ground = Ground(roomy.database, roomy.clock, replace(roomy.limits, open_jobs=2, stored_bytes=3 * size))
        await ground.submit()
        await ground.submit()
        with pytest.raises(JobsFull, match="2 jobs"):
            await ground.submit()
        await ground.submit(tenant=OTHER)
        await ground.settle((await ground.claim_one()).claim, Answer(200, b"x"))
        with pytest.raises(JobsFull, match="MiB"):
            await ground.submit("a much longer call than the one before")
        assert (await ground.kept())[0] == 1


async def test_jobs_are_listed_newest_first_in_pages(ground: Ground) -> None:
    made = []
    for number in range(5):
        made.append(await ground.submit(tenant=OTHER if number == 2 else ACME))
        await ground.pass_s(1 if number % 2 else 0)  # some at the same moment
    expected = ids(sorted(made, key=lambda job: (job.created_at_ms, job.job_id), reverse=True))
    assert ids(await ground.listed()) == expected
    assert ids(await ground.listed(tenant=ACME)) == [job_id for job_id in expected if job_id != made[2].job_id]
    paged: list[JobId] = []
    before = None
    while True:
        page = await ground.listed(page_size=2, before=before)
        paged += ids(page)
        if not page:
            break
        before = (page[-1].created_at_ms, page[-1].job_id)
    assert paged == expected


async def test_a_queued_job_is_cancelled_and_not_claimed(ground: Ground) -> None:
    job = await ground.submit()
    assert (await ground.jobs.cancel(job.job_id, ACME, ground.now_ms)).state is JobState.CANCELLED
    assert await ground.claim() == []
    assert await ground.kept() == await ground.recounted()
    assert (await ground.kept())[0] == 0


async def test_a_job_that_ended_stays_as_it_is(ground: Ground) -> None:
    job = await ground.submit()
    await ground.settle((await ground.claim_one()).claim)
    before = await ground.job(job.job_id)
    assert await ground.jobs.cancel(job.job_id, ACME, ground.now_ms + 5) == before


async def test_dead_letters_are_replayed_with_attempts_anew_and_their_history(ground: Ground) -> None:
    job = await ground.submit()
    while (await ground.job(job.job_id)).state is not JobState.DEAD:
        await ground.settle((await ground.claim_one()).claim, unavailable())
        await ground.pass_s(700)
    (dead,) = await ground.listed(state=JobState.DEAD, with_history=True)
    assert [(attempt.number, attempt.outcome, attempt.message) for attempt in dead.history] == [
        (number, "UNAVAILABLE", "no worker") for number in range(1, 6)
    ]
    assert await ground.jobs.replay(ACME, [], "", ground.now_ms) == [job.job_id]
    assert await ground.jobs.replay(ACME, [], "", ground.now_ms) == [], "it is none any more"
    claimed = await ground.claim_one()
    assert claimed.attempt == 6, "numbers go on"
    await ground.settle(claimed.claim, unavailable())
    assert (await ground.job(job.job_id)).state is JobState.QUEUED, "its attempts are counted anew"
    await ground.pass_s(700)
    await ground.settle((await ground.claim_one()).claim)
    done = await ground.job(job.job_id)
    assert (done.state, done.attempts, done.tries, len(done.history)) == (JobState.SUCCEEDED, 7, 2, 7)
    assert await ground.kept() == await ground.recounted()


@pytest.mark.parametrize("chosen", ["id", "model", "tenant", "all"])
async def test_which_dead_letters_are_replayed(ground: Ground, chosen: str) -> None:
    mine, theirs = await ground.submit(), await ground.submit(tenant=OTHER, model="digits")
    for claimed in await ground.claim(2):
        await ground.settle(claimed.claim, Failure(Code.INVALID_ARGUMENT, "bad"))
    tenant: TenantId | None = ACME if chosen == "tenant" else None
    job_ids, model = [mine.job_id] if chosen == "id" else [], "sums" if chosen == "model" else ""
    replayed = await ground.jobs.replay(tenant, job_ids, model, ground.now_ms)
    assert set(replayed) == ({mine.job_id, theirs.job_id} if chosen == "all" else {mine.job_id})


async def test_a_replayed_job_has_its_time_anew_and_loses_the_answer_it_died_with(ground: Ground) -> None:
    job = await ground.submit(expires_at_ms=ground.now_ms + 60_000)
    bad = Failure(Code.INVALID_ARGUMENT, "bad", answer=Answer(400, b"{}"))
    await ground.settle((await ground.claim_one()).claim, bad)
    assert (await ground.job(job.job_id)).answer == Answer(400, b"{}")
    await ground.pass_s(3600)
    await ground.sweeper.sweep()
    await ground.jobs.replay(ACME, [job.job_id], "", ground.now_ms)
    replayed = await ground.job(job.job_id)
    assert (replayed.answer, replayed.expires_at_ms) == (None, ground.now_ms + 60_000)
    await ground.settle((await ground.claim_one()).claim)
    assert (await ground.job(job.job_id)).answer == DONE
    assert await ground.kept() == await ground.recounted()
