"""penstock.scheduler.v1.BatchService's messages to nouns and back. Decides what is malformed, nothing else."""

from __future__ import annotations

from penstock.scheduler.v1 import jobs_pb2

from runtime.ids import TenantId
from scheduler.jobs.batches.policy import check_endpoint, check_metadata, window_ms
from scheduler.jobs.batches.types import Batch, BatchQuestion, NewBatch
from scheduler.jobs.callers import plain
from scheduler.jobs.codec import owner_message, owner_of
from scheduler.jobs.errors import BatchRefused
from scheduler.jobs.files.types import FileId
from scheduler.jobs.submission import check_owner
from scheduler.jobs.types import DEFAULT_PAGE, MAX_PAGE, BatchId

_DEFAULT_WINDOW = "24h"


def new_batch_of(request: jobs_pb2.CreateBatchRequest) -> NewBatch:
    """Raises BatchRefused, JobRefused."""
    owner = owner_of(request.owner)
    check_owner(owner)
    check_endpoint(request.endpoint)
    check_metadata(request.metadata)
    if not request.input_file_id:
        raise BatchRefused("input_file_id is empty; upload a file for it first")
    window = request.completion_window or _DEFAULT_WINDOW
    return NewBatch(
        owner, FileId(plain(request.input_file_id)), request.endpoint, window, window_ms(window), dict(request.metadata)
    )


def question_of(tenant: TenantId | None, request: jobs_pb2.ListBatchesRequest) -> BatchQuestion:
    page_size = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
    return BatchQuestion(tenant, page_size, BatchId(plain(request.after)) if request.after else None)


def batch_message(batch: Batch) -> jobs_pb2.Batch:
    faults = [jobs_pb2.BatchError(line=fault.line, code=fault.code, message=fault.message) for fault in batch.faults]
    return jobs_pb2.Batch(
        batch_id=batch.batch_id,
        owner=owner_message(batch.owner),
        endpoint=batch.endpoint,
        input_file_id=batch.input_file_id,
        output_file_id=batch.output_file_id or "",
        error_file_id=batch.error_file_id or "",
        status=batch.status.value,
        total=batch.total,
        completed=batch.completed,
        failed=batch.failed,
        created_at_ms=batch.at.created_ms,
        in_progress_at_ms=batch.at.in_progress_ms,
        finalizing_at_ms=batch.at.finalizing_ms,
        completed_at_ms=batch.at.completed_ms,
        failed_at_ms=batch.at.failed_ms,
        expired_at_ms=batch.at.expired_ms,
        cancelling_at_ms=batch.at.cancelling_ms,
        cancelled_at_ms=batch.at.cancelled_ms,
        expires_at_ms=batch.at.expires_ms,
        metadata=batch.metadata,
        errors=faults,
        completion_window=batch.completion_window,
    )
