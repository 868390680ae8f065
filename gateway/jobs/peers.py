"""Jobs as this gateway asks the schedulers for them. Owns nothing but the calls; foreign errors leave as our own."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from penstock.scheduler.v1 import jobs_pb2

from gateway.jobs import codec
from gateway.jobs.keepers import Keepers
from gateway.jobs.types import Claim, ClaimedJob, HeldClaims, JobFailure, JobOutcome
from runtime.errors import InvalidArgument, PenstockError
from runtime.ids import Region

ANSWER_TIMEOUT_S = 10.0
_LARGE_TIMEOUT_S = 30.0
"""For what carries an answer of some megabytes."""

_log = structlog.get_logger("penstock.jobs")


class JobsClient:
    """A `gateway.jobs.types.JobSource`."""

    def __init__(self, keepers: Keepers, region: Region) -> None:
        self._keepers, self._region = keepers, region

    async def claim(self, max_jobs: int, wait_s: float) -> Sequence[ClaimedJob]:
        request = jobs_pb2.ClaimJobsRequest(max_jobs=max_jobs, wait_ms=int(wait_s * 1000), region=self._region)
        timeout_s = wait_s + _LARGE_TIMEOUT_S
        # Not again elsewhere: the answer that was lost may hold jobs, which come back when their claims run out.
        answer: jobs_pb2.ClaimJobsResponse = await self._keepers.ask(
            lambda stubs: stubs.jobs.ClaimJobs(request, timeout=timeout_s), again=False
        )
        claimed: list[ClaimedJob] = []
        for message in answer.jobs:
            try:
                claimed.append(codec.claimed_of(message))
            except InvalidArgument as error:
                await self._refuse(message, error)
        return claimed

    async def extend(self, claims: Sequence[Claim]) -> HeldClaims:
        request = jobs_pb2.ExtendClaimsRequest(claims=claims)
        answer: jobs_pb2.ExtendClaimsResponse = await self._keepers.ask(
            lambda stubs: stubs.jobs.ExtendClaims(request, timeout=ANSWER_TIMEOUT_S)
        )
        return codec.held_of(answer)

    async def settle(self, claim: Claim, outcome: JobOutcome) -> None:
        request = codec.settle_request(claim, outcome)
        await self._keepers.ask(lambda stubs: stubs.jobs.SettleJob(request, timeout=_LARGE_TIMEOUT_S))

    async def _refuse(self, message: jobs_pb2.ClaimedJob, error: PenstockError) -> None:
        """A newer scheduler's kind of call, or none: nobody is helped if this gateway keeps it."""
        _log.warning("job_not_understood", job=message.job_id, why=error.message)
        try:
            await self.settle(Claim(message.claim), JobFailure(error.code, error.message, final=True))
        except PenstockError as failure:
            _log.warning("job_not_settled", job=message.job_id, why=failure.message)
