"""The nouns of batches."""

from __future__ import annotations

import enum
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NewType

from runtime.ids import TenantId
from scheduler.jobs.files.types import FileId
from scheduler.jobs.types import DEFAULT_PAGE, MAX_CALL_BYTES, BatchId, JobState, Owner

Lease = NewType("Lease", str)
"""Whoever holds it drives the batch; nobody else writes anything of it."""

MAX_LINES = 50_000
MAX_LINE_BYTES = MAX_CALL_BYTES + 64 * 1024
MAX_CUSTOM_ID_LETTERS = 512
MAX_ERRORS = 100
"""That are listed; a file may have more."""

MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE = 16, 64, 512
LINE_PRIORITY = 10
"""Of a line's job: the tenant's single jobs come first, and lines in time."""


class BatchStatus(enum.Enum):
    """As the OpenAI API names them."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


UNDER_WAY = frozenset({BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, BatchStatus.CANCELLING})


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a batch's file is none. Line 0 is the file as a whole."""

    line: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch's file."""

    number: int
    """In the file, from 1; the empty ones counted."""
    custom_id: str
    model: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewBatch:
    owner: Owner
    input_file_id: FileId
    endpoint: str
    completion_window: str
    window_ms: int
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Times:
    """When a batch came to be what; 0: it did not."""

    created_ms: int = 0
    in_progress_ms: int = 0
    finalizing_ms: int = 0
    completed_ms: int = 0
    failed_ms: int = 0
    expired_ms: int = 0
    cancelling_ms: int = 0
    cancelled_ms: int = 0
    expires_ms: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far jobs were made of the file's lines."""

    lines_made: int = 0
    lines_read: int = 0
    bytes_read: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    batch_id: BatchId
    owner: Owner
    endpoint: str
    completion_window: str
    input_file_id: FileId
    output_file_id: FileId | None
    error_file_id: FileId | None
    status: BatchStatus
    total: int
    completed: int
    failed: int
    at: Times
    progress: Progress
    metadata: Mapping[str, str]
    faults: tuple[Fault, ...]

    @property
    def tenant(self) -> TenantId:
        return self.owner.tenant


@dataclass(frozen=True, slots=True)
class BatchQuestion:
    """Which batches are listed. None: any."""

    tenant: TenantId | None = None
    page_size: int = DEFAULT_PAGE
    after: BatchId | None = None


@dataclass(frozen=True, slots=True)
class LineCounts:
    """What became of the lines that jobs were made of."""

    open: int = 0
    succeeded: int = 0
    dead: int = 0
    cancelled: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one line, but for its answer."""

    job_id: str
    line: int
    custom_id: str
    state: JobState
    answer_bytes: int
    reason: str
    last_outcome: str
    """Of its last attempt; empty: it had none."""


@dataclass(frozen=True, slots=True)
class Written:
    """A file of results. None: no line belonged into it."""

    file_id: FileId | None = None
    digest: str = ""


def new_batch_id() -> BatchId:
    return BatchId(f"batch_{secrets.token_hex(12)}")


def new_lease() -> Lease:
    return Lease(secrets.token_hex(16))
