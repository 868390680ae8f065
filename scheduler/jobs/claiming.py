"""Handing jobs to gateways: a claim waits for one that is due, woken by what happens here, and by looking now and then.

Owns the waiting. What is due, and whose turn it is, is decided in SQL; what becomes of an attempt, by the policy.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from runtime.backoff import sleep_unless
from runtime.clock import Clock
from runtime.errors import Code, PenstockError
from runtime.ids import NodeId
from scheduler.jobs.bell import Bell
from scheduler.jobs.errors import ClaimsFull
from scheduler.jobs.policy import Retries, answered, failed
from scheduler.jobs.sql_claims import ClaimStore
from scheduler.jobs.types import Answer, Claim, ClaimedJob, Failure, JobId, JobLimits, JobState

_UNTRIED = Failure(Code.CANCELLED, "the gateway left", returned=True)
POLL_S = 1.0
"""How often, at least, it is looked for what others made due; up to half as long again, so that not all look at once."""


class Claiming:
    def __init__(
        self, store: ClaimStore, due: Bell, clock: Clock, rng: random.Random, limits: JobLimits, retries: Retries
    ) -> None:
        self._store, self._due, self._clock, self._rng = store, due, clock, rng
        self._limits, self._retries = limits, retries
        self._waiting: Counter[NodeId] = Counter()

    @property
    def visibility_ms(self) -> int:
        return self._limits.visibility_ms

    async def claim(self, places: int, by: NodeId, wait_ms: int) -> list[ClaimedJob]:
        """Jobs that are due; none, once the wait is over or this scheduler ends. Raises ClaimsFull."""
        until_s = self._clock.monotonic_s() + min(wait_ms, self._limits.longest_wait_ms) / 1_000
        with self._one_of(by):
            while places > 0:
                rung = self._due.next
                next_due_ms = await self._store.next_due_ms()
                if next_due_ms <= self._now_ms() and (jobs := await self._taken(places, by)):
                    return jobs
                left_s = until_s - self._clock.monotonic_s()
                if left_s <= 0 or self._due.closed:
                    break
                await sleep_unless(self._clock, min(left_s, self._pause_s(next_due_ms)), rung)
        return []

    async def extend(self, claims: Sequence[Claim]) -> list[Claim]:
        return await self._store.extend(claims, self._now_ms()) if claims else []

    async def settle(self, claim: Claim, outcome: Answer | Failure) -> tuple[JobId, JobState]:
        """Raises ClaimLost."""
        now_ms, draw = self._now_ms(), self._rng.random()
        if isinstance(outcome, Answer):
            return await self._store.settle(claim, lambda job: answered(outcome), now_ms)
        return await self._store.settle(claim, lambda job: failed(job, outcome, now_ms, draw, self._retries), now_ms)

    async def _taken(self, places: int, by: NodeId) -> list[ClaimedJob]:
        """A gateway that left meanwhile gets none: they are given back, and need not wait until their claims have run out."""
        taking = asyncio.ensure_future(self._store.claim(places, by, self._now_ms()))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            with suppress(PenstockError):
                for job in await taking:
                    await self.settle(job.claim, _UNTRIED)
                self._due.ring()
            raise

    @contextmanager
    def _one_of(self, by: NodeId) -> Iterator[None]:
        """A gateway's call; each asks the database again and again, so that one has few."""
        if self._waiting[by] >= self._limits.claims_of_gateway:
            raise ClaimsFull(
                f"gateway {by} waits here for jobs with {self._waiting[by]} calls already, which is all; wait with one",
                retry_after_s=1.0,
            )
        self._waiting[by] += 1
        try:
            yield
        finally:
            self._waiting[by] -= 1
            if not self._waiting[by]:
                del self._waiting[by]

    def _pause_s(self, next_due_ms: int) -> float:
        until_due_s = (next_due_ms - self._now_ms()) / 1_000
        poll_s = POLL_S * (1.0 + 0.5 * self._rng.random())
        # What is overdue and was not got is in others' hands at this moment.
        return min(until_due_s, poll_s) if until_due_s > 0 else poll_s / 10

    def _now_ms(self) -> int:
        return int(self._clock.wall_s() * 1_000)
