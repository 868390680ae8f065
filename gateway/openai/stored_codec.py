"""File and batch messages, to and from the nouns of `stored`. Only the peers see them besides."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.scheduler.v1 import jobs_pb2

from gateway.jobs.codec import owner_message
from gateway.jobs.types import JobOwner
from gateway.openai.stored import BatchAsked, BatchFault, Stage, StoredBatch, StoredFile, Upload
from runtime.ids import TenantId

PART_BYTES = 1024 * 1024


def file_of(message: jobs_pb2.File) -> StoredFile:
    return StoredFile(
        message.file_id,
        message.name,
        message.purpose,
        message.size_bytes,
        message.created_at_ms,
        message.expires_at_ms,
    )


def upload_requests(tenant: TenantId, upload: Upload) -> Iterator[jobs_pb2.UploadFileRequest]:
    """The first says what it is; all of them carry some of it."""
    first = True
    for part in _slices(upload):
        request = jobs_pb2.UploadFileRequest(data=bytes(part))
        if first:
            request.tenant, request.name, request.purpose, request.keep_s = tenant, upload.name, upload.purpose, upload.keep_s
            first = False
        yield request


def _slices(upload: Upload) -> Iterator[memoryview]:
    if not any(upload.parts):
        yield memoryview(b"")
    for part in upload.parts:
        for start in range(0, len(part), PART_BYTES):
            yield part[start : start + PART_BYTES]


def create_request(owner: JobOwner, asked: BatchAsked) -> jobs_pb2.CreateBatchRequest:
    return jobs_pb2.CreateBatchRequest(
        owner=owner_message(owner),
        input_file_id=asked.input_file_id,
        endpoint=asked.endpoint,
        completion_window=asked.completion_window,
        metadata=dict(asked.metadata),
    )


def batch_of(message: jobs_pb2.Batch) -> StoredBatch:
    asked = BatchAsked(message.input_file_id, message.endpoint, message.completion_window, dict(message.metadata))
    return StoredBatch(
        message.batch_id,
        asked,
        message.status,
        message.output_file_id,
        message.error_file_id,
        message.total,
        message.completed,
        message.failed,
        {stage: getattr(message, f"{stage.value}_ms") for stage in Stage},
        tuple(BatchFault(error.line, error.code, error.message) for error in message.errors),
    )
