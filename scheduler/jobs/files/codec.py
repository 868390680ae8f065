"""penstock.scheduler.v1.FileService's messages to nouns and back. Decides what is malformed, nothing else."""

from __future__ import annotations

from penstock.scheduler.v1 import jobs_pb2

from runtime.ids import TenantId
from scheduler.jobs.callers import plain
from scheduler.jobs.errors import FileRefused
from scheduler.jobs.files.types import MAX_NAME_LETTERS, FileId, FileQuestion, NewFile, Purpose, StoredFile
from scheduler.jobs.types import DEFAULT_PAGE, MAX_PAGE, JobLimits


def new_file_of(message: jobs_pb2.UploadFileRequest, limits: JobLimits) -> NewFile:
    """What the first message says. Raises FileRefused."""
    if not message.tenant or len(message.tenant) > 63 or not message.tenant.isprintable():
        raise FileRefused(f"tenant {message.tenant[:64]!r} cannot be a tenant's name; it stands in the first message")
    if message.purpose != Purpose.BATCH:
        raise FileRefused(f"purpose {message.purpose[:64]!r} is none that files are uploaded for; use {Purpose.BATCH!r}")
    if len(message.name) > MAX_NAME_LETTERS or not message.name.isprintable():
        raise FileRefused(f"the file's name has {len(message.name)} characters; up to {MAX_NAME_LETTERS} printable ones may be")
    keep_ms, longest_ms = message.keep_s * 1_000, limits.file_keep_ms
    if keep_ms > longest_ms:
        raise FileRefused(f"keep_s is {message.keep_s}, of {longest_ms // 1_000} at most")
    return NewFile(TenantId(message.tenant), message.name, message.purpose, keep_ms or longest_ms)


def question_of(tenant: TenantId | None, request: jobs_pb2.ListFilesRequest) -> FileQuestion:
    return FileQuestion(
        tenant=tenant,
        purpose=plain(request.purpose),
        page_size=min(request.page_size or DEFAULT_PAGE, MAX_PAGE),
        after=FileId(plain(request.after)) if request.after else None,
        oldest_first=request.oldest_first,
    )


def file_message(file: StoredFile) -> jobs_pb2.File:
    return jobs_pb2.File(
        file_id=file.file_id,
        tenant=file.tenant,
        name=file.name,
        purpose=file.purpose,
        size_bytes=file.size_bytes,
        created_at_ms=file.created_at_ms,
        expires_at_ms=file.expires_at_ms,
    )
