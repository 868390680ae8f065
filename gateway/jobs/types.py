"""The nouns of jobs as a gateway does them: what it was handed, on whose behalf, and how an attempt can end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType, Protocol

from runtime.errors import Code
from runtime.ids import KeyId, TenantId

JobId = NewType("JobId", str)
Claim = NewType("Claim", str)
"""Fences one attempt: whoever holds it may extend and settle, nobody else."""


@dataclass(frozen=True, slots=True)
class InferCall:
    """A serialised inference.ModelInferRequest."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class HttpCall:
    """A POST of JSON to a path of the OpenAI API."""

    path: str
    body: bytes


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """A serialised inference.ModelInferResponse."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    status: int
    body: bytes


JobCall = InferCall | HttpCall
JobAnswer = InferAnswer | HttpAnswer


@dataclass(frozen=True, slots=True)
class JobOwner:
    """On whose behalf a job is done, with the rights that its key had when it was submitted."""

    tenant: TenantId
    key_id: KeyId
    """Empty: no key was asked for."""
    allowed_models: frozenset[str] = frozenset()
    """Empty: every model."""


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """One attempt at a job, this gateway's as long as it extends its claim."""

    job_id: JobId
    owner: JobOwner
    call: JobCall
    attempt: int
    claim: Claim
    visibility_s: float
    """How long the claim holds if it is not extended."""
    timeout_s: float | None = None
    """What is left of the job's own time; None = none was set."""


@dataclass(frozen=True, slots=True)
class JobFailure:
    """Why an attempt gave no answer."""

    code: Code
    message: str
    final: bool = False
    """Another attempt cannot help."""
    retry_after_s: float | None = None
    returned: bool = False
    """Given back untried: no attempt is counted."""
    answer: JobAnswer | None = None
    """What an HTTP caller would have got, where it is final."""


JobOutcome = JobAnswer | JobFailure


@dataclass(frozen=True, slots=True)
class HeldClaims:
    """Which of the claims that were asked about hold, and for how long from now."""

    claims: frozenset[Claim]
    visibility_s: float


class JobSource(Protocol):
    """Who hands out jobs and hears how they ended: gateway.jobs.peers.JobsClient."""

    async def claim(self, max_jobs: int, wait_s: float) -> Sequence[ClaimedJob]:
        """Up to so many that are due; waits for the first. Raises as any call between nodes."""
        ...

    async def extend(self, claims: Sequence[Claim]) -> HeldClaims: ...

    async def settle(self, claim: Claim, outcome: JobOutcome) -> None:
        """Raises Aborted where the claim does not hold any more."""
        ...
