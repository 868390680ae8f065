"""The nouns of jobs."""

from __future__ import annotations

import enum
import secrets
from dataclasses import dataclass, field
from typing import NewType

from runtime.errors import Code
from runtime.ids import KeyId, NodeId, TenantId

JobId = NewType("JobId", str)
BatchId = NewType("BatchId", str)

Claim = NewType("Claim", str)
"""Fences one attempt: only who holds it may extend and settle."""

MiB = 1024 * 1024
DAY_MS = 86_400_000
MAX_CALL_BYTES = 16 * MiB
MAX_ANSWER_BYTES = 16 * MiB
MAX_ATTEMPTS = 100
MAX_PRIORITY = 1_000
MAX_KEY_LETTERS = 128
MAX_MODEL_LETTERS = 256
MAX_TEXT_LETTERS = 1_000
"""Of a reason, and of what an attempt ended with."""
MAX_HISTORY = 100
MAX_PAGE, DEFAULT_PAGE = 1_000, 100
LONGEST_KEEP_MS = 30 * DAY_MS
LONGEST_DELAY_MS = 366 * DAY_MS


_NO_KEY = KeyId("")


class JobState(enum.Enum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    DEAD = "dead"
    CANCELLED = "cancelled"


OPEN = frozenset({JobState.QUEUED, JobState.RUNNING})


@dataclass(frozen=True, slots=True)
class Owner:
    """On whose behalf, and with what rights, as they were when it was submitted."""

    tenant: TenantId
    key_id: KeyId = _NO_KEY
    allowed_models: tuple[str, ...] = ()
    """Empty: every model."""


@dataclass(frozen=True, slots=True)
class Call:
    """What is to be done. The body is a serialised ModelInferRequest where there is no path, else JSON for that path."""

    path: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it. The body is a serialised ModelInferResponse where the status is 0, else an HTTP answer's."""

    status: int
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt failed, as the gateway says it."""

    code: Code
    message: str
    final: bool = False
    retry_after_ms: int = 0
    returned: bool = False
    answer: Answer | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """`ended_at_ms` is 0 where it has not ended, or nobody knows how. The outcome is OK, a status code's name, or LOST."""

    number: int
    claimed_by: NodeId
    began_at_ms: int
    ended_at_ms: int = 0
    outcome: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Submission:
    """A job to be. 0 and empty stand for the scheduler's own choice, or none."""

    owner: Owner
    call: Call
    model: str
    idempotency_key: str = ""
    priority: int = 0
    max_attempts: int = 0
    due_at_ms: int = 0
    expires_at_ms: int = 0
    keep_ms: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    job_id: JobId
    owner: Owner
    model: str
    state: JobState
    priority: int
    attempts: int
    """Of all replays together."""
    tries: int
    """Since it was submitted or replayed last."""
    max_attempts: int
    created_at_ms: int
    due_at_ms: int
    ended_at_ms: int
    expires_at_ms: int
    keep_ms: int
    forgotten_at_ms: int
    idempotency_key: str
    batch_id: BatchId | None
    reason: str
    revision: int
    """Grows with each change that is worth telling."""
    history: tuple[Attempt, ...] = ()
    answer: Answer | None = None


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    job_id: JobId
    owner: Owner
    call: Call
    attempt: int
    claim: Claim
    timeout_ms: int
    """Time left; 0: none was set."""


@dataclass(frozen=True, slots=True)
class JobQuestion:
    """Which jobs are listed. None and empty: any."""

    tenant: TenantId | None = None
    state: JobState | None = None
    batch_id: BatchId | None = None
    model: str = ""
    page_size: int = DEFAULT_PAGE
    before: tuple[int, JobId] | None = None
    """The last job of the page before: when it was made, and its id."""
    with_history: bool = False


@dataclass(frozen=True, slots=True)
class JobLimits:
    """What one scheduler's jobs are bounded by."""

    visibility_ms: int = 30_000
    """How long a gateway has a job before it must have extended its claim."""
    keep_ms: int = 7 * DAY_MS
    open_jobs: int = 100_000
    """Of one tenant, not counting lines of batches."""
    stored_bytes: int = 10 * 1024 * MiB
    """Of one tenant: calls, answers and files. Answers are kept even past it; work that was done is not thrown away."""
    claim_bytes: int = 32 * MiB
    """Of the calls handed over at once; one is always."""
    most_claimed: int = 64
    longest_wait_ms: int = 30_000
    watchers: int = 1_024
    watchers_of_tenant: int = 256
    """Of these. Each watch is a stream that somebody with a key keeps open for nothing."""
    claims_of_gateway: int = 16
    """Calls for jobs that wait at once: a gateway needs one, and its others are of lives that it has lost."""
    file_bytes: int = 200 * 1_000_000
    file_keep_ms: int = 30 * DAY_MS
    open_batches: int = 32
    """Of one tenant."""


@dataclass(slots=True)
class JobCounts:
    """What there is, as it was counted last."""

    queued: int = 0
    running: int = 0
    dead: int = 0
    oldest_due_ms: int = 0
    """How long the job that is due longest has been; 0: none is due."""


def new_job_id() -> JobId:
    return JobId(f"job_{secrets.token_hex(12)}")


def new_claim() -> Claim:
    return Claim(secrets.token_hex(16))
