"""Claims on SQLite and PostgreSQL: fenced, shared fairly, and given up by time alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from runtime.errors import Code
from runtime.ids import NodeId, TenantId
from scheduler.jobs.errors import ClaimLost
from scheduler.jobs.types import MAX_ANSWER_BYTES, Answer, Claim, Failure, JobState
from tests.scheduler.jobs.ground import ACME, DONE, GATEWAY, OTHER, Ground, ids, unavailable


async def test_a_job_from_claim_to_answer(ground: Ground) -> None:
    job = await ground.submit(expires_at_ms=ground.now_ms + 90_000)
    claimed = await ground.claim_one()
    assert (claimed.job_id, claimed.attempt, claimed.timeout_ms) == (job.job_id, 1, 90_000)
    assert claimed.call.path == "/v1/chat/completions"
    assert claimed.owner == job.owner
    assert (await ground.job(job.job_id)).state is JobState.RUNNING
    await ground.pass_s(3)
    assert await ground.settle(claimed.claim) is JobState.SUCCEEDED
    done = await ground.job(job.job_id)
    assert (done.answer, done.ended_at_ms) == (DONE, ground.now_ms)
    (attempt,) = done.history
    assert (attempt.claimed_by, attempt.outcome) == (GATEWAY, "OK")
    assert attempt.ended_at_ms - attempt.began_at_ms == 3_000
    assert await ground.kept() == await ground.recounted()


async def test_a_job_is_claimed_once_by_many_at_once(ground: Ground) -> None:
    for number in range(20):
        await ground.submit(str(number), tenant=TenantId(f"t{number % 3}"))
    taken = await asyncio.gather(*[ground.claiming.claim(4, NodeId(f"g{n}"), 0) for n in range(8)])
    rest = await ground.claim(20)
    found = [job_id for claimed in (*taken, rest) for job_id in ids(claimed)]
    assert sorted(found) == sorted(set(found))
    assert len(found) == 20


async def test_what_is_not_due_is_not_claimed(ground: Ground) -> None:
    job = await ground.submit(due_at_ms=ground.now_ms + 60_000)
    assert await ground.claim() == []
    await ground.pass_s(60)
    assert ids(await ground.claim()) == [job.job_id]


async def test_one_tenants_many_hold_up_nobody(ground: Ground) -> None:
    for number in range(30):
        await ground.submit(str(number))
    single = await ground.submit(tenant=OTHER)
    assert single.job_id in ids(await ground.claim(2))


async def test_tenants_are_served_in_turn(ground: Ground) -> None:
    names = [TenantId(name) for name in ("a", "b", "c")]
    for name in names:
        for number in range(6):
            await ground.submit(str(number), tenant=name)
    served = [(await ground.claim_one()).owner.tenant for _ in range(9)]
    assert served == names * 3
    four = Counter(claimed.owner.tenant for claimed in await ground.claim(4))
    assert sorted(four.values()) == [1, 1, 2]


async def test_places_that_one_tenant_leaves_are_anothers(ground: Ground) -> None:
    for number in range(5):
        await ground.submit(str(number))
    await ground.submit(tenant=OTHER)
    assert Counter(claimed.owner.tenant for claimed in await ground.claim(6)) == {ACME: 5, OTHER: 1}


async def test_urgent_first_but_nothing_starves(ground: Ground) -> None:
    patient = await ground.submit("patient", priority=10)
    await ground.pass_s(60)
    urgent = await ground.submit("urgent")
    assert ids(await ground.claim()) == [urgent.job_id]
    await ground.pass_s(541)
    await ground.submit("urgent too, and ten minutes later")
    assert ids(await ground.claim()) == [patient.job_id]


async def test_a_claim_hands_over_no_more_bytes_than_fit(ground: Ground) -> None:
    small = Ground(ground.database, ground.clock, replace(ground.limits, claim_bytes=1_000))
    for _ in range(3):
        await small.submit("x" * 600)
    assert [len(await small.claim(3)) for _ in range(4)] == [1, 1, 1, 0]


async def test_an_extended_claim_holds(ground: Ground) -> None:
    await ground.submit()
    claimed = await ground.claim_one()
    for _ in range(4):
        await ground.pass_s(20)
        assert await ground.claiming.extend([claimed.claim, Claim("none")]) == [claimed.claim]
        await ground.sweeper.sweep()
    assert await ground.settle(claimed.claim) is JobState.SUCCEEDED


async def test_a_claim_that_ran_out_is_lost_and_settles_nothing(ground: Ground) -> None:
    job = await ground.submit()
    first = await ground.claim_one()
    await ground.pass_s(31)
    assert (await ground.sweeper.sweep()).lost == 1
    waiting = await ground.job(job.job_id)
    assert (waiting.state, waiting.history[0].outcome, waiting.history[0].ended_at_ms) == (JobState.QUEUED, "LOST", 0)
    assert await ground.claiming.extend([first.claim]) == []
    await ground.pass_s(10)
    second = await ground.claim_one()
    before = await ground.job(job.job_id)
    with pytest.raises(ClaimLost):
        await ground.settle(first.claim, Answer(200, b"late"))
    assert await ground.job(job.job_id) == before
    assert await ground.settle(second.claim) is JobState.SUCCEEDED
    with pytest.raises(ClaimLost):
        await ground.settle(second.claim, Answer(200, b"again"))
    assert (await ground.job(job.job_id)).answer == DONE
    assert await ground.kept() == await ground.recounted()


async def test_a_job_that_is_always_lost_dies(ground: Ground) -> None:
    job = await ground.submit()
    for _ in range(5):
        assert len(await ground.claim()) == 1
        await ground.pass_s(31)
        await ground.sweeper.sweep()
        await ground.pass_s(700)
    dead = await ground.job(job.job_id)
    assert (dead.state, [attempt.outcome for attempt in dead.history]) == (JobState.DEAD, ["LOST"] * 5)


async def test_a_cancelled_jobs_claim_does_not_hold(ground: Ground) -> None:
    job = await ground.submit()
    claimed = await ground.claim_one()
    await ground.jobs.cancel(job.job_id, ACME, ground.now_ms)
    assert await ground.claiming.extend([claimed.claim]) == []
    with pytest.raises(ClaimLost):
        await ground.settle(claimed.claim)
    cancelled = await ground.job(job.job_id)
    assert (cancelled.state, cancelled.answer, cancelled.history[0].outcome) == (JobState.CANCELLED, None, "CANCELLED")


async def test_given_back_untried_no_attempt_is_counted(ground: Ground) -> None:
    job = await ground.submit()
    for _ in range(12):
        assert await ground.settle((await ground.claim_one()).claim, unavailable(returned=True)) is JobState.QUEUED
        await ground.pass_s(1)
    assert ((await ground.job(job.job_id)).attempts, (await ground.job(job.job_id)).history) == (0, ())
    assert (await ground.claim_one()).attempt == 1


async def test_not_before_it_was_asked_for(ground: Ground) -> None:
    job = await ground.submit()
    await ground.settle((await ground.claim_one()).claim, unavailable(retry_after_ms=120_000))
    assert (await ground.job(job.job_id)).due_at_ms >= ground.now_ms + 120_000
    await ground.pass_s(119)
    assert await ground.claim() == []
    await ground.pass_s(6)
    assert len(await ground.claim()) == 1


async def test_what_cannot_be_helped_dies_at_once_with_its_answer(ground: Ground) -> None:
    job = await ground.submit()
    said = Answer(422, b'{"error": {}}')
    failure = Failure(Code.INTERNAL, "the model refused\x00 it", final=True, answer=said)
    assert await ground.settle((await ground.claim_one()).claim, failure) is JobState.DEAD
    dead = await ground.job(job.job_id)
    assert (dead.answer, dead.history[0].outcome, dead.history[0].message) == (said, "INTERNAL", "the model refused  it")


async def test_an_answer_that_is_too_large_is_not_kept_and_said_so(ground: Ground) -> None:
    job = await ground.submit()
    assert await ground.settle((await ground.claim_one()).claim, Answer(0, bytes(MAX_ANSWER_BYTES + 1))) is JobState.DEAD
    dead = await ground.job(job.job_id)
    assert dead.answer is None
    assert str(MAX_ANSWER_BYTES + 1) in dead.reason
    assert await ground.kept() == await ground.recounted()


async def test_a_call_of_any_bytes_comes_back_as_it_was(ground: Ground) -> None:
    body = bytes(range(256)) * 4096
    asked = await ground.submit()
    await ground.jobs.cancel(asked.job_id, ACME, ground.now_ms)
    from tests.scheduler.jobs.ground import submission

    await ground.jobs.submit(replace(submission(), call=replace(submission().call, path="", body=body)), ground.now_ms)
    assert (await ground.claim_one()).call.body == body


async def test_an_expired_job_is_not_claimed_and_is_dead(ground: Ground) -> None:
    job = await ground.submit(expires_at_ms=ground.now_ms + 5_000)
    await ground.pass_s(5)
    assert await ground.claim() == []
    assert (await ground.sweeper.sweep()).expired == 1
    dead = await ground.job(job.job_id)
    assert (dead.state, "expired" in dead.reason) == (JobState.DEAD, True)


async def test_a_running_job_that_expires_is_not_extended(ground: Ground) -> None:
    job = await ground.submit(expires_at_ms=ground.now_ms + 5_000)
    claimed = await ground.claim_one()
    await ground.pass_s(6)
    assert await ground.claiming.extend([claimed.claim]) == []
    await ground.pass_s(30)
    await ground.sweeper.sweep()
    assert (await ground.job(job.job_id)).state is JobState.DEAD


async def test_a_job_is_forgotten_when_its_keeping_is_over(ground: Ground) -> None:
    await ground.submit(keep_ms=60_000)
    kept = await ground.submit("longer")
    for claimed in await ground.claim(2):
        await ground.settle(claimed.claim)
    await ground.pass_s(60)
    assert (await ground.sweeper.sweep()).forgotten == 1
    assert ids(await ground.listed()) == [kept.job_id]
    assert await ground.kept() == await ground.recounted()


async def test_counts(ground: Ground) -> None:
    for number in range(3):
        await ground.submit(str(number))
    first, second = await ground.claim(2)
    await ground.settle(first.claim, Failure(Code.INVALID_ARGUMENT, "bad"))
    await ground.pass_s(7)
    await ground.sweeper.count()
    counts = ground.sweeper.counts
    assert (counts.queued, counts.running, counts.dead, counts.oldest_due_ms) == (1, 1, 1, 7_000)
    assert second.claim != first.claim
