"""Jobs are done as many at once as there is room for, kept while they last, stopped when they are lost, told when they end."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.jobs.runner import MAX_ANSWER_BYTES, JobRunner, RunnerSettings
from gateway.jobs.types import (
    Claim,
    ClaimedJob,
    HeldClaims,
    InferAnswer,
    InferCall,
    JobFailure,
    JobId,
    JobOutcome,
    JobOwner,
)
from runtime.backoff import Backoff
from runtime.errors import Aborted, Code, FailedPrecondition, InvalidArgument, PenstockError, Unavailable
from runtime.ids import KeyId, TenantId
from tests.support.manual_clock import ManualClock, settle

VISIBILITY_S = 30.0
SETTINGS = RunnerSettings(at_once=2, drain_grace_s=5.0, again=Backoff(1.0, 1.0, 1.0, 0.0))


def job(number: int = 1, claim: str = "") -> ClaimedJob:
    owner = JobOwner(TenantId("acme"), KeyId("k1"))
    return ClaimedJob(JobId(f"job-{number}"), owner, InferCall(b""), 1, Claim(claim or f"c{number}"), VISIBILITY_S)


@dataclass
class Source:
    """A scheduler whose every word the test chooses."""

    clock: ManualClock
    due: list[ClaimedJob] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    extended_at_s: list[float] = field(default_factory=list)
    settled: list[tuple[Claim, JobOutcome]] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    claim_error: PenstockError | None = None
    extend_error: PenstockError | None = None
    settle_errors: list[PenstockError] = field(default_factory=list)
    silent: bool = False
    """Extending is never answered."""

    async def claim(self, max_jobs: int, wait_s: float) -> Sequence[ClaimedJob]:
        self.asked.append(max_jobs)
        if self.claim_error is not None:
            raise self.claim_error
        end_s = self.clock.monotonic_s() + wait_s
        while not self.due and self.clock.monotonic_s() < end_s:
            await self.clock.sleep(0.5)
        given, self.due = self.due[:max_jobs], self.due[max_jobs:]
        return given

    async def extend(self, claims: Sequence[Claim]) -> HeldClaims:
        self.extended_at_s.append(self.clock.monotonic_s())
        if self.silent:
            await asyncio.Event().wait()
        if self.extend_error is not None:
            raise self.extend_error
        return HeldClaims(frozenset(claim for claim in claims if claim not in self.lost), VISIBILITY_S)

    async def settle(self, claim: Claim, outcome: JobOutcome) -> None:
        if self.settle_errors:
            raise self.settle_errors.pop(0)
        self.settled.append((claim, outcome))


@dataclass
class Work:
    """What is done for a job: it waits until the test lets it go on."""

    begun: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    outcome: JobOutcome | Exception = field(default_factory=lambda: InferAnswer(b"done"))

    async def __call__(self, job: ClaimedJob) -> JobOutcome:
        self.begun.append(job.claim)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.append(job.claim)
            raise
        finally:
            self.at_once -= 1
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@dataclass
class Bench:
    clock: ManualClock
    source: Source
    work: Work
    runner: JobRunner


@asynccontextmanager
async def at_work(*due: ClaimedJob, rules: RunnerSettings = SETTINGS) -> AsyncIterator[Bench]:
    clock = ManualClock()
    source, work = Source(clock, list(due)), Work()
    bench = Bench(clock, source, work, JobRunner(source, work, clock, random.Random(1), rules))
    entered, leave = asyncio.Event(), asyncio.Event()

    async def run() -> None:
        async with bench.runner.running():
            entered.set()
            await leave.wait()

    running = asyncio.create_task(run())
    await entered.wait()
    await settle()
    try:
        yield bench
    finally:
        leave.set()
        for _ in range(12):
            await clock.advance(1.0)
        await asyncio.wait_for(running, 5)


async def test_jobs_are_done_and_told() -> None:
    async with at_work(job(1), job(2), job(3)) as bench:
        bench.work.go_on.set()
        await bench.clock.advance(2.0)
        assert [claim for claim, _ in bench.source.settled] == ["c1", "c2", "c3"]
        assert {outcome for _, outcome in bench.source.settled} == {InferAnswer(b"done")}
        assert bench.runner.under_way == 0


async def test_no_more_at_once_than_there_is_room_for() -> None:
    async with at_work(*(job(number) for number in range(7))) as bench:
        await bench.clock.advance(3.0)
        assert bench.runner.under_way == 2
        bench.work.go_on.set()
        await bench.clock.advance(5.0)
        assert bench.work.most_at_once == 2
        assert len(bench.source.settled) == 7
        assert max(bench.source.asked) == 2


async def test_a_gateway_that_is_to_do_none_asks_for_none() -> None:
    async with at_work(job(1), rules=RunnerSettings(at_once=0)) as bench:
        await bench.clock.advance(60.0)
        assert bench.source.asked == []


async def test_a_claim_is_extended_at_a_third_of_its_time_for_as_long_as_the_work_lasts() -> None:
    async with at_work(job(1)) as bench:
        began_s = bench.clock.monotonic_s()
        await bench.clock.advance(65.0)
        assert [round(at_s - began_s) for at_s in bench.source.extended_at_s] == [10, 20, 30, 40, 50, 60]
        assert bench.work.cancelled == []
        bench.work.go_on.set()
        await bench.clock.advance(30.0)
        assert len(bench.source.extended_at_s) == 6
        assert bench.source.settled == [("c1", InferAnswer(b"done"))]


async def test_a_job_whose_claim_holds_no_more_is_stopped_and_nothing_told() -> None:
    async with at_work(job(1), job(2)) as bench:
        bench.source.lost.add("c1")
        await bench.clock.advance(11.0)
        assert bench.work.cancelled == ["c1"]
        bench.work.go_on.set()
        await bench.clock.advance(1.0)
        assert [claim for claim, _ in bench.source.settled] == ["c2"]


@pytest.mark.parametrize("silent", [True, False])
async def test_a_job_is_stopped_before_its_claim_can_be_somebody_elses(silent: bool) -> None:
    async with at_work(job(1)) as bench:
        bench.source.silent, bench.source.extend_error = silent, Unavailable("away")
        await bench.clock.advance(VISIBILITY_S - 1.0)
        assert bench.work.cancelled == []
        await bench.clock.advance(2.0)
        assert bench.work.cancelled == ["c1"]
        assert bench.source.settled == []


async def test_a_job_goes_on_when_schedulers_are_back_in_time() -> None:
    async with at_work(job(1)) as bench:
        bench.source.extend_error = Unavailable("away")
        await bench.clock.advance(20.0)
        bench.source.extend_error = None
        await bench.clock.advance(60.0)
        assert bench.work.cancelled == []


async def test_how_it_ended_is_told_until_somebody_hears() -> None:
    async with at_work(job(1)) as bench:
        bench.source.settle_errors = [Unavailable("away") for _ in range(5)]
        bench.work.go_on.set()
        await bench.clock.advance(4.5)
        assert bench.source.settled == []
        await bench.clock.advance(1.0)
        assert bench.source.settled == [("c1", InferAnswer(b"done"))]


@pytest.mark.parametrize(
    ("error", "told"), [(Aborted("held by another"), 1), (FailedPrecondition("no jobs here"), 1), (Unavailable("away"), 30)]
)
async def test_how_it_ended_is_not_told_where_nobody_will_hear(error: PenstockError, told: int) -> None:
    async with at_work(job(1)) as bench:
        bench.source.settle_errors = [error for _ in range(1000)]
        bench.source.extend_error = Unavailable("away")
        bench.work.go_on.set()
        with structlog.testing.capture_logs() as logs:
            await bench.clock.advance(VISIBILITY_S + 1.0)
        assert abs(1000 - len(bench.source.settle_errors) - told) <= 1
        assert bench.runner.under_way == 0
        assert "job_not_settled" in [log["event"] for log in logs]


async def test_an_answer_that_is_refused_becomes_a_failure() -> None:
    async with at_work(job(1)) as bench:
        bench.source.settle_errors = [InvalidArgument("no such answer")]
        bench.work.go_on.set()
        await bench.clock.advance(1.0)
        ((_, outcome),) = bench.source.settled
        assert isinstance(outcome, JobFailure)
        assert outcome.final


async def test_an_answer_too_large_to_be_kept_is_a_failure_for_good() -> None:
    async with at_work(job(1)) as bench:
        bench.work.outcome = InferAnswer(bytes(MAX_ANSWER_BYTES + 1))
        bench.work.go_on.set()
        await bench.clock.advance(1.0)
        ((_, outcome),) = bench.source.settled
        assert isinstance(outcome, JobFailure)
        assert (outcome.code, outcome.final) == (Code.OUT_OF_RANGE, True)


async def test_work_that_fails_in_a_way_of_its_own_costs_nobody_else() -> None:
    async with at_work(job(1)) as bench:
        bench.work.outcome = ValueError("secret")
        bench.work.go_on.set()
        with structlog.testing.capture_logs():
            await bench.clock.advance(1.0)
        ((_, outcome),) = bench.source.settled
        assert isinstance(outcome, JobFailure)
        assert (outcome.code, outcome.final) == (Code.INTERNAL, False)
        assert "secret" not in outcome.message
        bench.work.outcome = InferAnswer(b"done")
        bench.source.due.append(job(2))
        await bench.clock.advance(1.0)
        assert bench.source.settled[1] == ("c2", InferAnswer(b"done"))


async def test_a_job_that_comes_again_is_not_done_twice_at_once() -> None:
    async with at_work(job(1)) as bench:
        bench.source.due.append(job(1, claim="again"))
        await bench.clock.advance(1.0)
        assert (bench.work.begun, bench.work.cancelled) == (["c1", "again"], ["c1"])
        assert bench.work.most_at_once == 1
        bench.work.go_on.set()
        await bench.clock.advance(1.0)
        assert bench.source.settled == [("again", InferAnswer(b"done"))]


async def test_schedulers_that_fail_are_asked_again_after_a_while() -> None:
    async with at_work() as bench:
        bench.source.claim_error = Unavailable("away")
        await bench.clock.advance(30.0)
        asked = len(bench.source.asked)
        assert 15 <= asked <= 25
        bench.source.claim_error = None
        bench.source.due.append(job(1))
        await bench.clock.advance(2.0)
        assert bench.work.begun == ["c1"]


async def test_schedulers_that_keep_no_jobs_are_left_alone() -> None:
    async with at_work() as bench:
        bench.source.claim_error = FailedPrecondition("no --jobs-database")
        await bench.clock.advance(100.0)
        assert len(bench.source.asked) <= 5


async def test_what_gives_nothing_at_once_is_not_asked_in_a_loop() -> None:
    async with at_work(rules=RunnerSettings(at_once=2, claim_wait_s=0.0, pause_s=0.5)) as bench:
        await bench.clock.advance(10.0)
        assert len(bench.source.asked) <= 21


async def test_a_gateway_that_ends_lets_jobs_end_within_the_grace() -> None:
    async with at_work(job(1)) as bench:
        bench.runner.wind_down()
        bench.source.due.append(job(2))
        await bench.clock.advance(3.0)
        bench.work.go_on.set()
        await bench.clock.advance(1.0)
        assert bench.source.settled == [("c1", InferAnswer(b"done"))]
    assert bench.work.begun == ["c1"]


async def test_a_gateway_that_ends_gives_back_what_it_cannot_end() -> None:
    async with at_work(job(1), job(2)) as bench:
        await bench.clock.advance(1.0)
        bench.runner.wind_down()
    assert sorted(bench.work.cancelled) == ["c1", "c2"]
    assert [outcome.returned for _, outcome in bench.source.settled if isinstance(outcome, JobFailure)] == [True, True]


async def test_a_gateway_ends_though_nobody_hears_its_last_words() -> None:
    async with at_work(job(1)) as bench:
        bench.source.settle_errors = [Unavailable("away") for _ in range(1000)]
        await bench.clock.advance(1.0)
    assert bench.source.settled == []


@dataclass(frozen=True)
class Course:
    """What befalls one job."""

    lasts_s: float
    lost: bool
    refusals: int
    fails: bool


@settings(deadline=None, max_examples=15)
@given(
    st.lists(
        st.builds(Course, st.sampled_from([0.0, 1.0, 25.0, 45.0]), st.booleans(), st.integers(0, 3), st.booleans()), max_size=6
    ),
    st.integers(1, 3),
)
def test_whatever_befalls_jobs_each_claim_is_told_once_or_lost(courses: list[Course], at_once: int) -> None:
    async def check() -> None:
        by_claim = {f"c{number}": course for number, course in enumerate(courses)}
        async with at_work(rules=replace(SETTINGS, at_once=at_once)) as bench:
            source, clock, under_way = bench.source, bench.clock, Counter[str]()
            most = 0

            async def perform(job: ClaimedJob) -> JobOutcome:
                nonlocal most
                under_way[job.job_id] += 1
                most = max(most, under_way.total())
                assert under_way[job.job_id] == 1
                try:
                    await clock.sleep(by_claim[job.claim].lasts_s)
                finally:
                    under_way[job.job_id] -= 1
                if by_claim[job.claim].fails:
                    raise Unavailable("no worker")
                return InferAnswer(job.claim.encode())

            bench.runner._perform = perform
            source.lost.update(claim for claim, course in by_claim.items() if course.lost)
            source.settle_errors = [Unavailable("away") for course in courses for _ in range(course.refusals)]
            source.due += [job(number) for number in range(len(courses))]
            with structlog.testing.capture_logs():
                for _ in range(18):
                    await clock.advance(20.0)
            assert bench.runner.under_way == 0
            assert most <= at_once
        told = Counter(claim for claim, _ in bench.source.settled)
        stopped = {claim for claim, course in by_claim.items() if course.lost and course.lasts_s > VISIBILITY_S / 3}
        assert set(told.values()) <= {1}
        assert by_claim.keys() - stopped - told.keys() <= source.lost, "only what was lost while it waited to be told is not"
        assert not stopped & told.keys()

    asyncio.run(check())
