"""One attempt at a job: its claim, how long that holds, and the work, which can be stopped from outside.

Owns the task of the work while it lasts. Knows no scheduler.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable

from gateway.jobs.types import ClaimedJob, JobFailure, JobOutcome
from runtime.errors import Code
from runtime.status import translated

Perform = Callable[[ClaimedJob], Awaitable[JobOutcome]]


class Stop(enum.Enum):
    """Why an attempt ends before its work does."""

    LOST = "lost"
    """The claim holds no more: the job was cancelled, or somebody else has it."""
    RETURNED = "returned"
    """This gateway ends."""


class Attempt:
    """Times on the clock of whoever made it."""

    __slots__ = ("_stopped", "ended", "extend_at_s", "held_until_s", "job", "stop_reason")

    def __init__(self, job: ClaimedJob, now_s: float) -> None:
        self.job = job
        self.stop_reason: Stop | None = None
        self.ended, self._stopped = asyncio.Event(), asyncio.Event()
        self.held(now_s, job.visibility_s)

    def held(self, since_s: float, visibility_s: float) -> None:
        """The claim holds for so long from then on."""
        self.held_until_s, self.extend_at_s = since_s + visibility_s, since_s + visibility_s / 3

    def stop(self, reason: Stop) -> None:
        """The first reason counts."""
        self.stop_reason = self.stop_reason or reason
        self._stopped.set()

    async def outcome(self, perform: Perform) -> JobOutcome | None:
        """Do the work; how it ended, or None where there is nobody to tell."""
        if self.stop_reason is None:
            work, stopped = asyncio.ensure_future(perform(self.job)), asyncio.ensure_future(self._stopped.wait())
            try:
                await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    return _outcome(work)
            finally:
                work.cancel()
                stopped.cancel()
                await asyncio.gather(work, stopped, return_exceptions=True)
        if self.stop_reason is Stop.RETURNED:
            return JobFailure(Code.UNAVAILABLE, "the gateway that had this job ends", returned=True)
        return None


def _outcome(work: asyncio.Future[JobOutcome]) -> JobOutcome:
    """What the work gave; what it did not mean to raise is logged whole, and told as any failure of ours."""
    error = work.exception()
    if error is None:
        return work.result()
    if not isinstance(error, Exception):
        raise error
    answered = translated(error, "job")
    return JobFailure(answered.code, answered.message, retry_after_s=answered.retry_after_s)
