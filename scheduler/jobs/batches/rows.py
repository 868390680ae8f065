"""Rows of batches and the nouns they stand for."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from scheduler.jobs.batches.types import Batch, BatchStatus, Fault, NewBatch, Progress, Times
from scheduler.jobs.files.types import FileId
from scheduler.jobs.rows import owner_of
from scheduler.jobs.types import BatchId


def row_of(new: NewBatch, batch_id: BatchId, now_ms: int) -> dict[str, Any]:
    return {
        "batch_id": batch_id,
        "tenant": new.owner.tenant,
        "key_id": new.owner.key_id,
        "allowed_models": list(new.owner.allowed_models),
        "endpoint": new.endpoint,
        "completion_window": new.completion_window,
        "input_file_id": new.input_file_id,
        "status": BatchStatus.VALIDATING.value,
        "created_at_ms": now_ms,
        "expires_at_ms": now_ms + new.window_ms,
        "metadata": dict(new.metadata),
        "errors": [],
        "look_at_ms": now_ms,
    }


def batch_of(row: Row[Any]) -> Batch:
    return Batch(
        batch_id=BatchId(row.batch_id),
        owner=owner_of(row),
        endpoint=row.endpoint,
        completion_window=row.completion_window,
        input_file_id=FileId(row.input_file_id),
        output_file_id=FileId(row.output_file_id) if row.output_file_id else None,
        error_file_id=FileId(row.error_file_id) if row.error_file_id else None,
        status=BatchStatus(row.status),
        total=row.total,
        completed=row.completed,
        failed=row.failed,
        at=_times_of(row),
        progress=Progress(row.lines_made, row.lines_read, row.bytes_read),
        metadata=dict(row.metadata),
        faults=tuple(Fault(*fault) for fault in row.errors),
    )


def _times_of(row: Row[Any]) -> Times:
    return Times(
        created_ms=row.created_at_ms,
        in_progress_ms=row.in_progress_at_ms,
        finalizing_ms=row.finalizing_at_ms,
        completed_ms=row.completed_at_ms,
        failed_ms=row.failed_at_ms,
        expired_ms=row.expired_at_ms,
        cancelling_ms=row.cancelling_at_ms,
        cancelled_ms=row.cancelled_at_ms,
        expires_ms=row.expires_at_ms,
    )
