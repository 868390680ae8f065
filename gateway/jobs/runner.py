"""Does jobs for the schedulers: claims as many as it has room for, has each performed, extends its claim, tells how it ended.

Owns the attempts under way. A claim is extended at a third of the time that it holds; work under one that holds no more is
stopped at once, because somebody else may be at it. Never decides what a job is (`perform` does that), nor whether it is tried
again (its scheduler does that). Nothing is lost with a gateway that dies: its claims run out.

    claimed → performed → settled
            ↘ lost (the claim ran out, or the job was cancelled): stopped, and nothing is told
            ↘ returned (this gateway ends): told so, and another takes it at once
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from gateway.jobs.attempt import Attempt, Perform, Stop
from gateway.jobs.types import Claim, ClaimedJob, HeldClaims, InferAnswer, JobFailure, JobOutcome, JobSource
from runtime.backoff import DEFAULT_BACKOFF, Backoff, sleep_unless
from runtime.clock import Clock
from runtime.errors import Code, PenstockError

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""What a scheduler keeps of an answer, at most."""

_MISSING = (Code.UNIMPLEMENTED, Code.FAILED_PRECONDITION)
"""The schedulers keep no jobs, until an operator changes that."""

_HOPELESS = (Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.PERMISSION_DENIED, *_MISSING)
"""Of telling how a job ended: it will be refused again."""

_log = structlog.get_logger("penstock.jobs")


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """How a gateway does jobs. Times in seconds."""

    at_once: int = 8
    """0 = none at all."""
    claim_wait_s: float = 10.0
    """How long a scheduler may wait for a job that is due."""
    pause_s: float = 0.2
    """After a claim that gave nothing sooner than it could wait."""
    missing_wait_s: float = 30.0
    drain_grace_s: float = 10.0
    last_word_s: float = 3.0
    """How long telling the ends of jobs may take once the grace is over."""
    again: Backoff = DEFAULT_BACKOFF


class JobRunner:
    """Belongs to one event loop."""

    def __init__(
        self, source: JobSource, perform: Perform, clock: Clock, rng: random.Random, settings: RunnerSettings | None = None
    ) -> None:
        self._source, self._perform, self._clock, self._rng = source, perform, clock, rng
        self._settings = settings or RunnerSettings()
        self._attempts: dict[Claim, Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._claiming: asyncio.Task[None] | None = None
        self._begun, self._ended = asyncio.Event(), asyncio.Event()
        self._drained_by_s: float | None = None

    @property
    def under_way(self) -> int:
        """Attempts that have not ended."""
        return len(self._attempts)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Do jobs while the context lasts. Leaving it ends or gives back those under way, within the grace."""
        if self._settings.at_once <= 0:
            yield
            return
        async with asyncio.TaskGroup() as tasks:
            self._claiming = tasks.create_task(self._claim_jobs(tasks), name="claim jobs")
            extending = tasks.create_task(self._extend_claims(), name="extend claims")
            try:
                yield
            finally:
                self.wind_down()
                await self._drain(self._drained_by_s or 0.0)
                extending.cancel()

    def wind_down(self) -> None:
        """Take no more jobs; the grace of those under way begins."""
        if self._drained_by_s is None:
            self._drained_by_s = self._clock.monotonic_s() + self._settings.drain_grace_s
        if self._claiming is not None:
            self._claiming.cancel()

    async def _claim_jobs(self, tasks: asyncio.TaskGroup) -> None:
        failures = 0
        while True:
            room = self._settings.at_once - len(self._attempts)
            if room <= 0:
                self._ended.clear()
                await self._ended.wait()
                continue
            asked_s = self._clock.monotonic_s()
            try:
                claimed = await self._source.claim(room, self._settings.claim_wait_s)
            except PenstockError as error:
                failures += 1
                await self._clock.sleep(self._claim_delay_s(error, failures))
                continue
            failures = 0
            for job in claimed:
                self._begin(job, tasks)
            if not claimed and self._clock.monotonic_s() < asked_s + max(
                self._settings.claim_wait_s / 2, self._settings.pause_s
            ):
                await self._clock.sleep(self._settings.pause_s)

    def _claim_delay_s(self, error: PenstockError, failures: int) -> float:
        if failures == 1:
            _log.warning("no_jobs_claimed", code=error.code.name, why=error.message)
        if error.code in _MISSING:
            return self._settings.missing_wait_s
        return max(self._settings.again.delay_s(failures, self._rng), error.retry_after_s or 0.0)

    def _begin(self, job: ClaimedJob, tasks: asyncio.TaskGroup) -> None:
        before = [each for each in self._attempts.values() if each.job.job_id == job.job_id]
        self._attempts[job.claim] = attempt = Attempt(job, self._clock.monotonic_s())
        task = tasks.create_task(self._see_through(attempt, before), name=f"job {job.job_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._begun.set()

    async def _see_through(self, attempt: Attempt, before: Sequence[Attempt]) -> None:
        """From claim to end. `before`: attempts at the same job, whose claims must have run out: it is not done twice."""
        try:
            for each in before:
                each.stop(Stop.LOST)
                await each.ended.wait()
            outcome = await attempt.outcome(self._perform)
            if outcome is not None:
                await self._settle(attempt, _kept(outcome))
        finally:
            if self._attempts.get(attempt.job.claim) is attempt:
                del self._attempts[attempt.job.claim]
            attempt.ended.set()
            self._ended.set()

    async def _settle(self, attempt: Attempt, outcome: JobOutcome) -> None:
        """Tell how it ended, again and again while the claim may hold."""
        failures, why = 0, "its claim holds no more"
        while attempt.stop_reason is not Stop.LOST and self._clock.monotonic_s() < attempt.held_until_s:
            try:
                await self._source.settle(attempt.job.claim, outcome)
                return
            except PenstockError as error:
                why, failures = error.message, failures + 1
                if error.code is Code.INVALID_ARGUMENT and not isinstance(outcome, JobFailure):
                    outcome = JobFailure(error.code, f"its answer was refused: {error.message}", final=True)
                elif error.code is Code.ABORTED or error.code in _HOPELESS:
                    break
                else:
                    await self._clock.sleep(self._settings.again.delay_s(failures, self._rng))
        _log.warning("job_not_settled", job=attempt.job.job_id, attempt=attempt.job.attempt, why=why)

    async def _extend_claims(self) -> None:
        while True:
            self._begun.clear()
            if not self._attempts:
                await self._begun.wait()
                continue
            due_s = min(attempt.extend_at_s for attempt in self._attempts.values())
            await sleep_unless(self._clock, due_s - self._clock.monotonic_s(), self._begun)
            if self._attempts and self._clock.monotonic_s() >= due_s:
                await self._extend(dict(self._attempts))

    async def _extend(self, attempts: dict[Claim, Attempt]) -> None:
        """Ask for more time for all of them, and stop those that get none."""
        asked_s, lapses_s = self._clock.monotonic_s(), min(each.held_until_s for each in attempts.values())
        held = await self._asked(list(attempts), lapses_s - asked_s)
        now_s = self._clock.monotonic_s()
        for claim, attempt in attempts.items():
            if held is None:
                attempt.extend_at_s = min(now_s + attempt.job.visibility_s / 12, max(attempt.held_until_s, now_s + 0.01))
            elif claim in held.claims:
                attempt.held(asked_s, held.visibility_s)
            if now_s >= attempt.held_until_s or (held is not None and claim not in held.claims):
                self._lose(attempt)

    async def _asked(self, claims: list[Claim], within_s: float) -> HeldClaims | None:
        """None: nobody answered, or not before the first of the claims may have run out."""
        asking = asyncio.ensure_future(self._source.extend(claims))
        lapsing = asyncio.ensure_future(self._clock.sleep(max(within_s, 0.0)))
        try:
            await asyncio.wait((asking, lapsing), return_when=asyncio.FIRST_COMPLETED)
            return asking.result() if asking.done() else None
        except PenstockError as error:
            _log.warning("claims_not_extended", claims=len(claims), code=error.code.name, why=error.message)
            return None
        finally:
            asking.cancel()
            lapsing.cancel()
            await asyncio.gather(asking, lapsing, return_exceptions=True)

    def _lose(self, attempt: Attempt) -> None:
        if attempt.stop_reason is None and not attempt.ended.is_set():
            _log.info("job_claim_lost", job=attempt.job.job_id, attempt=attempt.job.attempt)
        attempt.stop(Stop.LOST)

    async def _drain(self, by_s: float) -> None:
        await self._empty(by_s)
        for attempt in list(self._attempts.values()):
            attempt.stop(Stop.RETURNED)
        await self._empty(self._clock.monotonic_s() + self._settings.last_word_s)
        for task in list(self._tasks):
            task.cancel()

    async def _empty(self, by_s: float) -> None:
        """Return once nothing is under way, or at that time."""
        while self._attempts and (left_s := by_s - self._clock.monotonic_s()) > 0:
            self._ended.clear()
            await sleep_unless(self._clock, left_s, self._ended)


def _kept(outcome: JobOutcome) -> JobOutcome:
    """The outcome, if a scheduler can keep it."""
    if isinstance(outcome, JobFailure):
        return outcome
    size_bytes = len(outcome.payload if isinstance(outcome, InferAnswer) else outcome.body)
    if size_bytes <= MAX_ANSWER_BYTES:
        return outcome
    message = f"the answer has {size_bytes} bytes, and at most {MAX_ANSWER_BYTES} are kept; ask for less in one job"
    return JobFailure(Code.OUT_OF_RANGE, message, final=True)
